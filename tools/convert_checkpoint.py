"""Converts a published dense AMMNet checkpoint into a file that this project's tools take.

    python tools/convert_checkpoint.py ammnet.pth ammnet.safetensors

Every weight is reported as converted, unused or absent, or the conversion fails and says which one is at fault.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ammnet_sparse.models.image_encoders import build_segformer_backbone
from ammnet_sparse.models.weights.backbones import read_backbone_weights, read_weights_file
from ammnet_sparse.models.weights.conversion import Conversion, ConversionError, convert_dense_state_dict
from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.models.weights.files import save_weights

_BACKBONE = "image_encoder.backbone"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status, 1 where the checkpoint cannot be converted."""
    options = _parse(arguments)
    try:
        conversion = convert_dense_state_dict(read_weights_file(options.checkpoint), grid_shape=options.grid_shape)
        weights, missing = dict(conversion.weights), list(conversion.missing_parts)
        if options.image_encoder_weights is not None:
            weights |= _read_backbone(options.image_encoder_weights, conversion)
            missing.remove(_BACKBONE)
        metadata = {"converted_from": options.checkpoint.name, "missing_parts": ",".join(missing)}
        save_weights(options.output, weights, model_config=conversion.model_config, metadata=metadata)
    except WeightsError as error:
        # What concerns a file as a whole names it already.
        source = f"{options.checkpoint}: " if isinstance(error, ConversionError) else ""
        print(f"error: {source}{error}", file=sys.stderr)
        return 1
    _report(conversion, weights=len(weights), missing=missing, output=options.output)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="dense checkpoint: .pth, .pt, .bin or .safetensors")
    parser.add_argument("output", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument(
        "--image-encoder-weights",
        type=Path,
        metavar="FILE",
        help="SegFormer-B2 backbone (mit_b2.pth or Hugging Face's) for a checkpoint that lacks it",
    )
    parser.add_argument(
        "--grid-shape",
        type=int,
        nargs=3,
        default=(60, 36, 60),
        metavar=("X", "HEIGHT", "Y"),
        help="voxels of the discriminator's scenes (default: 60 36 60)",
    )
    options = parser.parse_args(arguments)
    options.grid_shape = tuple(options.grid_shape)
    return options


def _read_backbone(path: Path, conversion: Conversion) -> dict[str, Tensor]:
    if _BACKBONE not in conversion.missing_parts:
        raise ConversionError("holds an image backbone of its own; leave out --image-encoder-weights")
    loaded = read_backbone_weights(build_segformer_backbone(), path)
    return {f"{_BACKBONE}.{name}": value for name, value in loaded.state_dict.items()}


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


if __name__ == "__main__":
    sys.exit(main())
