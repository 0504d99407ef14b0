#!/usr/bin/env bash
# Checks and measures everything on a machine with a CUDA card; rehearsed without one by --device cpu --quick.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

parts="environment tests sanitizer kernels model devices"
usage() {
    cat <<USAGE
usage: tools/gpu_check.sh [options]
  --only A,B       these parts only        parts: ${parts// /, }
  --skip A,B       all but these
  --out DIR        logs, JSON and pictures (default: \$OUT, else build/gpu_check)
  --limit [P=]S    seconds that part P, or each part, may take (may be given more than once)
  --data DIR       set to measure on (default: generated rooms)
  --pytest ARGS    what the tests part runs (default: tests), for example "tests -m cuda"
  --python FILE    interpreter (default: .venv/bin/python where it is, else python3)
  --device D       cuda (default) or cpu
  --build          compile the kernels first
  --quick          tiny settings, to rehearse the script
  --dry-run        print the commands only
Exit code: 0 every part passed or was skipped, 1 one failed or ran out of time, 2 wrong usage.
USAGE
}
die() {
    echo "gpu_check.sh: $1" >&2
    exit 2
}

only=$parts skip="" out=${OUT:-build/gpu_check} data="" pytest=tests python="" device=cuda build=0 quick=0 dry=0
declare -A limit=([build]=580 [environment]=90 [tests]=580 [sanitizer]=580 [kernels]=580 [model]=580 [devices]=300)
known() {
    local name
    for name in ${1//,/ }; do [[ " $parts " == *" $name "* ]] || die "$2: expected ${parts// /, }, found $name"; done
}
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --build) build=1 && shift && continue ;;
        --quick) quick=1 && shift && continue ;;
        --dry-run) dry=1 && shift && continue ;;
    esac
    [ $# -ge 2 ] || die "$1: unknown, or its value is missing (--help)"
    case $1 in
        --only) known "$2" "$1" && only=${2//,/ } ;;
        --skip) known "$2" "$1" && skip=${2//,/ } ;;
        --out) out=$2 ;;
        --data) data=$2 ;;
        --pytest) pytest=$2 ;;
        --python) python=$2 ;;
        --device) [[ $2 == cpu || $2 == cuda ]] || die "--device: expected cpu or cuda, found $2" && device=$2 ;;
        --limit)
            [[ ${2##*=} =~ ^[0-9]+$ ]] || die "--limit: expected seconds or part=seconds, found $2"
            if [[ $2 == *=* ]]; then
                known "${2%%=*}" "$1" && limit[${2%%=*}]=${2##*=}
            else
                for part in "${!limit[@]}"; do limit[$part]=$2; done
            fi
            ;;
        *) die "$1: unknown (--help)" ;;
    esac
    shift 2
done
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python; } || python=python3
[ -z "$data" ] || [ -e "$data" ] || die "--data: expected a set, found nothing at $data"
mkdir -p "$out" && out=$(cd "$out" && pwd) || die "--out: cannot make the folder"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Commands of a part run one after the other; "run" prints, and runs unless --dry-run.
run() {
    printf '$'
    printf ' %q' "$@"
    echo
    [ $dry -eq 1 ] || "$@"
}
of_data=() && [ -z "$data" ] || of_data=(--data "$data")

part_build() { run "$python" setup.py build_ext --inplace; }
part_environment() { run "$python" tools/show_environment.py --device "$device"; }
part_tests() {
    local what=() && read -ra what <<<"$pytest"
    [ $quick -eq 0 ] || what=(tests/ops/test_philox.py)
    run "$python" -m pytest -q -p no:cacheprovider --durations=15 --junitxml="$out/tests.xml" "${what[@]}"
}
part_sanitizer() {
    local tool test
    tool=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
    if [ -z "$tool" ]; then
        echo "compute-sanitizer: not found; it comes with the CUDA toolkit (set CUDA_HOME)"
        [ "$device" = cpu ] && return 77
        [ $dry -eq 1 ] || return 1
        tool=compute-sanitizer
    fi
    # PyTorch's own cache of memory would hide what is read beyond an allocation.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    test=("$python" -m pytest -q -p no:cacheprovider -m cuda)
    local watch=("$tool" --target-processes all --error-exitcode 86 --report-api-errors no)
    run "${watch[@]}" --tool memcheck "${test[@]}" tests/ops &&
        # Only the projection has shared memory.
        run "${watch[@]}" --tool racecheck "${test[@]}" tests/ops/test_projection.py
}
part_kernels() {
    local tool=("$python" tools/bench_kernels.py --device "$device" "${of_data[@]}")
    if [ $quick -eq 1 ]; then
        run "${tool[@]}" --seconds 0.01 --no-compile --operator modulate --json "$out/kernels.json" --plot "$out/kernels.png"
        return
    fi
    run "${tool[@]}" --json "$out/kernels.json" --plot "$out/kernels.png" || return
    [ "$device" = cpu ] && return
    run "${tool[@]}" --dtype float16 --no-compile --json "$out/kernels_fp16.json" &&
        run "$python" tools/bench_convolutions.py --device "$device" "${of_data[@]}" --dtype float16 \
            --cudnn-benchmark --json "$out/convolutions_fp16.json"
}
part_model() {
    local tool=("$python" tools/bench_model.py --device "$device" "${of_data[@]}" --json "$out/model.json")
    if [ $quick -eq 1 ]; then
        run "${tool[@]}" --quick --width 8 --frames 1 --nets sparse --variants plain --measure macs
        return
    fi
    # Multiplications do not depend on the device: docs/results.md has them.
    run "${tool[@]}" --width 256 --batch 4 --measure saved time --frames 8 --card-gb 6 --plot "$out/model.png"
}
part_devices() {
    local tool=("$python" tools/compare_devices.py --first cpu --second "$device" "${of_data[@]}")
    if [ $quick -eq 1 ]; then
        run "${tool[@]}" --steps 2 --batch 1 --width 8 --json "$out/devices.json"
        return
    fi
    run "${tool[@]}" --json "$out/devices.json" &&
        run "${tool[@]}" --checkpoint nyu_seg2d_w64 --json "$out/devices_trained.json"
}

summary=() failed=0
check() {
    local part=$1 log="$out/$1.log" code verdict started=$SECONDS
    echo "== $part (at most ${limit[$part]} s): $log"
    if [ $dry -eq 1 ]; then
        "part_$part"
        return
    fi
    # In a process group of its own, which a time limit ends as a whole.
    export -f run "part_$part"
    export python device out quick dry pytest
    timeout --kill-after=10 "${limit[$part]}" bash -c "$(declare -p of_data); part_$part" >"$log" 2>&1
    code=$?
    case $code in
        0) verdict=passed ;;
        77) verdict=skipped ;;
        124 | 137) verdict="out of time" ;;
        *) verdict=FAILED ;;
    esac
    [ "$verdict" = passed ] || [ "$verdict" = skipped ] || { failed=1 && tail -n 15 "$log" | sed 's/^/    /'; }
    summary+=("$(printf '%-12s %-12s %5d %6d s  %s' "$part" "$verdict" "$code" $((SECONDS - started)) "$(basename "$log")")")
}

[ $build -eq 0 ] || check build
for part in $parts; do
    [[ " $only " == *" $part "* && " $skip " != *" $part "* ]] && check "$part"
done
[ $dry -eq 1 ] && exit 0
{
    printf '%-12s %-12s %5s %8s  %s\n' part result code seconds log
    printf '%s\n' "${summary[@]}"
} | tee -a "$out/summary.txt"
exit $failed
