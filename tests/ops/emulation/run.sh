#!/bin/sh
# Runs the tests of the operators with the CUDA kernels on the CPU, under AddressSanitizer and
# UndefinedBehaviorSanitizer: once with the threads in ascending order, once in an order that a seed shuffles.
# usage: tests/ops/emulation/run.sh [PYTHON [pytest arguments]]       (make emulate calls it)
# AMMNET_SPARSE_EMULATION_SEED=S: one run only, with this seed. Neither CUDA nor a GPU is needed.
set -eu
cd "$(dirname "$0")/../../.."

python=${1:-.venv/bin/python}
[ $# -eq 0 ] || shift
compiler=${CXX:-c++}
"$python" tests/ops/emulation/build.py

# Python itself is not built for it, so the run-time libraries come first; what Python never frees is no leak of ours.
# shellcheck disable=SC2086
libraries=$(for name in libasan.so libubsan.so libstdc++.so; do $compiler -print-file-name=$name; done | tr '\n' ' ')
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1
export AMMNET_SPARSE_EMULATION="$PWD/build/emulation/_kernels_emulation.so" AMMNET_SPARSE_KERNELS=0

run() {
    echo "== CUDA kernels on the CPU, order of threads: ${AMMNET_SPARSE_EMULATION_SEED:-ascending}"
    # Of stderr only Python's part is captured: a sanitizer says there why it ends the process.
    LD_PRELOAD="$libraries" "$python" -m pytest -q -p no:cacheprovider --capture=sys tests/ops "$@"
}

if [ -n "${AMMNET_SPARSE_EMULATION_SEED-}" ]; then
    run "$@"
else
    run "$@"
    # What test_faults.py looks at does not depend on the seed, and opcheck looks at no values.
    AMMNET_SPARSE_EMULATION_SEED=8332 run --ignore tests/ops/emulation/test_faults.py -k "not opcheck" "$@"
fi
