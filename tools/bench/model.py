"""What a training step costs in multiplications, memory and seconds: the sparse network against the dense reference.

    python tools/bench_model.py                                      generated rooms, width 256, batch 1
    python tools/bench_model.py --data NYU --json bench.json
    python tools/bench_model.py --data NYU --measure macs saved      counts only: no step is run
    python tools/bench_model.py --device cuda --batch 4 --card-gb 6  does it fit my card?

A step is the full adversarial one: the generator's forward pass, the discriminator's update from four inputs, the
generator's update through it. Per sample are reported

- GMAC: multiply-accumulates of a forward pass from the actual index pairs, over --frames validation frames. The figure
  of a row is the 3D network's; label map stem and discriminator are listed apart.
- saved MiB: storages that the generator's forward pass allocates and keeps for the backward pass, over four frames
  in batches of --batch; parameters, their copies, the batch, the logits and the index pairs apart.
- operations of a training step as dispatched, the kernels, copies and fills that they launch on CUDA, the views, and
  the moments in which the host would wait for a GPU; counted on any device. --as-on-a-gpu counts on a CPU a step in 16
  bits on a GPU, with spconv (or --backend gather); products and convolutions are not computed.
- peak MiB: most memory of a step, weights, gradients and optimizer included, beside what the process held before:
  of CUDA's allocator, or of the resident set.
- seconds per step (median of --steps), of which: forward, backward and optimizer; discriminator, of its own step.
- seconds and peak MiB of completing one frame: all that is not observed to be free, densely everything.

The dense reference is measured plain, with channels-last weights, and with stems, blocks, upsampling and modulations
recomputed (on a GPU with channels last too).
"""

import argparse
import contextlib
import gc
import itertools
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from bench.cases import load_frames
from bench.steps import as_on_a_gpu, measure_operations, measure_predictions, measure_steps
from bench.tables import (
    MemoryLine,
    basis_text,
    card_answer,
    memory_line,
    print_groups,
    print_header,
    print_largest_batches,
    print_operations,
    print_predictions,
    print_row,
)
from bench.variants import (
    APART,
    VARIANTS,
    Variant,
    configuration,
    count,
    is_channels_last,
    measure_saved,
    memory_freed,
    static_mebibytes,
)

from ammnet_sparse.cli.options import parse_device, parse_positive
from ammnet_sparse.config import ModelConfig, TrainingConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.sparse.convolutions import Backend, use_backend

MEASURES = ("macs", "saved", "operations", "time", "predict")
SAVED_FRAMES = 4
"""At most, to count saved activations over."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        device = parse_device(options.device)
        variants = _variants(options, device)
        frames = load_frames(
            options.data,
            split="val",
            count=options.frames,
            read_label_map=True,
            grid_shape=tuple(options.grid),
        )
    except (OSError, ValueError) as error:
        print(f"bench_model.py: {error}", file=sys.stderr)
        return 2
    place = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"width {options.width}, batch {options.batch}, {len(frames)} frames")
    print(f"{device}, {place}, torch {torch.__version__}, {platform.platform()}")
    gc.freeze()  # objects made by imports are not garbage; scanning them repeatedly takes longer than a small step
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    with use_backend(options.backend):
        rows = _measure(variants, frames, device, options)
    gc.unfreeze()
    print_operations(rows)
    print_predictions(rows)
    print_groups(rows)
    lines, timed = _memory_lines(rows, options)
    basis = basis_text(timed, lines, is_cuda=device.type == "cuda") if timed else ""
    if timed:
        print_largest_batches(timed, lines, basis)
    if options.card_gb is not None and timed:
        card = card_answer(
            timed, lines, card_gb=options.card_gb, width=options.width, wanted=TrainingConfig().batch_size
        )
        print("\n" + card)
    return 0


def _variants(options: argparse.Namespace, device: torch.device) -> list[Variant]:
    if options.as_on_a_gpu:
        if device.type != "cpu" or options.measure != ["operations"]:
            raise ValueError("--as-on-a-gpu: imitates a GPU on a CPU for --measure operations alone")
        return [Variant("sparse", name, "bfloat16") for name in options.variants or VARIANTS["sparse"]]
    if device.type == "cpu" and "graphs" in options.variants:
        raise ValueError("--variants graphs: CUDA graphs need a CUDA device, or --as-on-a-gpu")
    dtypes = options.dtype or ["float32", *(["float16"] if device.type == "cuda" else [])]
    if "float16" in dtypes and device.type != "cuda":
        raise ValueError("--dtype float16: fp16 needs a CUDA device; use --dtype float32")
    found = [
        Variant(net, name, dtype)
        for dtype in dtypes
        for net in options.nets
        for name in VARIANTS[net]
        if (name in options.variants if options.variants else name != "graphs" or device.type == "cuda")
    ]
    if not found:
        raise ValueError(f"--variants: none of {', '.join(options.variants)} is one of --nets {' '.join(options.nets)}")
    return found


def _measure(
    variants: Sequence[Variant], frames: Sequence[Batch], device: torch.device, options: argparse.Namespace
) -> list[dict[str, Any]]:
    rows = []
    counts: dict[str, dict[str, float]] = {}
    print_header()
    for variant in variants:
        config = configuration(variant, width=options.width, grid_shape=options.grid, batch_size=options.batch)
        row: dict[str, Any] = {
            "net": variant.net,
            "variant": variant.name,
            "dtype": variant.dtype,
            "saved_mib_per_sample": None,
            "forward_gmac_per_sample": None,
            "step_seconds": None,
            "peak_mib": None,
            "channels_last": is_channels_last(variant, device),
        }
        if "macs" in options.measure:
            if variant.net not in counts:
                counts[variant.net] = count(variant.net, config, frames)
            row |= _count_keys(counts[variant.net])
        if "saved" in options.measure:
            with memory_freed(device):
                row |= measure_saved(variant, config, _batches(frames, options), device)
        if "operations" in options.measure:
            with memory_freed(device):
                imitation = as_on_a_gpu() if options.as_on_a_gpu else contextlib.nullcontext()
                with imitation:
                    row |= measure_operations(variant, config, frames, device, batch_size=options.batch)
        row["batches"] = []
        if "time" in options.measure:
            row["static_mib"] = round(static_mebibytes(config), 1)
            _time(row, variant, config, frames, device, options)
        if "predict" in options.measure and variant.name == "plain":
            with memory_freed(device):
                row |= measure_predictions(variant, config, frames, device, count=options.steps)
        rows.append(row)
        print_row(row)
        if options.json:  # after each, as a time limit may end the next
            result = {"frames": len(frames), "batch": options.batch, "width": options.width, "rows": rows}
            write_text(options.json, json.dumps(result, indent=1) + "\n")
    return rows


def _batches(frames: Sequence[Batch], options: argparse.Namespace) -> list[Batch]:
    """The frames to count saved activations over, in batches of ``--batch``."""
    taken = list(itertools.islice(itertools.cycle(frames), max(min(SAVED_FRAMES, len(frames)), options.batch)))
    size = options.batch
    return [Batch.collate(taken[start : start + size]) for start in range(0, len(taken) - size + 1, size)]


def _count_keys(multiplications: dict[str, float]) -> dict[str, Any]:
    inside = sum(value for group, value in multiplications.items() if group not in APART)
    return {
        "forward_gmac_per_sample": round(inside / 1e9, 3),
        "gmac_by_group": {group: round(value / 1e9, 4) for group, value in multiplications.items()},
    }


def _time(
    row: dict[str, Any],
    variant: Variant,
    config: Any,
    frames: Sequence[Batch],
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Adds seconds and peak memory of ``--batch`` and of ``--fit-batches`` to a row."""
    for batch_size in sorted({options.batch, *options.fit_batches}):
        try:
            with memory_freed(device):
                measured = measure_steps(variant, config, frames, device, batch_size=batch_size, steps=options.steps)
        except torch.OutOfMemoryError:
            print(f"{variant}: batch {batch_size} does not fit this card", file=sys.stderr)
            return
        row["batches"].append({"batch": batch_size, **measured})
        if batch_size == options.batch:
            row |= measured


def _memory_lines(
    rows: Sequence[dict[str, Any]], options: argparse.Namespace
) -> tuple[list[MemoryLine], list[dict[str, Any]]]:
    """Lines of the rows with known peak memory, and those rows."""
    lines, timed = [], []
    for row in rows:
        points = [(point["batch"], point["peak_mib"]) for point in row["batches"] if point["peak_mib"] is not None]
        if points:
            lines.append(memory_line(points, static_mib=row["static_mib"]))
            timed.append(row)
    return lines, timed


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="bench_model.py",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(dict.fromkeys(name for names in VARIANTS.values() for name in names))
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder or packed file of a set (default: a few generated rooms)")
    add(
        "--frames",
        type=parse_positive,
        help="validation frames to count over (default: 40; generated rooms: at most 4)",
    )
    add("--width", type=parse_positive, help="feature channels (default: 256)")
    add("--batch", type=parse_positive, default=1, help="frames per step (default: 1)")
    add(
        "--fit-batches",
        type=parse_positive,
        nargs="*",
        help="further batches for memory against batch (default on CUDA: 1 2 4)",
    )
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--nets", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="default: both")
    add("--variants", nargs="+", choices=names, default=[], help="default: all that a net has")
    add("--dtype", nargs="+", choices=("float32", "float16"), help="default: float32, on CUDA float16 too")
    add(
        "--measure",
        nargs="+",
        choices=MEASURES,
        default=list(MEASURES),
        help="default: all",
    )
    add("--backend", choices=get_args(Backend), default="auto", help="training.convolution_backend (default: auto)")
    add("--cudnn-benchmark", action="store_true", help="let cuDNN time its algorithms")
    add("--tf32", action="store_true", help="let products of float32 round to TF32")
    add("--as-on-a-gpu", action="store_true", help="count the operations that a GPU is given in 16 bits, on a CPU")
    add("--steps", type=parse_positive, help="steps that count, after warming up (default: 3, on CUDA 10)")
    add(
        "--grid",
        type=parse_positive,
        nargs=3,
        default=list(ModelConfig().grid_shape),
        help="voxels (default: 60 36 60)",
    )
    add("--quick", action="store_true", help="a trial: width 16, two frames, one step, where not given")
    add("--json", type=Path, metavar="FILE", help="file for the rows")
    add("--card-gb", type=float, metavar="GB", help="print what fits a card of this many GB, and the keys for it")
    options = parser.parse_args(arguments)
    is_cuda = options.device.startswith("cuda")
    options.width = options.width or (16 if options.quick else ModelConfig().width)
    options.frames = options.frames or (2 if options.quick else 40)
    options.steps = options.steps or (1 if options.quick else 10 if is_cuda else 3)
    if options.fit_batches is None:
        options.fit_batches = [1, 2, 4] if is_cuda else []
    if options.card_gb is not None and "time" not in options.measure:
        parser.error("--card-gb needs the peak memory of a step: add time to --measure")
    return options
