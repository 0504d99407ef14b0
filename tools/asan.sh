#!/bin/sh
# Runs the tests of the operators with C++ kernels that AddressSanitizer and UndefinedBehaviorSanitizer watch.
# usage: tools/asan.sh [PYTHON [pytest arguments]]       (make asan calls it)
# The kernels are built in build/asan, beside those that the package uses.
set -eu
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
[ $# -eq 0 ] || shift
compiler=${CXX:-c++}
folder=build/asan

AMMNET_SPARSE_CPU=1 AMMNET_SPARSE_CUDA=0 LDFLAGS="-fsanitize=address,undefined" \
    CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1" \
    "$python" setup.py --quiet build_py --build-lib "$folder/lib" build_ext --build-lib "$folder/lib" --build-temp "$folder/objects"

# Python itself is not built for it, so the run-time libraries come first; what Python never frees is no leak of ours.
# shellcheck disable=SC2086
libraries=$(for name in libasan.so libubsan.so libstdc++.so; do $compiler -print-file-name=$name; done | tr '\n' ' ')
export LD_PRELOAD="$libraries" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$PWD/$folder/lib"

"$python" -P -c "
from ammnet_sparse.ops import kernel_libraries
library = kernel_libraries()['cpu']
assert library.is_loaded and '$folder' in library.note, library.note
assert b'__asan_report' in open(library.note, 'rb').read(), 'built without AddressSanitizer'
print('== sanitized kernels:', library.note)"
"$python" -P -m pytest -q -p no:cacheprovider -o pythonpath="$folder/lib ." tests/ops "$@"
