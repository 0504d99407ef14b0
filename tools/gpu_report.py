#!/usr/bin/env python3
"""Measures what README and docs claim about GPUs, most important first, within a given time.

    tools/gpu_report.py --data NYU --out OUT --total 840
    tools/gpu_report.py --device cpu --quick              rehearses every case with small sizes

Each case runs in a process of its own with a time limit. It has a log in --out, and its line of JSON is added to
results.jsonl, and printed, as soon as it ends. Exit code: 0 every case that was begun passed, 1 another result, 2 wrong
usage.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_KEYS = ("step_seconds", "step_seconds_range", "peak_mib", "launches", "device_seconds", "graphs", "skipped_steps")
"""What a line takes from the row of tools/bench_model.py."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command and the seconds that it may take; ``{json}`` in it stands for its file of figures."""

    name: str
    seconds: float
    command: list[str]
    variables: dict[str, str] = dataclasses.field(default_factory=dict)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every case, most important first."""
    on = ["--device", options.device]
    data = [] if options.data is None else ["--data", str(options.data)]
    is_cuda = options.device != "cpu"

    def step(name: str, seconds: float, *more: str, width: int = 256) -> Case:
        size = ["--width", "8", "--batch", "1", "--frames", "1", "--steps", "1"] if options.quick else []
        size = size or ["--width", str(width), "--batch", "4", "--frames", "8", "--steps", "15"]
        command = ["tools/bench_model.py", *on, *data, "--measure", "time", "--fit-batches", *size, *more]
        return Case(f"step {name}", seconds, [*command, "--json", "{json}"])

    def tool(name: str, seconds: float, script: str, *more: str) -> Case:
        return Case(name, seconds, [f"tools/{script}", *more, *data, "--json", "{json}"])

    half = "float16" if is_cuda else "float32"
    dense = ["--nets", "dense", "--cudnn-benchmark"]
    channels_last = [*dense, "--variants", "channels_last"]
    sparse = ["--nets", "sparse", "--variants"]
    gather, auto = ["--backend", "gather"], ["--backend", "auto"]
    yield Case("environment", 30, ["-m", "ammnet_sparse", "environment", *on])
    yield step("dense 256 fp16", 80, *channels_last, "--dtype", half)
    yield step("sparse 256 fp16 gather", 50, *sparse, "plain", *gather, "--dtype", half)
    yield step("sparse 256 fp16 auto", 70, *sparse, "plain", *auto, "--dtype", half)
    if is_cuda:
        yield step("sparse 256 fp16 graphs", 80, *sparse, "graphs", *auto, "--dtype", half)
    yield step("dense 256 float32 tf32", 80, *dense, "--variants", "plain", "--dtype", "float32", "--tf32")
    yield step("sparse 256 float32 tf32", 50, *sparse, "plain", *auto, "--dtype", "float32", "--tf32")
    yield step("sparse 256 fp16 elementwise", 50, *sparse, "recompute_elementwise", *auto, "--dtype", half)
    yield step("dense 64 fp16", 50, *channels_last, "--dtype", half, width=64)
    yield step("sparse 64 fp16", 50, *sparse, "plain", *auto, "--dtype", half, width=64)
    tests = ["tests/ops/test_philox.py"] if options.quick else ["tests", "-m", "cuda"]
    yield Case("tests", 240, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests])
    for weights in ("nyu_depth_w64", "nyu_rgb_w64"):
        yield Case(f"frame {weights}", 50, ["tools/gpu_report.py", *on, "--frame", weights])
    yield step("dense 256 fp16 compiled", 180, *dense, "--variants", "compiled", "--dtype", half)
    seconds = ["--seconds", "0.001" if options.quick else "0.2", *(["--operator", "modulate"] if options.quick else [])]
    for dtype in dict.fromkeys((half, "float32")):
        yield tool(f"kernels {dtype}", 70, "bench_kernels.py", *on, "--dtype", dtype, *seconds)
    few = (
        ["--width", "8", "--seconds", "0.001", "--ways", "gather", "dense"] if options.quick else ["--seconds", "0.05"]
    )
    yield tool("convolutions", 100, "bench_convolutions.py", *on, "--dtype", half, "--cudnn-benchmark", *few)
    card = ["--measure", "time", *sparse, "plain", "recompute_elementwise", "recompute_full", "--card-gb", "6"]
    size = ["--quick"] if options.quick else ["--frames", "8"]
    yield tool("card of 6 GB", 120, "bench_model.py", *on, *card, *size, "--dtype", half)
    if is_cuda:
        yield from _sanitized()


def _sanitized() -> Iterator[Case]:
    """compute-sanitizer over the operators' tests, if installed: races of kernels with shared memory, then memory."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=home / "bin")
    if program is None:
        return
    watch = [program, "--target-processes", "all", "--error-exitcode", "86", "--report-api-errors", "no", "--tool"]
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda"]
    sources = [
        path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if "__shared__" in path.read_text(encoding="utf-8")
    ]
    shared = [str(file) for path in sources if (file := ROOT / "tests" / "ops" / f"test_{path.stem}.py").is_file()]
    # PyTorch's own cache of memory would hide reads beyond an allocation.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    yield Case("sanitizer racecheck", 200, [*watch, "racecheck", *test, *shared], variables)
    yield Case("sanitizer memcheck", 400, [*watch, "memcheck", *test, "tests/ops"], variables)


def main() -> int:
    options = _parse()
    if options.frame:
        print(json.dumps(_time_frames(options.frame, options.device, count=2 if options.quick else 60)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "tools"]))}
    if options.packages is not None:
        environment["PYTHONPATH"] += os.pathsep + str(_unpack(options.packages, options.out / "packages"))
    begun, has_failed = time.monotonic(), False
    for case in cases(options):
        left = options.total - (time.monotonic() - begun)
        limit = case.seconds * (4 if options.device == "cpu" else 1)
        if options.only not in case.name or left < min(5, limit):
            continue
        row = _run(case, environment | case.variables, options.out, seconds=min(limit, left))
        has_failed |= row["result"] != "passed"
        print(json.dumps(row), flush=True)
        with (options.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return int(has_failed)


def _run(case: Case, environment: dict[str, str], out: Path, *, seconds: float) -> dict[str, Any]:
    """Runs a case within ``seconds``; its line of results."""
    stem = case.name.replace(" ", "_")
    figures, log = (out / f"{stem}.json").absolute(), out / f"{stem}.log"
    figures.unlink(missing_ok=True)
    command = [str(figures) if word == "{json}" else word for word in case.command]
    command = command if Path(command[0]).is_absolute() else [sys.executable, *command]
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            result = "passed" if process.wait(seconds) == 0 else f"failed with {process.returncode}"
        except subprocess.TimeoutExpired:
            result = f"out of time after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    row: dict[str, Any] = {"case": case.name, "result": result, "seconds": round(time.monotonic() - started, 1)}
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if case.name.startswith("frame") and result == "passed":
        row |= json.loads(next(line for line in reversed(lines) if line.startswith("{")))  # warnings may follow
    elif figures.is_file() and case.name.startswith("step"):
        steps = json.loads(figures.read_text(encoding="utf-8"))["rows"]
        row |= {
            key: value for measured in steps for key, value in measured.items() if key in _KEYS and value is not None
        }
    if result != "passed" and lines:
        row["last_line"] = lines[-1][:300]
    return row


def _time_frames(weights: str, device: str, *, count: int) -> dict[str, float]:
    """Seconds until the completer is ready and of a frame (median), of the generated example.

    Also the share of its voxels that have the classes of a CPU in float32.
    """
    import statistics

    started = time.perf_counter()
    import numpy as np
    from PIL import Image

    from ammnet_sparse import SceneCompleter

    folder = ROOT / "examples" / "frame"
    settings: dict[str, Any] = {"intrinsics": str(folder / "intrinsics.txt")}
    complete = SceneCompleter(weights, device=device, **settings)
    ready = time.perf_counter() - started
    depth = np.asarray(Image.open(folder / "depth.png"))
    color = np.asarray(Image.open(folder / "color.jpg")) if complete.model.config.reads_image else None
    seconds = []
    for _ in range(count + 3):
        started = time.perf_counter()
        complete(color, depth).labels.sum()
        seconds.append(time.perf_counter() - started)
    expected = SceneCompleter(weights, device="cpu", precision="float32", **settings)(color, depth).labels
    return {
        "ready_seconds": round(ready, 2),
        "frame_seconds": round(statistics.median(seconds[3:]), 4),
        "equal_to_cpu": round(float((complete(color, depth).labels == expected).mean()), 5),
    }


def _unpack(packages: Path, site: Path) -> Path:
    """What tools/setup/carry_packages.py brought, in a folder for PYTHONPATH."""
    for archive in sorted(packages.glob("*.tar.xz")):
        with tarfile.open(archive) as file:
            file.extractall(site, filter="data")
    if wheels := sorted(map(str, packages.glob("*.whl"))):
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*pip, "--target", str(site), *wheels], check=True)
    return site.absolute()


def _parse() -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="set to measure on (default: generated rooms)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT", "build/gpu_report")),
        help="default: $OUT, or %(default)s",
    )
    parser.add_argument("--total", type=float, default=840, help="seconds for all cases (default: 840)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it, such as step")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument(
        "--packages", type=Path, metavar="DIR", help="unpack what carry_packages.py brought, and use it"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to rehearse")
    parser.add_argument("--frame", metavar="WEIGHTS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("data", "packages"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name}: found nothing at {path}")
        if path is not None:
            setattr(options, name, path.absolute())
    return options


if __name__ == "__main__":
    sys.exit(main())
