#!/usr/bin/env bash
# Checks and measures everything on a machine with a CUDA card; rehearsed without one by --device cpu --quick.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

parts="environment convolutions kernels model devices tests sanitizer"
usage() {
    cat <<USAGE
usage: tools/gpu_check.sh [options]
  --only A,B       these parts only        parts: ${parts// /, }
  --skip A,B       all but these
  --out DIR        logs, JSON and pictures (default: build/gpu_check)
  --pack DIR       after each part, all of --out there as results.tar.xz.0, .1, ... of 15 MiB, at most 7, and
                   summary.txt (default: \$OUT where it is set)
  --packages DIR   unpack and install first, away from the machine's own, what tools/setup/carry_packages.py brought
  --limit [P=]S    seconds that part P, or each part, may take (may be given more than once)
  --total S        seconds that all of it may take; parts that come too late are not begun
  --data DIR       set to measure on (default: generated rooms)
  --pytest ARGS    what the tests part runs (default: tests -m cuda), for example "tests"
  --jobs N         processes of the tests, where pytest-xdist is installed (default: all cores but four, at least one)
  --python FILE    interpreter (default: .venv/bin/python where it is, else python3)
  --device D       cuda (default) or cpu
  --build          compile the kernels first
  --quick          tiny settings, to rehearse the script
  --dry-run        print the commands only
Exit code: 0 every part passed or was skipped, 1 one failed, ran out of time or was not begun, 2 wrong usage.
USAGE
}
die() {
    echo "gpu_check.sh: $1" >&2
    exit 2
}

only=$parts skip="" out=build/gpu_check pack=${OUT-} packages="" data="" pytest="tests -m cuda" python="" device=cuda
build=0 quick=0 dry=0 total=0
jobs=$(($(nproc) > 5 ? $(nproc) - 4 : 1))
declare -A limit=([build]=580 [environment]=90 [convolutions]=580 [kernels]=300 [model]=580 [devices]=300 [tests]=580
    [sanitizer]=580)
known() {
    local name
    for name in ${1//,/ }; do [[ " $parts " == *" $name "* ]] || die "$2: expected ${parts// /, }, found $name"; done
}
number() { [[ $2 =~ ^[0-9]+$ ]] || die "$1: expected a whole number, found $2"; }
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
        --pack) pack=$2 ;;
        --packages) packages=$2 ;;
        --data) data=$2 ;;
        --pytest) pytest=$2 ;;
        --python) python=$2 ;;
        --jobs) number "$1" "$2" && jobs=$2 ;;
        --total) number "$1" "$2" && total=$2 ;;
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
[ -z "$packages" ] || [ -d "$packages" ] || die "--packages: expected a folder, found none at $packages"
mkdir -p "$out" && out=$(cd "$out" && pwd) || die "--out: cannot make the folder"
[ -z "$pack" ] || { mkdir -p "$pack" && pack=$(cd "$pack" && pwd); } || die "--pack: cannot make the folder"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# Commands of a part run one after the other; "run" prints, and runs unless --dry-run.
run() {
    printf '$'
    printf ' %q' "$@"
    echo
    [ $dry -eq 1 ] || "$@"
}
of_data=() && [ -z "$data" ] || of_data=(--data "$data")

install_packages() {
    local site=${TMPDIR:-/tmp}/ammnet_sparse_site archive wheels=()
    for archive in "$packages"/*.tar.xz; do
        [ ! -e "$archive" ] || { mkdir -p "$site" && run tar -xJf "$archive" -C "$site"; } || return
    done
    for archive in "$packages"/*.whl; do [ ! -e "$archive" ] || wheels+=("$archive"); done
    [ ${#wheels[@]} -eq 0 ] || run "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$site" "${wheels[@]}" || return
    export PYTHONPATH="$site:$PYTHONPATH"
}

part_build() { run "$python" setup.py build_ext --inplace; }
part_environment() { run "$python" -m ammnet_sparse environment --device "$device"; }
part_convolutions() {
    local tool=("$python" tools/bench_convolutions.py --device "$device" "${of_data[@]}")
    if [ $quick -eq 1 ]; then
        run "${tool[@]}" --width 8 --seconds 0.001 --ways gather dense --json "$out/convolutions.json"
        return
    fi
    [ "$device" = cpu ] || run "${tool[@]}" --dtype float16 --cudnn-benchmark --json "$out/convolutions_fp16.json" || return
    run "${tool[@]}" --json "$out/convolutions.json"
}
part_kernels() {
    local tool=("$python" tools/bench_kernels.py --device "$device" "${of_data[@]}" --no-compile)
    if [ $quick -eq 1 ]; then
        run "${tool[@]}" --seconds 0.01 --operator modulate --json "$out/kernels.json" --plot "$out/kernels.png"
        return
    fi
    run "${tool[@]}" --json "$out/kernels.json" --plot "$out/kernels.png" || return
    [ "$device" = cpu ] || run "${tool[@]}" --dtype float16 --json "$out/kernels_fp16.json"
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
    local tool=("$python" tools/compare_devices.py "${of_data[@]}")
    if [ $quick -eq 1 ]; then
        run "${tool[@]}" --first cpu --second "$device" --steps 2 --batch 1 --width 8 --json "$out/devices.json"
        return
    fi
    run "${tool[@]}" --first cpu --second "$device" --json "$out/devices.json" &&
        run "${tool[@]}" --first cpu --second "$device" --checkpoint nyu_seg2d_w64 --json "$out/devices_trained.json" ||
        return
    # Mixed precision against float32 on the same card: a CPU takes minutes at full width.
    [ "$device" = cpu ] || run "${tool[@]}" --first "$device" --second "$device" --second-dtype float16 --width 256 \
        --tolerance 5e-3 --later-tolerance 5e-2 --json "$out/devices_fp16.json"
}
part_tests() {
    local what=() parallel=() && read -ra what <<<"$pytest"
    [ $quick -eq 0 ] || what=(tests/ops/test_philox.py)
    ! "$python" -c 'import xdist' 2>/dev/null || parallel=(-n "$jobs")
    run "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" --durations=15 --junitxml="$out/tests.xml" "${what[@]}"
}
part_sanitizer() {
    local tool test kernel shared=()
    tool=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
    if [ -z "$tool" ]; then
        echo "compute-sanitizer: not found; it comes with the CUDA toolkit (set CUDA_HOME)"
        [ "$device" = cpu ] && return 77
        [ $dry -eq 1 ] || return 1
        tool=compute-sanitizer
    fi
    # Races concern the kernels with shared memory.
    for kernel in $(grep -l __shared__ csrc/cuda/*.cu); do
        kernel=$(basename "$kernel" .cu)
        [ ! -f "tests/ops/test_$kernel.py" ] || shared+=("tests/ops/test_$kernel.py")
    done
    # PyTorch's own cache of memory would hide what is read beyond an allocation.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    test=("$python" -m pytest -q -p no:cacheprovider -m cuda)
    local watch=("$tool" --target-processes all --error-exitcode 86 --report-api-errors no)
    run "${watch[@]}" --tool racecheck "${test[@]}" "${shared[@]}" &&
        run "${watch[@]}" --tool memcheck "${test[@]}" tests/ops
}

# What is there so far, as few files as come back from such a machine. Replaced as a whole.
pack_results() {
    [ -n "$pack" ] || return 0
    local made="$pack/.packing" count
    rm -rf "$made" && mkdir "$made" || return
    tar -C "$out" -cf - . | xz -2 -T0 | split -b 15M -a 1 -d - "$made/results.tar.xz." || return
    count=$(find "$made" -type f | wc -l)
    if [ "$count" -gt 7 ]; then
        echo "gpu_check.sh: --pack: expected at most 7 files of 15 MiB, found $count; the rest is left out" >&2
        find "$made" -type f | sort | tail -n +8 | xargs rm -f
    fi
    cp "$out/summary.txt" "$made/" && rm -f "$pack"/results.tar.xz.* && mv "$made"/* "$pack/" && rmdir "$made"
}

failed=0
verdict() { # part, result, exit code, seconds, log
    [ "$2" = passed ] || [ "$2" = skipped ] || failed=1
    [ -s "$out/summary.txt" ] || printf '%-12s %-12s %5s %8s  %s\n' part result code seconds log >"$out/summary.txt"
    printf '%-12s %-12s %5s %6d s  %s\n' "$1" "$2" "$3" "$4" "$5" | tee -a "$out/summary.txt"
    pack_results
}
check() {
    local part=$1 log="$out/$1.log" code result started=$SECONDS seconds=${limit[$1]}
    if [ $dry -eq 1 ]; then
        echo "== $part"
        "part_$part"
        return
    fi
    if [ "$total" -gt 0 ]; then
        seconds=$((total - SECONDS < seconds ? total - SECONDS : seconds))
        [ $seconds -ge 10 ] || { verdict "$part" "not begun" - 0 - && return; }
    fi
    echo "== $part (at most $seconds s): $log"
    # In a process group of its own, which a time limit ends as a whole.
    export -f run "part_$part"
    export python device out quick dry pytest jobs
    timeout --kill-after=10 "$seconds" bash -c "$(declare -p of_data); part_$part" >"$log" 2>&1
    code=$?
    case $code in
        0) result=passed ;;
        77) result=skipped ;;
        124 | 137) result="out of time" ;;
        *) result=FAILED ;;
    esac
    [ "$result" = passed ] || [ "$result" = skipped ] || tail -n 15 "$log" | sed 's/^/    /'
    verdict "$part" "$result" $code $((SECONDS - started)) "$part.log"
}

[ -z "$packages" ] || install_packages || die "--packages: cannot be installed"
[ $build -eq 0 ] || check build
for part in $parts; do
    [[ " $only " == *" $part "* && " $skip " != *" $part "* ]] && check "$part"
done
[ $dry -eq 1 ] && exit 0
echo "== $out/summary.txt"
cat "$out/summary.txt"
exit $failed
