#!/usr/bin/env bash
# Checks and measures everything on a machine with a CUDA card; --device cpu --quick rehearses it without one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

parts="environment convolutions kernels model devices tests sanitizer"
usage() {
    cat <<USAGE
usage: tools/gpu_check.sh [options]
  --only A,B       these parts only        parts: ${parts// /, }
  --out DIR        logs and JSON (default: \$OUT if set, else build/gpu_check)
  --packages DIR   first unpack and install what tools/setup/carry_packages.py brought, apart from the machine's own
  --total S        seconds that all parts together may take (default: 580 each); the last one is stopped
  --data DIR       set to measure on (default: generated rooms)
  --pytest ARGS    arguments of the tests part (default: tests -m cuda), for example "tests"
  --device D       cuda (default) or cpu
  --quick          tiny settings, to rehearse the script
The interpreter is \$PYTHON, else .venv/bin/python if it exists, else python3.
Exit code: 0 every part passed or was skipped, 1 one failed, ran out of time or was not begun, 2 wrong usage.
USAGE
}
die() {
    echo "gpu_check.sh: $1" >&2
    exit 2
}

only=$parts out=${OUT:-build/gpu_check} packages="" total=0 data=() pytest="tests -m cuda" device=cuda quick=0
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --quick) quick=1 && shift && continue ;;
    esac
    [ $# -ge 2 ] || die "$1: unknown, or its value is missing (--help)"
    case $1 in
        --only)
            only=${2//,/ }
            for part in $only; do
                [[ " $parts " == *" $part "* ]] || die "--only: expected ${parts// /, }, found $part"
            done
            ;;
        --out) out=$2 ;;
        --packages) [ -d "$2" ] && packages=$2 || die "--packages: expected a folder, found none at $2" ;;
        --total) [[ $2 =~ ^[0-9]+$ ]] && total=$2 || die "--total: expected a whole number of seconds, found $2" ;;
        --data) [ -e "$2" ] && data=(--data "$2") || die "--data: expected a set, found nothing at $2" ;;
        --pytest) pytest=$2 ;;
        --device) [[ $2 == cpu || $2 == cuda ]] && device=$2 || die "--device: expected cpu or cuda, found $2" ;;
        *) die "$1: unknown (--help)" ;;
    esac
    shift 2
done
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python; } || python=python3
mkdir -p "$out" && out=$(cd "$out" && pwd) || die "--out: cannot make the folder"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

run() {
    echo "\$ $*"
    "$@"
}

install_packages() {
    local site=${TMPDIR:-/tmp}/ammnet_sparse_site archive wheels=()
    mkdir -p "$site"
    for archive in "$packages"/*.tar.xz; do [ ! -e "$archive" ] || run tar -xJf "$archive" -C "$site" || return; done
    for archive in "$packages"/*.whl; do [ ! -e "$archive" ] || wheels+=("$archive"); done
    [ ${#wheels[@]} -eq 0 ] || run "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$site" "${wheels[@]}" || return
    export PYTHONPATH="$site:$PYTHONPATH"
}

part_environment() { run "$python" -m ammnet_sparse environment --device "$device"; }
part_convolutions() {
    local tool=("$python" tools/bench_convolutions.py --device "$device" "${data[@]}")
    if [ "$quick" -eq 1 ]; then
        run "${tool[@]}" --width 8 --seconds 0.001 --ways gather dense --json "$out/convolutions.json"
        return
    fi
    [ "$device" = cpu ] || run "${tool[@]}" --dtype float16 --cudnn-benchmark --json "$out/convolutions_fp16.json" || return
    run "${tool[@]}" --json "$out/convolutions.json"
}
part_kernels() {
    local tool=("$python" tools/bench_kernels.py --device "$device" "${data[@]}" --no-compile)
    if [ "$quick" -eq 1 ]; then
        run "${tool[@]}" --seconds 0.01 --operator modulate --json "$out/kernels.json"
        return
    fi
    run "${tool[@]}" --json "$out/kernels.json" || return
    [ "$device" = cpu ] || run "${tool[@]}" --dtype float16 --json "$out/kernels_fp16.json"
}
part_model() {
    local tool=("$python" tools/bench_model.py --device "$device" "${data[@]}" --json "$out/model.json")
    if [ "$quick" -eq 1 ]; then
        run "${tool[@]}" --quick --width 8 --frames 1 --nets sparse --variants plain --measure macs
        return
    fi
    # Multiplications do not depend on the device: docs/results.md has them.
    run "${tool[@]}" --width 256 --batch 4 --measure saved time --frames 8 --card-gb 6
}
part_devices() {
    local tool=("$python" tools/compare_devices.py "${data[@]}" --second "$device")
    if [ "$quick" -eq 1 ]; then
        run "${tool[@]}" --steps 2 --batch 1 --json "$out/devices.json" model.width=8
        return
    fi
    run "${tool[@]}" --json "$out/devices.json" &&
        run "${tool[@]}" --checkpoint nyu_seg2d_w64 --json "$out/devices_trained.json" || return
    # Mixed precision against float32 on the same card: a CPU takes minutes at full width.
    [ "$device" = cpu ] || run "${tool[@]}" --first "$device" --second-dtype float16 --tolerance 5e-3 \
        --later-tolerance 5e-2 --json "$out/devices_fp16.json" model.width=256
}
part_tests() {
    local what=() parallel=() && read -ra what <<<"$pytest"
    [ "$quick" -eq 0 ] || what=(tests/ops/test_philox.py)
    ! "$python" -c 'import xdist' 2>/dev/null || parallel=(-n "$(($(nproc) > 5 ? $(nproc) - 4 : 1))")
    run "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" --durations=15 --junitxml="$out/tests.xml" "${what[@]}"
}
part_sanitizer() {
    local tool kernel shared=()
    tool=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
    if [ -z "$tool" ]; then
        echo "compute-sanitizer: not found; it comes with the CUDA toolkit (set CUDA_HOME)"
        [ "$device" = cpu ] && return 77 || return 1
    fi
    # Races concern the kernels with shared memory.
    for kernel in $(grep -l __shared__ csrc/cuda/*.cu); do
        kernel=tests/ops/test_$(basename "$kernel" .cu).py
        [ ! -f "$kernel" ] || shared+=("$kernel")
    done
    # PyTorch's own cache of memory would hide reads beyond an allocation.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    local watch=("$tool" --target-processes all --error-exitcode 86 --report-api-errors no)
    local test=("$python" -m pytest -q -p no:cacheprovider -m cuda)
    run "${watch[@]}" --tool racecheck "${test[@]}" "${shared[@]}" &&
        run "${watch[@]}" --tool memcheck "${test[@]}" tests/ops
}

failed=0
verdict() { # part, result, exit code, seconds
    [ "$2" = passed ] || [ "$2" = skipped ] || failed=1
    [ -s "$out/summary.txt" ] || printf '%-12s %-12s %5s %8s\n' part result code seconds >"$out/summary.txt"
    printf '%-12s %-12s %5s %8d\n' "$@" | tee -a "$out/summary.txt"
}
check() {
    local part=$1 log="$out/$1.log" code result started=$SECONDS seconds=580
    [ "$total" -eq 0 ] || seconds=$((total - SECONDS < seconds ? total - SECONDS : seconds))
    [ $seconds -ge 5 ] || { verdict "$part" "not begun" - 0 && return; }
    echo "== $part (at most $seconds s): $log"
    # In a process group of its own, which a time limit ends as a whole.
    export -f run "part_$part"
    export python device out quick pytest
    timeout --kill-after=10 "$seconds" bash -c "$(declare -p data); part_$part" >"$log" 2>&1
    code=$?
    case $code in
        0) result=passed ;;
        77) result=skipped ;;
        124 | 137) result="out of time" ;;
        *) result=FAILED ;;
    esac
    [ "$result" = passed ] || [ "$result" = skipped ] || tail -n 15 "$log" | sed 's/^/    /'
    verdict "$part" "$result" $code $((SECONDS - started))
}

[ -z "$packages" ] || install_packages || die "--packages: cannot be installed"
for part in $parts; do
    [[ " $only " != *" $part "* ]] || check "$part"
done
exit $failed
