#!/usr/bin/env python3
"""Trains twice from the same weights on the same batches, on two devices, and compares step by step.

    python tools/compare_devices.py                                  CPU against CUDA, generated rooms
    python tools/compare_devices.py --data NYU --checkpoint nyu_seg2d_w64 --json devices.json
    python tools/compare_devices.py --second cpu --second-dtype float64       the effect of rounding alone
    python tools/compare_devices.py --first cuda --second-dtype float16 --tolerance 5e-3 model.width=256

Frames, their order and the fakes are the same; dropout, which devices draw differently, and TF32 are off. The losses
and gradient norms of every step are compared, relative to the first device's, and at the end the classes of the scored
voxels. Before the first update only rounding separates the devices: --tolerance. AdamW turns gradients near zero, whose
sign is rounding, into whole steps, so later figures may differ more: --later-tolerance. Discriminator scores and
gradient norms may differ ten times as much. Between float32 and float64 on a CPU with NYU, from random weights of width
16 and from the shipped ones, the scene loss differed by 5e-8 in the first step and 1.6e-3 later, the discriminator's by
6e-8 and 4e-2, the adversarial loss by 8e-2 and the norms by 4e-2; 96 % and 99.8 % of the classes were equal. float16 is
mixed precision (training.mixed_precision); norms that overflow in it are not compared, as loss scaling then skips the
step.

Exit code: 0 within the tolerances, 1 not, 2 wrong usage.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ammnet_sparse.cli.options import parse_device, parse_positive
from ammnet_sparse.config import Config, load_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.sets.source import open_set
from ammnet_sparse.data.synthetic.generate import generate_rooms
from ammnet_sparse.evaluation.selection import split_ids
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.models.weights.shipped import find_weights
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.networks import build_networks

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float32}
"""Types of the weights: in float16, mixed precision, they stay float32."""
MIXED = "float16"
LEAST_AGREEMENT = 0.9
"""Share of scored voxels with equal classes; a few steps from random weights leave some undecided."""
_BEFORE_UPDATES = ("scene", "image", "discriminator", "discriminator_gradient_norm")
"""What the first step computes from weights that no device has changed."""
_LOOSE = ("adversarial", "discriminator", "generator_gradient_norm", "discriminator_gradient_norm")
"""Ten times the tolerance: discriminator scores and gradients are more sensitive to rounding than cross-entropies."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    dtypes = (options.first_dtype, options.second_dtype)
    try:
        devices = [parse_device(name) for name in (options.first, options.second)]
        if any(dtype == MIXED and device.type != "cuda" for device, dtype in zip(devices, dtypes, strict=True)):
            raise ValueError("float16: mixed precision needs a CUDA device, found cpu; use float32")
        config, weights = _configuration(options)
        batches = _batches(options, config)
        state = build_networks(config, initial_weights=weights).state_dict()
    except (OSError, ValueError) as error:
        print(f"compare_devices.py: {error}", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    (first, first_labels), (second, second_labels) = (
        train(config, state, batches, device, dtype=dtype) for device, dtype in zip(devices, dtypes, strict=True)
    )
    steps = compare(first, second, dtypes=dtypes, tolerances=(options.tolerance, options.later_tolerance))
    agreement = float((first_labels == second_labels).double().mean())
    is_within = all(step["is_within"] for step in steps) and agreement >= LEAST_AGREEMENT
    names = [f"{device}, {dtype}" for device, dtype in zip(devices, dtypes, strict=True)]
    print(f"{' against '.join(names)}: relative differences over {len(batches)} steps of {options.batch} frames")
    for step in steps:
        figures = "  ".join(f"{name} {value:.1e}" for name, value in step["apart"].items())
        print(f"{step['step']:>4}  {figures}{'' if step['is_within'] else '  TOO FAR'}")
    print(f"equal classes at {agreement:.3%} of the scored voxels; {'within' if is_within else 'NOT within'} tolerance")
    if options.json:
        result = {"devices": names, "steps": steps, "agreement": agreement, "is_within": is_within}
        write_text(options.json, json.dumps(result, indent=1) + "\n")
    return 0 if is_within else 1


def train(
    config: Config, state: dict[str, Tensor], batches: Sequence[Batch], device: torch.device, *, dtype: str
) -> tuple[list[dict[str, float]], Tensor]:
    """Losses and norms by step, and the classes [N] at the scored voxels afterwards."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # spconv computes on the stream of the current device
    training = config.training.model_copy(update={"mixed_precision": dtype == MIXED})
    config = config.model_copy(update={"training": training})
    networks = build_networks(config, is_resumed=True)
    networks.load_state_dict(state)
    networks.to(device, DTYPES[dtype])
    game = AdversarialGame(networks, config, num_steps=len(batches), device=device)
    steps = [
        game.step([batch.to(device)], seed=training.seed + number).as_floats() for number, batch in enumerate(batches)
    ]
    network = networks.generator.eval()
    labels = []
    with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=dtype == MIXED):
        for batch in batches:
            found = network(batch.to(device), voxels="scored").labels.flatten(1).cpu()
            labels.append(found[batch.scored_mask])
    return steps, torch.cat(labels)


def compare(
    first: Sequence[dict[str, float]],
    second: Sequence[dict[str, float]],
    *,
    dtypes: tuple[str, str],
    tolerances: tuple[float, float],
) -> list[dict[str, Any]]:
    """Relative differences by step, and whether they are within the tolerances: before any update, and later."""
    rows = []
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        apart = {name: abs(other[name] - value) / max(abs(value), 1e-12) for name, value in one.items()}
        is_within = True
        for name, difference in apart.items():
            values = zip(dtypes, (one[name], other[name]), strict=True)
            if name.endswith("norm") and any(dtype == MIXED and not math.isfinite(value) for dtype, value in values):
                continue  # loss scaling has skipped this step
            tolerance = tolerances[0] if number == 0 and name in _BEFORE_UPDATES else tolerances[1]
            is_within &= difference <= tolerance * (10 if name in _LOOSE else 1)  # not of NaN
        rows.append({"step": number + 1, "first": one, "second": other, "apart": apart, "is_within": is_within})
    return rows


def _configuration(options: argparse.Namespace) -> tuple[Config, Path | None]:
    """The configuration without dropout, and the file of weights to start from."""
    overrides = ["model.encoder_dropout=0", "model.decoder_dropout=0", "training.seed=8332"]
    if options.checkpoint is None:
        overrides += ["model.width=16", "model.discriminator_width=32"]
        return load_config(None, [*overrides, *options.overrides]), None
    weights = find_weights(options.checkpoint)
    model = read_weights(weights)[1]
    overrides += [f"model.width={model.width}", f"model.discriminator_width={model.discriminator_width}"]
    overrides += [f"model.stem_widths={list(model.stem_widths)}", f"model.sites={model.sites}"]
    return load_config(None, [*overrides, *options.overrides]), weights


def _batches(options: argparse.Namespace, config: Config) -> list[Batch]:
    """As many batches as steps, cycling through the first training frames."""
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data
        if root is None:
            root = Path(temporary) / "rooms"
            generate_rooms(
                root, frames=options.batch * min(options.steps, 3) + 1, validation_frames=1, seed=config.training.seed,
                noise="kinect", workers=1, progress=False,
            )  # fmt: skip
        source = open_set(root, dataset="nyu", config=config.model)
        ids = split_ids(source, "train", limit=options.batch * options.steps)
        if len(ids) < options.batch:
            raise ValueError(f"--batch: expected at most the {len(ids)} training frames, found {options.batch}")
        frames = [
            Batch.from_frame(source.read(frame_id)) for frame_id in ids[: len(ids) // options.batch * options.batch]
        ]
    starts = [step * options.batch % len(frames) for step in range(options.steps)]
    return [Batch.collate(frames[start : start + options.batch]) for start in starts]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare_devices.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--first", default="cpu", metavar="D", help="device that the differences are relative to (default: cpu)")
    add("--second", default="cuda", metavar="D", help="device compared with it (default: cuda)")
    add("--first-dtype", choices=tuple(DTYPES), default="float32", help="default: float32")
    add("--second-dtype", choices=tuple(DTYPES), default="float32", help="default: float32")
    add("--data", type=Path, metavar="DIR", help="set whose training frames are used (default: generated rooms)")
    add("--checkpoint", metavar="FILE", help="weights to start from, or the name of shipped ones (default: random)")
    add("--steps", type=parse_positive, default=5, metavar="N", help="default: 5")
    add("--batch", type=parse_positive, default=2, metavar="N", help="frames per step (default: 2)")
    add("--tolerance", type=float, default=1e-4, metavar="T", help="before any update (default: 1e-4)")
    add("--later-tolerance", type=float, default=1e-2, metavar="T", help="later (default: 1e-2)")
    add("--json", type=Path, metavar="FILE", help="file for the figures")
    add("overrides", nargs="*", metavar="key.sub=value", help="keys of the configuration (default width: 16)")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
