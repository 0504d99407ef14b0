r"""Makes weights small enough to hand out: half precision, without the discriminator.

    ammnet export --checkpoint runs/NAME/best.safetensors --out nyu_seg2d_w256.safetensors \
        --data /data/nyu --ids 0003 0004

Tensors with several axes (convolutions, matrices) are stored as --dtype; biases and normalization stay float32, because
variances may exceed the range of float16. The file loads as a float32 network like any other. With --data
the predictions for frames of a set are compared with those of the checkpoint.

Exit code: 0 done, 1 the file would be too large or predicts too differently (nothing is written), 2 wrong usage,
130 interrupted.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ammnet_sparse.cli.errors import (
    CommandFailed,
    UsageError,
    check_output_file,
    check_output_folder,
    command,
    writing_to,
)
from ammnet_sparse.cli.options import (
    CommandParser,
    add_checkpoint_option,
    add_data_option,
    add_dataset_option,
    add_device_option,
    add_out_option,
    choose_device,
)
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.sets.source import open_set
from ammnet_sparse.evaluation.selection import check_ids, split_ids
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import read_weights, save_weights
from ammnet_sparse.models.weights.loading import load_model
from ammnet_sparse.models.weights.shipped import find_weights

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_FRAMES = 3


class UnsuitableWeightsError(CommandFailed):
    """Weights that cannot be exported as asked; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; nothing was written")


@command("export")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet export``; returns its exit code."""
    options = _parse(arguments)
    if options.out.suffix != ".safetensors":
        raise UsageError(f"--out {options.out}: expected a name ending in .safetensors")
    check_output_folder(options.out.parent)
    if options.out.is_dir():
        check_output_file(options.out)
    with writing_to(options.out):
        print(_export(options))
    return 0


def converted(state: Mapping[str, Tensor], *, dtype: torch.dtype, keep_discriminator: bool) -> dict[str, Tensor]:
    """The tensors to store: those of several axes as ``dtype``, all others unchanged.

    Raises:
        UnfitWeightsError: a value beyond the range of ``dtype``.
    """
    kept = {
        name: value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
        for name, value in state.items()
        if keep_discriminator or not name.startswith("discriminator.")
    }
    for name, value in kept.items():
        if not torch.isfinite(value).all():
            raise UnsuitableWeightsError(
                f"{name}: expected values that {dtype} can hold, found one that it cannot; use --dtype float32"
            )
    return kept


def agreement(one: AMMNet, other: AMMNet, batches: Sequence[Batch]) -> float:
    """Fraction of the voxels with label weight whose class both networks agree on."""
    same = total = 0
    with torch.inference_mode():
        for batch in batches:
            weight = batch.label_weight.view(batch.batch_size, *batch.grid_shape)
            first, second = (network(batch, voxels="not_free").labels[weight] for network in (one, other))
            same, total = same + int((first == second).sum()), total + first.numel()
    return same / total if total else 1.0


def _export(options: argparse.Namespace) -> str:
    """Writes the file once it has passed the checks; returns a summary for people."""
    source = find_weights(options.checkpoint)
    state, config, metadata = read_weights(source)
    kept = converted(state, dtype=DTYPES[options.dtype], keep_discriminator=options.keep_discriminator)
    compared = "predictions not compared (--data)"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        trial = Path(folder) / options.out.name
        save_weights(trial, kept, model_config=config, metadata={**metadata, "stored_as": options.dtype})
        size = trial.stat().st_size / 1e6
        if size > options.max_mb:
            raise UnsuitableWeightsError(
                f"{options.out}: expected at most {options.max_mb:g} MB (--max-mb), found {size:.1f} MB"
            )
        if options.data:
            device = choose_device(options.device)
            original = load_model(source, device=device)
            folder_of_set = open_set(options.data, dataset=options.dataset, config=original.config)
            ids = options.ids or split_ids(folder_of_set, "val", limit=_FRAMES)
            check_ids(folder_of_set, ids)
            batches = [Batch.from_frame(folder_of_set.read(name)).to(device) for name in ids]
            same = agreement(original, load_model(trial, device=device), batches)
            if same < options.min_agreement:
                raise UnsuitableWeightsError(
                    f"{options.out}: expected the checkpoint's class at {options.min_agreement:.4%} of the voxels "
                    f"(--min-agreement), found {same:.4%} over the frames {', '.join(ids)}"
                )
            compared = f"the checkpoint's class at {same:.4%} of the voxels with label weight of {len(ids)} frames"
        trial.chmod(0o644)  # safetensors makes files that only the owner can read
        trial.replace(options.out)
    parameters = sum(value.numel() for value in kept.values())
    return f"{options.out}: {parameters:,} numbers, {options.dtype}, {size:.2f} MB; {compared}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("export", __doc__)
    add = parser.add_argument
    add_checkpoint_option(parser)
    add_out_option(parser, "file to write, ending in .safetensors", metavar="FILE", required=True)
    add("--dtype", choices=tuple(DTYPES), default="float16", help="of tensors with several axes (default: float16)")
    add("--keep-discriminator", action="store_true", help="also store the discriminator")
    add("--max-mb", type=float, default=50.0, metavar="N", help="largest file, in 10^6 bytes (default: 50)")
    add_data_option(parser, note="; predictions are compared on its frames")
    add("--ids", nargs="+", metavar="ID", help=f"frames to compare on (default: {_FRAMES} of the validation frames)")
    add_dataset_option(parser)
    add_device_option(parser)
    add(
        "--min-agreement",
        type=float,
        default=0.999,
        metavar="P",
        help="smallest fraction of voxels that must keep their class (default: 0.999)",
    )
    options = parser.parse(arguments)
    if options.ids and not options.data:
        parser.error("--ids: names frames of --data, and there is no --data")
    return options
