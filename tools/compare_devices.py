#!/usr/bin/env python3
"""Trains twice from the same weights on the same batches, on two devices, and compares step by step.

    python tools/compare_devices.py                                  CPU against CUDA, generated rooms
    python tools/compare_devices.py --data NYU --checkpoint nyu_seg2d_w64 --json devices.json
    python tools/compare_devices.py --second cpu --second-dtype float64       how far rounding alone drives it
    python tools/compare_devices.py --first cuda --second-dtype float16 --width 256 --tolerance 5e-3   mixed precision

Frames, order and fakes are the same; dropout, which devices draw differently, and TF32 are off. Compared are the
losses and gradient norms of every step, relative to the first device's, and at the end the classes of scored voxels.
Until the discriminator's first update only rounding parts them: --tolerance. AdamW turns gradients near zero, whose
sign is rounding, into whole steps, so what comes after it may part further: --later-tolerance. Norms and losses of the
discriminator's judgement may be ten times as far apart. Seen between float32 and float64 on a CPU with NYU, from
random weights of width 16 and from the shipped ones: scene loss 5e-8 in the first step and 1.6e-3 later, discriminator
6e-8 and 4e-2, adversarial loss 8e-2, norms 4e-2; 96 % (four steps from random weights are undecided) and 99.8 % equal
classes. float16 is mixed precision, as training.mixed_precision has it; norms that overflow in it are not compared, as
loss scaling then leaves the step out.

Exit code: 0 within the tolerances, 1 not, 2 wrong usage.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ammnet_sparse.cli.options import parse_device, parse_positive
from ammnet_sparse.config import Config, load_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.synthetic.generate import generate_rooms
from ammnet_sparse.evaluation.selection import open_set, split_ids
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.models.weights.shipped import find_weights
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.networks import build_networks

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float32}
"""Types of the weights: in float16, mixed precision, they stay float32."""
MIXED = "float16"
_BEFORE_UPDATES = ("scene", "image", "discriminator", "discriminator_gradient_norm")
"""What the first step computes from weights that no device has changed."""
_LOOSE = ("adversarial", "discriminator", "generator_gradient_norm", "discriminator_gradient_norm")
"""Ten times the tolerance: discriminator scores and gradients are more sensitive to rounding than cross-entropies."""


class Trained(NamedTuple):
    """Results of a device: losses and norms by step, and the classes [N] at the scored voxels."""

    steps: list[dict[str, float]]
    labels: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    dtypes = (options.first_dtype, options.second_dtype)
    try:
        devices = [parse_device(name) for name in (options.first, options.second)]
        for device, dtype in zip(devices, dtypes, strict=True):
            if dtype == MIXED and device.type != "cuda":
                raise ValueError(f"float16: mixed precision needs a CUDA device, found {device}; use float32")
        config = _configuration(options)
        batches = _batches(options, config)
        networks = build_networks(config, initial_weights=_checkpoint(options))
    except (OSError, ValueError) as error:
        print(f"compare_devices.py: {error}", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    state = {name: value.clone() for name, value in networks.state_dict().items()}
    first, second = (
        _train(config, state, batches, device, dtype, adversarial_seed=options.seed)
        for device, dtype in zip(devices, dtypes, strict=True)
    )
    names = [f"{_name(device)}, {dtype}" for device, dtype in zip(devices, dtypes, strict=True)]
    print(f"{names[0]} against {names[1]}: {len(batches)} steps of {options.batch} frames, width {config.model.width}")
    result = _compare(first, second, options)
    _print(result)
    if options.json:
        options.json.write_text(json.dumps({"devices": names, **result}, indent=1) + "\n", encoding="utf-8")
    return 0 if result["is_within"] else 1


def _train(
    config: Config,
    state: dict[str, Tensor],
    batches: Sequence[Batch],
    device: torch.device,
    dtype: str,
    *,
    adversarial_seed: int,
) -> Trained:
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # spconv computes on the stream of the current device
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"mixed_precision": dtype == MIXED})}
    )
    networks = build_networks(config, is_resumed=True)
    networks.load_state_dict(state)
    networks.to(device, DTYPES[dtype])
    game = AdversarialGame(networks, config, num_steps=len(batches), device=device)
    steps = [
        game.step([batch.to(device)], seed=adversarial_seed + number).as_floats()
        for number, batch in enumerate(batches)
    ]
    network = networks.generator.eval()
    labels = []
    with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=dtype == MIXED):
        for batch in batches:
            found = network(batch.to(device), voxels="scored").labels.flatten(1).cpu()
            labels.append(found[batch.scored_mask])
    return Trained(steps, torch.cat(labels))


def _compare(first: Trained, second: Trained, options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for number, (one, other) in enumerate(zip(first.steps, second.steps, strict=True)):
        apart = {name: abs(other[name] - value) / max(abs(value), 1e-12) for name, value in one.items()}
        is_within = all(
            _has_overflowed(name, one, other, options)
            or (math.isfinite(value) and value <= _allowed(name, number, options))
            for name, value in apart.items()
        )
        rows.append({"step": number + 1, "first": one, "second": other, "apart": apart, "is_within": is_within})
    agreement = float((first.labels == second.labels).double().mean())
    is_within = all(row["is_within"] for row in rows) and agreement >= options.agreement
    return {
        "tolerance": options.tolerance,
        "later_tolerance": options.later_tolerance,
        "least_agreement": options.agreement,
        "steps": rows,
        "agreement": agreement,
        "is_within": is_within,
    }


def _has_overflowed(name: str, one: dict[str, float], other: dict[str, float], options: argparse.Namespace) -> bool:
    """Whether a norm of mixed precision is infinite: its step was left out."""
    return name.endswith("norm") and any(
        dtype == MIXED and not math.isfinite(values[name])
        for dtype, values in ((options.first_dtype, one), (options.second_dtype, other))
    )


def _allowed(name: str, number: int, options: argparse.Namespace) -> float:
    """The largest relative difference of a figure of step ``number``, from 0."""
    is_strict = number == 0 and name in _BEFORE_UPDATES
    tolerance: float = options.tolerance if is_strict else options.later_tolerance
    return tolerance * (10 if name in _LOOSE else 1)


def _print(result: dict[str, Any]) -> None:
    names = list(result["steps"][0]["apart"])
    print("relative differences\nstep  " + "  ".join(f"{name:>27}" for name in names))
    for row in result["steps"]:
        verdict = "" if row["is_within"] else "  TOO FAR"
        print(f"{row['step']:>4}  " + "  ".join(f"{row['apart'][name]:>27.1e}" for name in names) + verdict)
    print(
        f"the same class at {result['agreement']:.3%} of the scored voxels (at least {result['least_agreement']:.1%}); "
        f"allowed: {result['tolerance']:g} before any update, {result['later_tolerance']:g} later, ten times that for "
        f"discriminator and norms: {'within' if result['is_within'] else 'NOT within'}"
    )


def _configuration(options: argparse.Namespace) -> Config:
    overrides = ["model.encoder_dropout=0", "model.decoder_dropout=0", f"training.seed={options.seed}"]
    if options.checkpoint is not None:
        model = read_weights(find_weights(options.checkpoint))[1]
        overrides += [f"model.width={model.width}", f"model.discriminator_width={model.discriminator_width}"]
        overrides += [f"model.stem_widths={list(model.stem_widths)}", f"model.sites={model.sites}"]
    else:
        overrides += [f"model.width={options.width}", "model.discriminator_width=32"]
    overrides.append(f"model.grid_shape={list(options.grid)}")
    return load_config(None, [*overrides, *options.overrides])


def _checkpoint(options: argparse.Namespace) -> Path | None:
    return None if options.checkpoint is None else find_weights(options.checkpoint)


def _batches(options: argparse.Namespace, config: Config) -> list[Batch]:
    if options.data is not None:
        return _read(options.data, options, config)
    with tempfile.TemporaryDirectory() as temporary:
        rooms, count = Path(temporary) / "rooms", options.batch * min(options.steps, 3)
        generate_rooms(
            rooms, frames=count + 1, validation_frames=1, seed=options.seed, noise="kinect", workers=1, progress=False
        )
        return _read(rooms, options, config)


def _read(root: Path, options: argparse.Namespace, config: Config) -> list[Batch]:
    """As many batches as steps, cycling through the first training frames."""
    source = open_set(root, dataset="nyu", config=config.model)
    ids = split_ids(source, "train", limit=options.batch * options.steps)
    if len(ids) < options.batch:
        raise ValueError(f"--batch: expected at most the {len(ids)} training frames of {root}, found {options.batch}")
    whole = len(ids) // options.batch * options.batch
    frames = [Batch.from_frame(source.read(frame_id)) for frame_id in ids[:whole]]
    starts = [step * options.batch % whole for step in range(options.steps)]
    return [Batch.collate(frames[start : start + options.batch]) for start in starts]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="compare_devices.py",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--first", default="cpu", metavar="D", help="device that the differences are relative to (default: cpu)")
    add("--second", default="cuda", metavar="D", help="device compared with it (default: cuda)")
    add("--first-dtype", choices=tuple(DTYPES), default="float32", help="default: float32")
    add("--second-dtype", choices=tuple(DTYPES), default="float32", help="default: float32")
    add("--data", type=Path, metavar="DIR", help="set whose training frames are used (default: generated rooms)")
    add("--checkpoint", metavar="FILE", help="weights to start from, or the name of shipped ones (default: random)")
    add("--width", type=parse_positive, default=16, metavar="N", help="without --checkpoint (default: 16)")
    add("--grid", type=parse_positive, nargs=3, default=(60, 36, 60), metavar="N", help="voxels (default: 60 36 60)")
    add("--steps", type=parse_positive, default=5, metavar="N", help="default: 5")
    add("--batch", type=parse_positive, default=2, metavar="N", help="frames per step (default: 2)")
    add("--seed", type=int, default=8332, metavar="N", help="of rooms, weights and fakes (default: 8332)")
    add("--tolerance", type=float, default=1e-4, metavar="T", help="before any update (default: 1e-4)")
    add("--later-tolerance", type=float, default=1e-2, metavar="T", help="later (default: 1e-2)")
    add("--agreement", type=float, default=0.9, metavar="P", help="least share of equal classes (default: 0.9)")
    add("--json", type=Path, metavar="FILE", help="file for the figures")
    add("overrides", nargs="*", metavar="key.sub=value", help="keys of the configuration to change")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
