"""Scores a checkpoint on a split, as in the paper's table, in percent.

    ammnet evaluate [--checkpoint FILE] --data DIR [--split test] [--json FILE]

Without --checkpoint the weights shipped with the package are scored (docs/models.md).
With --lost it also lists which occluded voxels are lost, by class, distance to a hit voxel, visibility, height and
depth. --json writes the same scores, including those of --baselines and --lost, with checkpoint, set and split.
SC: precision, recall and IoU of occupancy over the occluded voxels. SSC: IoU of each class and their mean.
Scored are the voxels with label weight: occupied, or behind a surface. With --scored view all voxels in the camera's
field of view count, for SC too, as in the tables of Occ-ScanNet and MonoScene (docs/sets.md).
Exit code: 0 done, 1 failed, 2 wrong usage (no such file, list or input), 130 interrupted.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from ammnet_sparse.cli.errors import check_output_file, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_checkpoint_option,
    add_data_option,
    add_dataset_option,
    add_device_option,
    add_flips_option,
    add_limit_option,
    add_precision_option,
    add_sites_option,
    add_workers_option,
    choose_device,
    parse_positive,
)
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import FrameDataset, build_loader
from ammnet_sparse.data.sets.field_of_view import FramesInView
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.source import check_labels, open_set
from ammnet_sparse.evaluation.baselines import class_prior, constant_baseline, prior_labels
from ammnet_sparse.evaluation.flips import predicted_labels
from ammnet_sparse.evaluation.lost import LostVoxels
from ammnet_sparse.evaluation.metrics import Scores, evaluate
from ammnet_sparse.evaluation.selection import LABEL_MAP_NOTE, split_ids
from ammnet_sparse.evaluation.tables import format_table
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.models.ensemble import load_networks
from ammnet_sparse.models.weights.files import lists_in
from ammnet_sparse.models.weights.shipped import DEFAULT_WEIGHTS, chosen_weights
from ammnet_sparse.progress import ProgressBar

_SCORED = {
    "weight": "voxels with label weight; SC: those that no pixel hits",
    "view": "all voxels with a known label in the camera's field of view, for SC too",
}


@command("evaluate")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet evaluate``; returns its exit code."""
    options = _parse(arguments)
    if options.json:
        check_output_file(options.json, option="--json")
    lost = LostVoxels() if options.lost else None
    chosen = [chosen_weights(name, dataset=options.dataset) for name in options.checkpoint or [None]]
    for _, weights in chosen:
        print(weights, file=sys.stderr)
    checkpoints = [path for path, _ in chosen]
    scores, baselines, config = _score(options, checkpoints, lost)
    name = " + ".join(path.stem for path in checkpoints)
    if options.flips is not None:
        name += f", {options.flips} flips"
    frames = scores.subset or f"{scores.frames} frame{'s' * (scores.frames != 1)}"
    print(f"{options.data}, {options.split}: {frames}, percent")
    print(format_table({name: scores, **baselines}))
    print(f"scored: {_SCORED[options.scored]}")
    for remark in scores.remarks():
        print(remark)
    if config.reads_label_map:
        print(LABEL_MAP_NOTE)
    if lost is not None:
        print(f"\n{scores.named(options.split)}: {lost.describe()}")
    if options.json:  # after the table, which took minutes
        values = scores.to_json() | {
            "checkpoint": " + ".join(str(path.absolute()) for path in checkpoints),
            "data": str(options.data.absolute()),
            "dataset": options.dataset,
            "split": options.split,
            "limit": options.limit,
            "scored": options.scored,
            "flips": options.flips,
            "precision": options.precision,
        }
        if baselines:
            values["baselines"] = {name: baseline.to_json() for name, baseline in baselines.items()}
        if lost is not None:
            values["lost"] = {
                aspect: {title: group.to_json() for title, group in groups.items()}
                for aspect, groups in lost.groups().items()
            }
        with writing_to(options.json):
            write_text(options.json, json.dumps(values, indent=2) + "\n")
    return 0


def _score(
    options: argparse.Namespace, checkpoints: Sequence[Path], lost: LostVoxels | None
) -> tuple[Scores, dict[str, Scores], ModelConfig]:
    """The scores of the checkpoints' mean; those of the baselines, on request; and the configuration of its network."""
    device = choose_device(options.device)
    model = load_networks(checkpoints, device=device, sites=options.sites, precision=options.precision)
    if options.split in lists_in(getattr(model, "metadata", {})):
        print(
            f"note: these weights were trained on the frames of {options.split!r} of their set; scores on the same "
            "frames say little about others",
            file=sys.stderr,
        )
    source = open_set(options.data, dataset=options.dataset, config=model.config)
    check_labels(source)
    source = _scored(source, options)
    in_view = options.scored == "view"
    all_ids = split_ids(source, options.split, validation_frames=options.validation_frames)
    ids = all_ids[: options.limit]
    subset = f"first {len(ids)} of {len(all_ids)} frames" if len(ids) < len(all_ids) else ""
    batches = _progress(_loader(source, ids, options), "evaluating")

    def predict(batch: Batch) -> Tensor:
        # In the field of view is free space, which networks are not trained to predict.
        labels = predicted_labels(model, batch, voxels="not_free" if in_view else "scored", flips=options.flips)
        if lost is not None:
            lost.update(labels, batch)
        return labels

    scores = evaluate(predict, batches, device=device, info=source.info, sc_counts_hits=in_view)
    baselines = _baselines(options, model.config, ids) if options.baselines else {}
    baselines = {name: dataclasses.replace(baseline, subset=subset) for name, baseline in baselines.items()}
    return dataclasses.replace(scores, subset=subset), baselines, model.config


def _baselines(options: argparse.Namespace, config: ModelConfig, ids: Sequence[str]) -> dict[str, Scores]:
    """Scores on ``ids`` of the best constant class, and of the class prior of the training frames."""
    blind = config.model_copy(update={"inputs": "tsdf"})
    source = _scored(open_set(options.data, dataset=options.dataset, config=blind), options)
    in_view = options.scored == "view"
    training = split_ids(source, "train", validation_frames=options.validation_frames)
    prior = class_prior(_progress(_loader(source, training, options), "frequencies of classes"))

    def frames(title: str) -> Iterable[Batch]:
        return _progress(_loader(source, ids, options), title)

    def score_prior(batches: Iterable[Batch]) -> Scores:
        return evaluate(lambda batch: prior_labels(prior, batch), batches, info=source.info, sc_counts_hits=in_view)

    constant = constant_baseline(frames("best constant class"), info=source.info, sc_counts_hits=in_view)
    return {"best constant class": constant, "class prior": score_prior(frames("class prior"))}


def _scored(source: FrameSource, options: argparse.Namespace) -> FrameSource:
    """The set, whose label weight is what ``--scored`` says."""
    return FramesInView(source) if options.scored == "view" else source


def _loader(source: FrameSource, ids: Sequence[str], options: argparse.Namespace) -> Iterable[Batch]:
    return build_loader(
        FrameDataset(source, ids),
        batch_size=options.batch_size,
        shuffle_seed=None,
        epoch=0,
        workers=options.workers,
        drop_last=False,
    )


def _progress(batches: Iterable[Batch], title: str) -> Iterable[Batch]:
    return ProgressBar(batches, title=title, unit="batch")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("evaluate", __doc__)
    add_checkpoint_option(parser, default=DEFAULT_WEIGHTS, is_repeated=True)
    add_data_option(parser, required=True)
    parser.add_argument(
        "--split",
        default="test",
        metavar="NAME",
        help="list of frames to score, such as test or val_rooms; train: without those held out, val: val.txt or the "
        "drawn ones (default: test)",
    )
    parser.add_argument(
        "--scored",
        choices=tuple(_SCORED),
        default="weight",
        help="voxels that are scored: with label weight (default), or all in the camera's field of view",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there as well")
    add_dataset_option(parser)
    add_sites_option(parser)
    add_flips_option(parser)
    add_device_option(parser)
    add_precision_option(parser, default="float32")
    parser.add_argument(
        "--batch-size", type=parse_positive, default=1, metavar="N", help="frames at a time (default: 1)"
    )
    add_workers_option(parser, "processes that read frames (default: 0, this process reads)")
    add_limit_option(parser, "frames")
    parser.add_argument(
        "--validation-frames",
        type=parse_positive,
        metavar="N",
        help="frames drawn for validation if there is no val.txt (default: data.validation_frames)",
    )
    parser.add_argument(
        "--baselines", action="store_true", help="score the best constant class and the class prior too"
    )
    parser.add_argument(
        "--lost", action="store_true", help="count the occluded voxels that are lost, and those wrongly filled"
    )
    return parser.parse(arguments)
