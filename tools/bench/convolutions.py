"""Times the convolutions of one training step with every backend.

    python tools/bench_convolutions.py --data NYU --device cuda --dtype float16 --json convolutions.json
    python tools/bench_convolutions.py --width 16 --seconds 0.2                   a trial on the CPU

The backends are those of ammnet_sparse/sparse/convolutions.py: ``spconv`` (its implicit matrix product over our tables
on CUDA; ``gather`` for channels and devices that it does not support), ``gather`` (gathered rows and one matrix
product) and, where every cell is a site, ``dense`` (a plain convolution of rows as they lie, channels last).
Shapes are recorded from a forward pass of generator and discriminator over four frames; layers of one kind, shape and
site sets are one row. Times are medians over forward and backward pass together: ``device`` as the device saw them,
``host`` until the calls returned, which on CUDA is the time of the launches. At the end stand the totals of all
convolutions of the step, for each backend and for the best one of every row.

Exit code: 0 done, 2 wrong usage or data.
"""

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench.cases import load_batch
from bench.timing import Step, host_seconds, measure
from torch import Tensor

from ammnet_sparse.cli.options import parse_device, parse_positive
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.sparse.convolutions import (
    Backend,
    SiteConv3d,
    SiteConvTranspose3d,
    convolve,
    use_backend,
)
from ammnet_sparse.sparse.kernel_maps import KernelMap
from ammnet_sparse.sparse.sites import UP_KERNEL

WAYS: tuple[Backend, ...] = ("spconv", "gather", "dense")
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Case:
    """Convolutions of one shape over one kernel map; ``layers`` names each, a shared layer as often as it runs."""

    kernel_map: KernelMap
    in_channels: int
    out_channels: int
    layers: tuple[str, ...]

    @property
    def kind(self) -> str:
        """For example 1x1x3 /2: taps, stride (``up`` transposed), dilation."""
        kernel = self.kernel_map.kernel
        text = "x".join(map(str, kernel.size))
        if kernel.is_transposed:
            return f"{text} up"
        text += f" /{max(kernel.stride)}" if max(kernel.stride) > 1 else ""
        return text + (f" dil {max(kernel.dilation)}" if max(kernel.dilation) > 1 else "")


def record_cases(generator: AMMNet, discriminator: Discriminator, *, batch: Batch) -> list[Case]:
    """The convolutions of a training step's forward passes: the generator's, and one of the discriminator's."""
    calls: dict[tuple[Any, ...], tuple[KernelMap, list[str]]] = {}

    def record(name: str, layer: SiteConv3d | SiteConvTranspose3d, inputs: tuple[Any, ...]) -> None:
        _, source, target = inputs
        kernel = layer.kernel if isinstance(layer, SiteConv3d) else UP_KERNEL
        key = (id(source), id(target), kernel, layer.in_channels, layer.out_channels)
        calls.setdefault(key, (KernelMap(source, target, kernel), []))[1].append(name)

    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: record(name, layer, inputs))
        for network in (generator, discriminator)
        for name, layer in network.named_modules()
        if isinstance(layer, (SiteConv3d, SiteConvTranspose3d))
    ]
    try:
        with torch.no_grad():
            prediction = generator.train()(batch)
            discriminator(prediction.voxel_logits, prediction.sites)
    finally:
        for handle in handles:
            handle.remove()
    return [Case(kernel_map, key[3], key[4], tuple(names)) for key, (kernel_map, names) in calls.items()]


def make_step(case: Case, way: Backend, *, dtype: torch.dtype) -> Step:
    """Forward and backward pass of a case on random features by one backend; the index pairs are built before."""
    kernel_map = case.kernel_map
    device = kernel_map.source.linear.device
    shape = (case.out_channels, case.in_channels)
    shape = shape[::-1] if kernel_map.kernel.is_transposed else shape
    features = torch.randn(len(kernel_map.source), case.in_channels, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(*shape, *kernel_map.kernel.size, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(len(kernel_map.target), case.out_channels, device=device, dtype=dtype)

    def step() -> tuple[Tensor, ...]:
        with use_backend(way):
            return torch.autograd.grad(convolve(features, weight, kernel_map), (features, weight), gradient)

    return step


def measure_case(
    case: Case, ways: Iterable[Backend], device: torch.device, *, dtype: torch.dtype, seconds: float
) -> dict[str, Any]:
    """A row: the case, and for each way milliseconds on device and host, or None where it does not apply."""
    row: dict[str, Any] = {
        "kind": case.kind,
        "in": case.in_channels,
        "out": case.out_channels,
        "source_rows": len(case.kernel_map.source),
        "target_rows": len(case.kernel_map.target),
        "is_dense": case.kernel_map.is_dense,
        "count": len(case.layers),
        "layers": list(case.layers),
        "gmac_forward": round(case.kernel_map.num_pairs * case.in_channels * case.out_channels / 1e9, 4),
    }
    for way in ways:
        if way == "dense" and not case.kernel_map.is_dense:
            row[way] = None
            continue
        step = make_step(case, way, dtype=dtype)
        timing = measure(step, device, seconds=seconds)
        row[way] = {"device_ms": timing.median / 1e3, "host_ms": 1e3 * host_seconds(step, device)}
    return row


def totals(rows: Sequence[dict[str, Any]], ways: Sequence[Backend]) -> dict[str, dict[str, float]]:
    """Milliseconds of all layers: one way throughout (``dense`` beside the first of the others), or each row's best."""
    sums: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"device_ms": 0.0, "host_ms": 0.0})
    sparse = next(way for way in ways if way != "dense")
    for row in rows:
        taken: dict[str, dict[str, float]] = {way: row[way] or row[sparse] for way in ways}
        taken["best"] = min((row[way] for way in ways if row[way]), key=lambda times: max(times.values()))
        for name, times in taken.items():
            for key, value in times.items():
                sums[name][key] += row["count"] * value
    return dict(sums)


def print_table(rows: Sequence[dict[str, Any]], ways: Sequence[Backend]) -> None:
    """The most costly first, by the first way."""

    def cell(times: dict[str, float] | None) -> str:
        return f"{'-':>20}" if times is None else f"{times['device_ms']:11.3f}{times['host_ms']:9.3f}"

    print(f"{'taps':14}{'in':>5}{'out':>5}{'from rows':>11}{'to rows':>9}{'times':>7}{'GMAC':>8}", end="")
    print("".join(f"{way + ' ms':>11}{'host':>9}" for way in ways))
    for row in sorted(rows, key=lambda row: -row["count"] * (row[ways[0]] or {"device_ms": 0.0})["device_ms"]):
        print(
            f"{row['kind']:14}{row['in']:5}{row['out']:5}{row['source_rows']:11,}{row['target_rows']:9,}"
            f"{row['count']:7}{row['gmac_forward']:8.2f}" + "".join(cell(row[way]) for way in ways)
        )
    for name, times in totals(rows, ways).items():
        what = f"{name}, else {next(way for way in ways if way != 'dense')}" if name == "dense" else name
        print(f"all {sum(row['count'] for row in rows)} convolutions, {what}: {times['device_ms']:.2f} ms, host "
              f"{times['host_ms']:.2f} ms")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    torch.manual_seed(8332)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    try:
        batch = load_batch(options.data)
    except (ValueError, OSError) as error:
        print(f"bench_convolutions.py: {error}", file=sys.stderr)
        return 2
    rows = measure_all(batch, options)
    print_table(rows, options.ways)
    return 0


def save(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The measurements so far: a time limit may end the rest."""
    if options.json:
        card = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "cpu"
        kept = {"device": card, "dtype": options.dtype, "rows": rows, "totals": totals(rows, options.ways)}
        write_text(options.json, json.dumps(kept, indent=1) + "\n")


def measure_all(batch: Batch, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all cases of the network at the chosen width."""
    if batch.label_map is None:
        # Which sites there are does not depend on it.
        label_map = torch.zeros(batch.batch_size, *IMAGE_SHAPE, dtype=torch.uint8)
        batch = dataclasses.replace(batch, label_map=label_map)
    config = ModelConfig(width=options.width, image_encoder="seg2d", grid_shape=batch.grid_shape)
    generator = AMMNet(config).to(options.device)
    discriminator = Discriminator(config).to(options.device)
    cases = record_cases(generator, discriminator, batch=batch.to(options.device))
    dtype = DTYPES[options.dtype]
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append(measure_case(case, options.ways, options.device, dtype=dtype, seconds=options.seconds))
        save(rows, options)
    return rows


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder or packed file of a set (default: generated rooms)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="default: float32")
    add("--width", type=parse_positive, default=256, metavar="N", help="feature channels (default: 256)")
    add("--ways", choices=WAYS, nargs="+", default=list(WAYS), help="default: all")
    add("--seconds", type=float, default=0.3, help="for each measurement (default: 0.3)")
    add("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms for the plain convolutions")
    add("--json", type=Path, metavar="FILE", help="file for the rows")
    options = parser.parse_args(arguments)
    try:
        options.device = parse_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    if options.ways == ["dense"]:
        parser.error("--ways dense: it computes only where every cell is a site; add spconv or gather")
    return options
