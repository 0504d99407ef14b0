"""How long a call takes on a device, for the benchmarks of operators and convolutions."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Step = Callable[[], Any]

FLUSH = 2**28
"""Bytes written before each call on CUDA."""


class Timing(NamedTuple):
    """Microseconds: the median and the quartiles."""

    median: float
    low: float
    high: float


def time_on_cpu(step: Step) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e6


def time_on_cuda(step: Step) -> float:
    # Overwrites the caches, as the rest of a training step does, and meanwhile the launches get ahead of the device.
    torch.empty(FLUSH, dtype=torch.uint8, device="cuda").zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def measure(step: Step, device: torch.device, *, seconds: float) -> Timing:
    """Repeats ``step`` for some seconds, at least 3 and at most 200 times, after a first call that does not count."""
    step()
    time_once = time_on_cuda if device.type == "cuda" else time_on_cpu
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        times.append(time_once(step))
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high)
