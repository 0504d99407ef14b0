"""Seconds, peak memory and operations of training steps and of predictions, for tools/bench_model.py."""

import contextlib
import itertools
import statistics
import unittest.mock
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bench.dense_reference.game import DenseGame
from bench.dense_reference.network import DenseAMMNet
from bench.emulated_graphs import EmulatedRecorder
from bench.measurement import PeakMemory, Stopwatch, held_mebibytes
from bench.operation_counter import Operations, uncounted
from bench.variants import Pair, Variant, build
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.nn import functional

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.sparse import convolutions, spconv_engine
from ammnet_sparse.sparse.graphs import BlockGraphs
from ammnet_sparse.sparse.kernel_maps import KernelMap
from ammnet_sparse.sparse.sites import full_sites
from ammnet_sparse.training.game import AdversarialGame, StepReport
from ammnet_sparse.training.networks import Networks
from ammnet_sparse.training.optimization import Optimization

_conv3d = functional.conv3d
PARTS = ("forward", "backward", "discriminator", "optimizer")
PART_STEPS = 5
"""Steps in which the parts are timed, on CUDA."""


def make_game(pair: Pair, config: Config, stopwatch: Stopwatch) -> AdversarialGame | DenseGame:
    """The adversarial step of two networks, timed: ``step([batch], seed=...)``.

    ``forward`` is the generator's forward pass, ``backward`` the generator's with the losses' and the discriminator's
    under it; ``discriminator`` its forward passes and its own backward pass.
    """
    generator, discriminator = pair
    stopwatch.time_forward(generator, "forward")
    stopwatch.time_forward(discriminator, "discriminator")

    if isinstance(generator, AMMNet) and isinstance(discriminator, Discriminator):
        networks = Networks(generator, discriminator)
        game: AdversarialGame | DenseGame = AdversarialGame(networks, config, num_steps=10_000, device=stopwatch.device)
    else:
        assert isinstance(generator, DenseAMMNet)
        game = DenseGame(generator, discriminator, config, num_steps=10_000, device=stopwatch.device)
    assert game.discriminator_optimization is not None
    _time(game.generator_optimization, stopwatch, "backward")
    _time(game.discriminator_optimization, stopwatch, "discriminator")
    return game


def _time(optimization: Optimization, stopwatch: Stopwatch, part: str) -> None:
    """Times its backward pass as ``part``, and its update as ``optimizer``."""
    backward, step = optimization.backward, optimization.step

    def timed_backward(loss: Tensor) -> None:
        with stopwatch.part(part):
            backward(loss)

    def timed_step() -> Tensor:
        with stopwatch.part("optimizer"):
            return step()

    optimization.backward = timed_backward  # type: ignore[method-assign]
    optimization.step = timed_step  # type: ignore[method-assign]


def _keep_norms(optimization: Optimization) -> list[Tensor]:
    """The gradient norms of its updates from now on, on the device; one that is not finite is of a skipped update."""
    norms: list[Tensor] = []
    step = optimization.step

    def kept_step() -> Tensor:
        norms.append(step())
        return norms[-1]

    optimization.step = kept_step  # type: ignore[method-assign]
    return norms


def measure_steps(
    variant: Variant, config: Config, frames: Sequence[Batch], device: torch.device, *, batch_size: int, steps: int
) -> dict[str, Any]:
    """Seconds and peak memory of training steps of ``batch_size`` frames, as keys of a row.

    On CUDA whole steps are timed, and their parts in steps of their own: waiting for the device around every part takes
    the host's head start away, and the parts' sum is then longer than a step.

    Peak memory is what is held beside what was held before the network was made. Raises torch.OutOfMemoryError.
    """
    full_sites.cache_clear()  # with the pairs that another variant's run built
    before = held_mebibytes(device)
    pair = build(variant, config, device)
    stopwatch = Stopwatch(device)
    game = make_game(pair, config, stopwatch)
    norms = _keep_norms(game.generator_optimization)
    endless = itertools.cycle(frames)
    peak = PeakMemory(device)
    warm_up = 1 if device.type == "cpu" else 8
    is_apart = device.type == "cuda"
    stopwatch.only = "step" if is_apart else None
    for step in range(warm_up + steps + (PART_STEPS if is_apart else 0)):
        if step == warm_up + steps:
            stopwatch.only = None
        batch = Batch.collate([next(endless) for _ in range(batch_size)]).to(device)
        with stopwatch.part("step"):
            game.step([batch], seed=step)
        stopwatch.end_lap()
    most = peak.mebibytes()
    seconds = sorted(stopwatch.column("step")[warm_up : warm_up + steps])
    parts_from = warm_up + steps if is_apart else warm_up
    return {
        "step_seconds": round(statistics.median(seconds), 4),
        "step_seconds_range": [round(seconds[0], 4), round(seconds[-1], 4)],
        "part_seconds": {part: round(statistics.median(stopwatch.column(part)[parts_from:]), 4) for part in PARTS},
        "peak_mib": None if most is None or before is None else round(most - before, 1),
        "graphs": game.graphs.num_graphs if isinstance(game, AdversarialGame) and game.graphs is not None else None,
        "chunk_elements": convolutions.chunk_elements(device),
        "skipped_steps": int((~torch.stack(norms).isfinite()).sum()),  # of all, those before the measured ones too
        **(_launches(game, Batch.collate([next(endless) for _ in range(batch_size)]).to(device)) if is_apart else {}),
    }


def _launches(game: AdversarialGame | DenseGame, batch: Batch) -> dict[str, Any]:
    """Kernel launches of a step on CUDA, and the seconds that the device works."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        game.step([batch], seed=0)
        torch.cuda.synchronize()
    events = profile.key_averages()
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    return {
        "launches": sum(event.count for event in events if "LaunchKernel" in event.key or "GraphLaunch" in event.key),
        "device_seconds": round(sum(event.self_device_time_total for event in on_device) / 1e6, 4),
    }


def measure_predictions(
    variant: Variant, config: Config, frames: Sequence[Batch], device: torch.device, *, count: int
) -> dict[str, Any]:
    """Seconds of completing a frame, and peak memory beside the weights, as keys of a row.

    The sparse network completes what is not observed to be free, in chunks; the dense one everything.
    """
    full_sites.cache_clear()
    network = build(variant, config, device).generator.eval()
    held = held_mebibytes(device)
    stopwatch = Stopwatch(device)
    peak = PeakMemory(device)
    for frame in itertools.islice(itertools.cycle(frames), 1 + count):
        batch = frame.to(device)
        autocast = torch.autocast(device.type, torch.float16, enabled=config.training.uses_fp16)
        with torch.inference_mode(), autocast, stopwatch.part("predict"):
            network(batch)
        stopwatch.end_lap()
    most = peak.mebibytes()
    return {
        "predict_seconds": round(statistics.median(stopwatch.column("predict")[1:]), 4),
        "predict_peak_mib": None if most is None or held is None else round(most - held, 1),
    }


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within the block convolutions on a CPU take the chunks of a GPU of 24 GB, cuDNN's order of memory, and spconv.

    They compute nothing: spconv's return zeros, others should be skipped (``Operations``).
    """
    replaced: list[tuple[Any, str, Any]] = [
        (convolutions, "_CACHED_ELEMENTS", convolutions.MOST_CHUNK_ELEMENTS),
        (convolutions, "chunk_elements", lambda device: convolutions.MOST_CHUNK_ELEMENTS),
        (functional, "conv3d", lambda volume, weight, **geometry: _CudnnConvolution.apply(volume, weight, geometry)),
        (spconv_engine, "is_served", _is_served),
        (spconv_engine, "is_sound", lambda *arguments: True),
        (spconv_engine, "_forward", _forward),
        (spconv_engine, "_backward", _backward),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, value in replaced:
            stack.enter_context(unittest.mock.patch.object(module, name, value))
        yield


def _is_served(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> bool:
    return all(channels % spconv_engine.CHANNEL_MULTIPLE == 0 for channels in weight.shape[:2])


def _forward(features: Tensor, filters: Tensor, masked: Any, num_rows: int, *, is_trained: bool) -> Any:
    """As spconv's: it fills the result with zeros, then launches a kernel."""
    return _launched(features.new_zeros(num_rows, filters.shape[0])), None, 0


def _backward(features: Tensor, filters: Tensor, gradient: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _launched(torch.zeros_like(features)), _launched(torch.zeros_like(filters))


def _launched(result: Tensor) -> Tensor:
    """The same tensor, after an operation that does nothing."""
    rows = result.flatten(1)
    rows.addmm_(rows.new_empty(len(rows), 0), rows.new_empty(0, rows.shape[1]))
    return result


class _CudnnConvolution(torch.autograd.Function):
    """A convolution that copies what does not have channels innermost, and returns results and gradients that do."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, weight: Tensor, geometry: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(volume, weight)
        ctx.geometry = [geometry[name] for name in ("stride", "padding", "dilation")]
        volume, weight = (value.contiguous(memory_format=torch.channels_last_3d) for value in (volume, weight))
        return _channels_innermost(torch.ops.aten.convolution(volume, weight, None, *ctx.geometry, False, [0] * 3, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        given = (*gradients, *ctx.saved_tensors)
        upstream, volume, weight = (value.contiguous(memory_format=torch.channels_last_3d) for value in given)
        wanted = [*ctx.needs_input_grad[:2], False]
        found = torch.ops.aten.convolution_backward(
            upstream, volume, weight, None, *ctx.geometry, False, [0] * 3, 1, wanted
        )
        return _channels_innermost(found[0]), _channels_innermost(found[1]), None


def _channels_innermost(value: Any) -> Any:
    with uncounted():
        return None if value is None else value.contiguous(memory_format=torch.channels_last_3d)


def measure_operations(
    variant: Variant, config: Config, frames: Sequence[Batch], device: torch.device, *, batch_size: int
) -> dict[str, Any]:
    """Operations of a step of ``batch_size`` frames, as keys of a row: earlier steps fill caches and record graphs.

    ``counted_launches`` has copies and fills too; the ``launches`` of ``measure_steps`` are the kernels of a profile.
    """
    game = make_game(build(variant, config, device), config, Stopwatch(device))
    if variant.name == "graphs" and device.type == "cpu":
        assert isinstance(game, AdversarialGame)
        game.graphs = BlockGraphs(EmulatedRecorder)
    endless = itertools.cycle(frames)
    is_imitated = functional.conv3d is not _conv3d
    counted, repeated = Operations(), 0
    for step in range(3 if variant.name == "graphs" else 2):
        batch = Batch.collate([next(endless) for _ in range(batch_size)]).to(device)
        counted, repeated = Operations(skips_products=is_imitated), EmulatedRecorder.num_repeated
        with counted:
            report = game.step([batch], seed=step)
            if isinstance(report, StepReport):
                report.as_floats()  # what the loop does with it
    for counts in (counted.launching, counted.launches):
        counts["graph"] += EmulatedRecorder.num_repeated - repeated
    return {
        "operations": counted.num_launching,
        "counted_launches": counted.num_launches,
        "views": counted.views,
        "host_waits": counted.num_waits,
        "waits_by_name": dict(counted.waits),
        "operations_by_name": dict(counted.launching.most_common(30)),
        "launches_by_name": dict(counted.launches.most_common(30)),
    }
