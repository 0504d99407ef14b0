"""Measures the operators against plain PyTorch and the bandwidth of a copy.

    python tools/bench_kernels.py                              every device found, float32, generated rooms
    python tools/bench_kernels.py --data data/nyu --dtype float16 --device cuda --json bench.json

Sizes are those of real frames (2900 mapped voxels a frame, batch 4) and 64k rows. ``ours`` is the operator as users
call it, ``naive`` the plain PyTorch of the dense original and ``copy`` a copy that moves as many bytes as the operator
must. Times are medians; ``of copy`` is the share of the bandwidth of a large copy, measured in the same run, that the
bytes which must move make of it.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler, which measures memory, writes to the screen

import torch
from bench.cases import Case, load_batch, make_cases
from bench.timing import Step, measure

from ammnet_sparse.cli.options import parse_device
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.ops import kernel_libraries

LARGE_COPY = {"cpu": 2**28, "cuda": 2**30}
"""Bytes of the large copy, beyond every cache."""


def peak_bytes(step: Step, device: torch.device) -> int:
    """Peak memory of ``step``, results included, above the memory held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = step()
    changes = [(event.time_range.start, event.self_cpu_memory_usage) for event in profile.events()]
    del kept
    held = peak = 0
    for _, change in sorted(change for change in changes if change[1]):
        held += change
        peak = max(peak, held)
    return peak


def copy_step(num_bytes: int, device: torch.device) -> Step:
    """A copy that reads and writes ``num_bytes`` together."""
    source = torch.zeros(max(num_bytes // 2, 1), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def measure_case(case: Case, device: torch.device, *, seconds: float) -> list[dict]:
    """Rows of one case: ours, naive, copy."""
    rows: list[dict[str, Any]] = []
    for name, step in {"ours": case.ours, "naive": case.naive, "copy": copy_step(case.bytes, device)}.items():
        timing = measure(step, device, seconds=seconds)
        rows.append(
            {
                "device": device.type,
                "op": case.op,
                "direction": case.direction,
                "size": case.size,
                "dtype": str(case.dtype).removeprefix("torch."),
                "impl": name,
                "median_us": round(timing.median, 2),
                "quartiles_us": [round(timing.low, 2), round(timing.high, 2)],
                "bytes": case.bytes,
                "peak_bytes": peak_bytes(step, device),
            }
        )
    for row in rows:
        row["speedup_over_naive"] = round(rows[1]["median_us"] / row["median_us"], 3)
    return rows


def print_rows(rows: list[dict], *, bandwidth: float) -> None:
    for row in rows:
        spread = (row["quartiles_us"][1] - row["quartiles_us"][0]) / row["median_us"]
        share = row["bytes"] / (row["median_us"] * 1e-6) / bandwidth
        print(
            f"{row['op']:19}{row['direction']:9}{row['size']:25}{row['dtype']:9}{row['impl']:8}"
            f"{row['median_us']:12.1f}{spread:8.0%}{row['bytes'] / 1e6:9.2f}{share:9.1%}"
            f"{row['peak_bytes'] / 1e6:10.1f}{row['speedup_over_naive']:11.1f}x",
            flush=True,
        )


def print_header(device: torch.device, bandwidth: float) -> None:
    library = kernel_libraries()[device.type]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"\n{device.type} ({name}), torch {torch.__version__}, {platform.platform()}")
    print(f"kernels: {library.note}")
    print(
        f"a copy of {LARGE_COPY[device.type] / 1e6:.0f} MB moves {bandwidth / 1e9:.2f} GB/s, read and written together"
    )
    print(
        f"{'operator':19}{'':9}{'size':25}{'type':9}{'':8}{'median us':>12}{'spread':>8}{'MB':>9}{'of copy':>9}"
        f"{'peak MB':>10}{'  over naive'}"
    )


def main() -> None:
    found = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", action="append", help="cpu, cuda or cuda:N (default: cpu and cuda)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "float64"), default="float32")
    parser.add_argument("--data", type=Path, help="folder or packed file of a set; else generated rooms")
    parser.add_argument("--operator", action="append", help="measure only this one (may be given more than once)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    torch.manual_seed(8332)
    try:
        devices = [parse_device(name) for name in arguments.device or found]
        batch = load_batch(arguments.data)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows: list[dict] = []
    for device in devices:
        num_bytes = LARGE_COPY[device.type]
        copied = measure(copy_step(num_bytes, device), device, seconds=arguments.seconds)
        bandwidth = num_bytes / (copied.median * 1e-6)
        print_header(device, bandwidth)
        names: dict[str, None] = {}
        for case in make_cases(batch, device, getattr(torch, arguments.dtype)):
            names[case.op] = None
            if arguments.operator and case.op not in arguments.operator:
                continue
            measured = measure_case(case, device, seconds=arguments.seconds)
            print_rows(measured, bandwidth=bandwidth)
            rows += measured
            if arguments.json:  # after each, as a time limit may end the next
                kept = [{key: value for key, value in row.items() if key != "quartiles_us"} for row in rows]
                write_text(arguments.json, json.dumps({"rows": kept}, indent=1) + "\n")
        if unknown := [name for name in arguments.operator or [] if name not in names]:
            parser.error(f"--operator: expected some of {', '.join(names)}, found {', '.join(unknown)}")
