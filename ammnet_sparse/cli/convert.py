"""Converts a published dense AMMNet checkpoint into a file that the other commands read, or the other way round.

    ammnet convert ammnet.pth --out ammnet.safetensors
    ammnet convert --to-dense runs/NAME/best.safetensors --out ammnet.pth        of a network with model.sites=dense

Every weight is reported as converted, unused or absent; a weight that cannot be converted is named.
Exit code: 0 done, 1 failed, 2 wrong usage or a checkpoint that cannot be converted, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ammnet_sparse.cli.errors import UsageError, check_output_file, command, writing_to
from ammnet_sparse.cli.options import CommandParser, add_out_option, either
from ammnet_sparse.data.set_info import NYU, read_set_info
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.models.image_encoders import SegFormerB2
from ammnet_sparse.models.weights.backbones import read_backbone_weights, read_weights_file
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.conversion import Conversion, convert_dense_state_dict, publish_dense_state_dict
from ammnet_sparse.models.weights.files import SET_INFO, read_weights, save_weights
from ammnet_sparse.models.weights.shipped import find_weights

_BACKBONE = "image_encoder.backbone"


@command("convert")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet convert``; returns its exit code."""
    options, out = _parse(arguments)
    check_output_file(out)
    if options.to_dense:
        return _to_dense(options.checkpoint, out)
    state = read_weights_file(options.checkpoint)
    try:
        conversion = convert_dense_state_dict(state, grid_shape=tuple(options.grid_shape))
    except WeightsError as error:
        raise WeightsError(f"{options.checkpoint}: {error}") from error
    weights, missing = dict(conversion.weights), list(conversion.missing_parts)
    if options.image_encoder_weights is not None:
        if _BACKBONE not in missing:
            raise WeightsError(f"{options.checkpoint}: holds an image backbone; omit --image-encoder-weights")
        loaded = read_backbone_weights(SegFormerB2(conversion.model_config), options.image_encoder_weights)
        weights |= {f"{_BACKBONE}.{name}": value for name, value in loaded.state_dict.items()}
        missing.remove(_BACKBONE)
    # A name may hold bytes that are not text; metadata cannot.
    name = options.checkpoint.name.encode("utf-8", "replace").decode()
    metadata = {"converted_from": name, "missing_parts": ",".join(missing)}
    num_classes = conversion.model_config.num_classes
    if options.classes is not None:
        info = read_set_info(options.classes, dataset=NYU.dataset)
        if info.num_classes != num_classes:
            raise UsageError(
                f"--classes {options.classes}: expected the {num_classes} classes of the checkpoint, found "
                f"{info.num_classes}"
            )
        metadata[SET_INFO] = info.model_dump_json()
    elif num_classes != NYU.num_classes:
        print(
            f"note: {num_classes} classes, not NYU's {NYU.num_classes}; frames of a camera need their names and colors "
            "(--classes FILE)",
            file=sys.stderr,
        )
    with writing_to(out):
        save_weights(out, weights, model_config=conversion.model_config, metadata=metadata)
    _report(conversion, weights=len(weights), missing=missing, output=out)
    return 0


def _to_dense(source: Path, out: Path) -> int:
    """Writes weights under the published names, as the original saves and loads them."""
    if out.suffix not in (".pth", ".pt"):
        raise UsageError(f"--out {out}: expected a name ending in .pth for the dense original, found {out.suffix!r}")
    weights, config, _ = read_weights(find_weights(source))
    try:
        state = publish_dense_state_dict(weights, config)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    with writing_to(out), replacing_open(out) as file:
        torch.save({"model": state}, file)
    print(f"{len(state)} weights under the published names, of which {len(weights)} are used, written to {out}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Path]:
    """The options, and the file to write."""
    parser = CommandParser("convert", __doc__)
    parser.add_argument("checkpoint", type=Path, help="dense checkpoint (.pth, .pt, .bin, .safetensors), or weights")
    parser.add_argument("output", type=Path, nargs="?", help="the same as --out")
    add_out_option(parser, "file to write, ending in .safetensors", metavar="FILE", aliases=["--output"])
    parser.add_argument(
        "--image-encoder-weights",
        type=Path,
        metavar="FILE",
        help="SegFormer-B2 backbone (mit_b2.pth or Hugging Face's) for a checkpoint that lacks it",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes.yaml of the set that it was trained on (docs/sets.md; default: NYU's twelve classes)",
    )
    parser.add_argument(
        "--grid-shape",
        type=int,
        nargs=3,
        default=(60, 36, 60),
        metavar=("X", "HEIGHT", "Y"),
        help="voxels of the discriminator's scenes (default: 60 36 60)",
    )
    parser.add_argument(
        "--to-dense",
        action="store_true",
        help="write weights of this project, trained with model.sites=dense, under the names of the dense original",
    )
    options = parser.parse(arguments)
    return options, either(parser, "--out", (options.out, options.output))


def _report(conversion: Conversion, *, weights: int, missing: Sequence[str], output: Path) -> None:
    config = conversion.model_config
    print(
        f"network: width {config.width}, {config.num_classes} classes, stem {config.stem_widths}, "
        f"image encoder {config.image_encoder}"
    )
    print(f"converted: {weights} weights, written to {output}")
    for reason in sorted(set(conversion.unused.values())):
        names = [name for name, why in conversion.unused.items() if why == reason]
        print(f"unused: {len(names)} weights ({reason}):")
        print("\n".join(f"  {name}" for name in names))
    for part in missing:
        print(f"absent: {part}")
