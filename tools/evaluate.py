"""Scores a checkpoint on a split: the paper's table, in percent.

    python tools/evaluate.py [--checkpoint FILE] --data DIR [--split test] [--json FILE]

Without --checkpoint the weights shipped with the package are scored (docs/models.md).
SC: precision, recall and IoU of occupancy over the occluded voxels. SSC: IoU of each class and their mean.
Exit code: 0 done, 2 wrong usage (no such file, list or input).
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

import ammnet_sparse
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import FrameDataset, build_loader
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.evaluation.baselines import class_prior, constant_baseline, prior_labels
from ammnet_sparse.evaluation.flips import labels_over_flips
from ammnet_sparse.evaluation.metrics import Scores, evaluate
from ammnet_sparse.evaluation.selection import (
    LABEL_MAP_NOTE,
    add_flips_option,
    check_labels,
    open_set,
    parse_device,
    parse_positive,
    reads_label_maps,
    split_ids,
)
from ammnet_sparse.evaluation.tables import format_table
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.shipped import DEFAULT_WEIGHTS, chosen_weights


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        rows, config = _score(options)
        if options.json:
            options.json.write_text(json.dumps(next(iter(rows.values())).to_json(), indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    frames = next(iter(rows.values())).frames
    print(f"{options.data}, {options.split}: {frames} frames, percent")
    print(format_table(rows))
    if reads_label_maps(config):
        print(LABEL_MAP_NOTE)
    return 0


def _score(options: argparse.Namespace) -> tuple[dict[str, Scores], ModelConfig]:
    """The checkpoint's scores, and those of the baselines on request; and the configuration of its network."""
    device = parse_device(options.device)
    options.checkpoint, weights = chosen_weights(options.checkpoint, dataset=options.dataset)
    if options.json and not options.json.parent.is_dir():
        raise FileNotFoundError(f"--json: expected a folder {options.json.parent}, found none; make it first")
    sites = {} if options.sites is None else {"sites": options.sites}
    model = ammnet_sparse.load_model(options.checkpoint, device=device, **sites)
    print(weights, file=sys.stderr)
    folder = open_set(options.data, dataset=options.dataset, config=model.config)
    check_labels(folder)
    ids = split_ids(folder, options.split, limit=options.limit, validation_frames=options.validation_frames)
    batches = _progress(_loader(folder, ids, options), "evaluating")
    name = options.checkpoint.stem
    if options.flips is None:
        rows = {name: evaluate(lambda batch: model(batch, voxels="scored").labels, batches, device=device)}
    else:
        name = f"{name}, {options.flips} flips"
        rows = {name: evaluate(lambda batch: _flipped_labels(model, batch, options), batches, device=device)}
    if options.baselines:
        rows |= _baselines(options, model.config, ids)
    return rows, model.config


def _flipped_labels(model: AMMNet, batch: Batch, options: argparse.Namespace) -> Tensor:
    return labels_over_flips(lambda turned: model(turned, voxels="scored").probabilities, batch, count=options.flips)


def _baselines(options: argparse.Namespace, config: ModelConfig, ids: Sequence[str]) -> dict[str, Scores]:
    """Scores on ``ids`` of the best constant class, and of the class prior of the training frames."""
    blind = config.model_copy(update={"inputs": "tsdf"})
    folder = open_set(options.data, dataset=options.dataset, config=blind)
    training = split_ids(folder, "train", validation_frames=options.validation_frames)
    prior = class_prior(_progress(_loader(folder, training, options), "class prior"))
    return {
        "best constant class": constant_baseline(_loader(folder, ids, options)),
        "class prior": evaluate(lambda batch: prior_labels(prior, batch), _loader(folder, ids, options)),
    }


def _loader(folder: FrameSource, ids: Sequence[str], options: argparse.Namespace) -> Iterable[Batch]:
    return build_loader(
        FrameDataset(folder, ids),
        batch_size=options.batch_size,
        shuffle_seed=None,
        epoch=0,
        workers=options.workers,
        drop_last=False,
    )


def _progress(batches: Iterable[Batch], title: str) -> Iterable[Batch]:
    return tqdm(batches, desc=title, unit="batch", file=sys.stderr, leave=False, disable=None)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=description,
        epilog=rest.rpartition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help=f"weights, or the name of shipped ones (default: {DEFAULT_WEIGHTS})"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder or packed file of the set")
    parser.add_argument(
        "--split",
        choices=("test", "train", "val"),
        default="test",
        help="frames to score; train: without the validation frames, val: val.txt or the drawn ones (default: test)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there as well")
    parser.add_argument("--dataset", choices=("nyu", "nyucad"), default="nyu", help="layout of the set (default: nyu)")
    parser.add_argument("--sites", choices=("sparse", "dense"), help="voxels computed (default: as trained)")
    add_flips_option(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--batch-size", type=parse_positive, default=1, metavar="N", help="frames at a time (default: 1)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read frames (default: 0)")
    parser.add_argument("--limit", type=parse_positive, metavar="N", help="only the first N frames")
    parser.add_argument(
        "--validation-frames",
        type=parse_positive,
        metavar="N",
        help="frames drawn for validation where there is no val.txt (default: as data.validation_frames)",
    )
    parser.add_argument(
        "--baselines", action="store_true", help="score the best constant class and the class prior too"
    )
    options = parser.parse_args(arguments)
    if options.workers < 0:
        parser.error(f"--workers: expected 0 or more, found {options.workers}")
    return options


if __name__ == "__main__":
    sys.exit(main())
