"""Time of a call on a device, for the benchmarks of operators and convolutions."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Step = Callable[[], Any]

CACHES = 4
"""How many times the size of the device's L2 cache is read before each call on CUDA."""
HEAD_START = 1.5
"""How long the device sleeps before each call on CUDA, over what the host takes to launch it."""
LONGEST_SLEEP = 0.02
CYCLES_A_SECOND = 2.0e9
"""Approximate clock of the cards; on a faster one the sleep is slightly shorter."""


class Timing(NamedTuple):
    """Microseconds: the median and the quartiles."""

    median: float
    low: float
    high: float


def time_on_cpu(step: Step) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e6


def time_on_cuda(step: Step, device: torch.device, *, launch_seconds: float = 0.0) -> float:
    """Microseconds that ``step`` takes on the device.

    The caches hold values that the step does not read, as in a training step, and nothing that must be written back:
    they are filled by reading. The device sleeps while the host launches the step, so that it never waits for the host
    between the two events, the first of which comes after the sleep.

    Args:
        step: what to time. Where it waits for the device itself, that time counts.
        device: the CUDA device that it runs on.
        launch_seconds: what the host takes to launch it.
    """
    with torch.cuda.device(device):
        torch.sum(_ballast(torch.cuda.current_device()))
        torch.cuda._sleep(int(min(HEAD_START * launch_seconds + 5e-5, LONGEST_SLEEP) * CYCLES_A_SECOND))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


@functools.lru_cache(maxsize=1)
def _ballast(index: int) -> Tensor:
    """Memory on a device that fills its caches several times over."""
    size = max(2**28, CACHES * torch.cuda.get_device_properties(index).L2_cache_size)
    return torch.zeros(size // 4, dtype=torch.float32, device=f"cuda:{index}")


def host_seconds(step: Step, device: torch.device, *, repeats: int = 5) -> float:
    """Median time until the call returns, on an idle device: on CUDA the time of the launches."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(step: Step, device: torch.device, *, seconds: float) -> Timing:
    """Repeats ``step`` for some seconds, at least 3 and at most 200 times, after a first call that does not count."""
    step()
    time_once: Callable[[Step], float] = time_on_cpu
    if device.type == "cuda":
        time_once = functools.partial(time_on_cuda, device=device, launch_seconds=host_seconds(step, device, repeats=1))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        times.append(time_once(step))
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high)
