"""A page about a training run: curves of loss and IoU, the table of its classes, and its best and worst scenes.

    ammnet report RUN
    ammnet report RUN RUN ... [--plot scores.png]

Writes RUN/report.html, one file that works offline. Scenes are predicted with RUN/best.safetensors for the validation
frames of RUN/config.yaml and ranked by SSC mIoU. The run may still be training.

Several runs are compared, in comparison.html: curves over each other, the best epoch of each, the keys that differ,
and the same scenes from each run. --plot also writes the scores over the epochs as a picture, of one run or several.

Exit code: 0 done, 1 failed, 2 wrong usage (no run, no metrics yet, no data), 130 interrupted.
"""

import argparse
import dataclasses
import html
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import ammnet_sparse
from ammnet_sparse.cli.errors import UsageError, check_output_file, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_data_option,
    add_device_option,
    add_limit_option,
    add_out_option,
    add_palette_option,
    choose_device,
    parse_count,
)
from ammnet_sparse.config import Config, load_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.sets.frame_source import FrameSource, validation_ids
from ammnet_sparse.data.sets.source import check_labels, open_set
from ammnet_sparse.evaluation.metrics import Scores, evaluate
from ammnet_sparse.evaluation.selection import LABEL_MAP_NOTE
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.pictures.history import History, curves_html, read_history, table_html
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.page import Scene, write_page
from ammnet_sparse.pictures.palettes import Palette
from ammnet_sparse.pictures.run_comparison import comparison_html, plot_scores
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS

PLOT_ENDINGS = (".png", ".pdf", ".svg")
_TRAINING_NOTE = (
    "Scores of training are those of the predictions that the network learnt from during the epoch, with dropout and "
    "augmentation; those of validation are of its end, without them."
)


@command("report")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet report``; returns its exit code."""
    options = _parse(arguments)
    names = _names(options.runs)
    if options.plot is not None:
        print(f"{options.plot}: {_plot(names, options.plot)}")
    if len(names) > 1:
        out = options.out or Path("comparison.html")
        remark = _compare(names, options, out)
    else:
        out = options.out or options.runs[0] / "report.html"
        remark = _report(options.runs[0], options, out)
    print(f"{out}: {remark}")
    return 0


def _plot(runs: dict[str, Path], plot: Path) -> str:
    """Writes the picture of the runs' scores; returns what it shows."""
    if plot.suffix not in PLOT_ENDINGS:
        raise UsageError(f"--plot {plot}: expected a name ending in .png, .pdf or .svg")
    check_output_file(plot, option="--plot")
    histories = {name: read_history(run) for name, run in runs.items()}
    with writing_to(plot):
        plot_scores(histories, plot)
    return f"scores of {f'{len(runs)} runs' if len(runs) > 1 else next(iter(runs))} over the epochs"


def _compare(runs: dict[str, Path], options: argparse.Namespace, out: Path) -> str:
    """Writes the page that compares runs; returns a remark about its scenes."""
    histories = {name: read_history(run) for name, run in runs.items()}
    check_output_file(out)
    configs = {name: load_config(run / "config.yaml") for name, run in runs.items()}
    scenes, remark = _same_scenes(options, runs, configs)
    body = f"{comparison_html(histories, configs)}\n<h2>Scenes</h2>\n<p>{html.escape(remark)}.</p>"
    with writing_to(out):
        introduction = f'<section class="report">{body}</section>'
        write_page(out, scenes, title=f"Training runs {', '.join(runs)}", introduction=introduction)
    return f"{len(runs)} runs; {remark}"


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the part of their paths that tells them apart: without the folders that all begin and end with."""
    paths = [Path(os.path.realpath(run)).parts for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"{run}: expected each run once, found it {paths.count(path)} times")
    shared = _num_shared(paths)
    paths = [path[shared:] for path in paths]
    shared = _num_shared([path[::-1] for path in paths])
    return {"/".join(path[: len(path) - shared]): run for path, run in zip(paths, runs, strict=True)}


def _num_shared(paths: Sequence[Sequence[str]]) -> int:
    """How many first parts all paths have in common, the last part of each left out."""
    firsts = zip(*(path[:-1] for path in paths), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, firsts))


def _same_scenes(
    options: argparse.Namespace, runs: dict[str, Path], configs: dict[str, Config]
) -> tuple[list[Scene], str]:
    """Validation frames that the runs share, each completed by every run's best weights, and what they are."""
    trained = {name: run / BEST_WEIGHTS for name, run in runs.items() if (run / BEST_WEIGHTS).is_file()}
    if options.scenes == 0:
        return [], "no scenes asked for"
    if not trained:
        return [], f"no scenes yet: no run has {BEST_WEIGHTS}, which comes with the first validation"
    device = choose_device(options.device)
    models = {name: ammnet_sparse.load_model(weights, device=device) for name, weights in trained.items()}
    sources = {name: _validation_frames(runs[name], options, configs[name], models[name]) for name in trained}
    lists = [ids for _, ids in sources.values()]
    shared = [frame_id for frame_id in lists[0] if all(frame_id in ids for ids in lists)]
    if not shared:
        return [], "no scenes: the runs have no validation frame in common"
    scenes = []
    step = max(len(shared) // options.scenes, 1)
    chosen = shared[::step][: options.scenes]
    for frame_id in chosen:
        for name, model in models.items():
            frame = sources[name][0].read(frame_id)
            scores = evaluate(_labels_of(model), [Batch.from_frame(frame)], device=device, info=frame.info)
            scenes.append(_scene_of(model, frame, device, scores, palette=options.palette, name=f"{frame_id}, {name}"))
    return scenes, f"{len(chosen)} of {len(shared)} shared validation frames, each from {', '.join(trained)}"


def _labels_of(model: AMMNet) -> Callable[[Batch], Tensor]:
    """Predicts the scored voxels of a batch."""
    return lambda batch: model(batch, voxels="scored").labels


def _report(run: Path, options: argparse.Namespace, out: Path) -> str:
    """Writes the page; returns a remark about its scenes."""
    history = read_history(run)
    config = load_config(run / "config.yaml")
    check_output_file(out)
    scenes, remark = _scenes(run, options, config)
    introduction = _introduction(history, config, options, remark)
    with writing_to(out):
        write_page(out, scenes, title=f"Training run {Path(os.path.realpath(run)).name}", introduction=introduction)
    return remark


def _introduction(history: History, config: Config, options: argparse.Namespace, remark: str) -> str:
    """The part of the page above the scenes."""
    last = history.epochs[-1] if history.epochs else None
    done = f"{last['epoch']} of {config.training.epochs} epochs" if last else "no epoch finished yet"
    steps = (history.steps or history.epochs)[-1]["step"]
    model = f"width {config.model.width}, {config.model.image_encoder}, sites {config.model.sites}"
    parts = [
        f"<p>{html.escape(done)}, {steps:,} steps of {config.training.batch_size} frames; {html.escape(model)}.</p>"
    ]
    if history.subset:
        parts.append(f"<p>Validated on the {html.escape(history.subset)}.</p>")
    parts.append(f"<h2>Training and validation</h2>\n{curves_html(history, palette=options.palette)}")
    if any("training" in line for line in history.epochs):
        parts.append(f"<p>{_TRAINING_NOTE}</p>")
    if history.num_malformed:
        parts.append(f"<p>{history.num_malformed} lines of metrics.jsonl are malformed and left out.</p>")
    rows = {}
    if history.best is not None:
        rows[f"best, epoch {history.best['epoch']}"] = history.best["validation"]
        latest = history.validated[-1]
        rows[f"last, epoch {latest['epoch']}"] = latest["validation"]
        frames = html.escape(latest["validation"].get("subset") or f"{latest['validation']['frames']} frames")
        parts.append(f"<h2>Validation, {frames}, percent</h2>\n{table_html(rows)}")
        if config.model.reads_label_map:
            parts.append(f"<p>{html.escape(LABEL_MAP_NOTE)}</p>")
    else:
        parts.append("<p>No validation yet.</p>")
    parts.append(f"<h2>Scenes</h2>\n<p>{html.escape(remark[:1].upper() + remark[1:])}.</p>")
    return '<section class="report">' + "\n".join(parts) + "</section>"


def _scenes(run: Path, options: argparse.Namespace, config: Config) -> tuple[list[Scene], str]:
    """The best and worst scenes by SSC mIoU, and a remark about them."""
    weights = run / BEST_WEIGHTS
    if options.scenes == 0:
        return [], "no scenes asked for"
    if not weights.is_file():
        return [], f"no scenes yet: {BEST_WEIGHTS} comes with the first validation"
    device = choose_device(options.device)
    model = ammnet_sparse.load_model(weights, device=device)
    source, ids = _validation_frames(run, options, config, model)
    ranked = _rank(model, source, ids, device)
    if not ranked:
        return [], f"no scenes: none of {len(ids)} frames has a scored voxel"
    num_best = min(options.scenes, (len(ranked) + 1) // 2)
    num_worst = min(options.scenes, len(ranked) - num_best)
    chosen = [("best", place, *ranked[place - 1]) for place in range(1, num_best + 1)]
    chosen += [("worst", place, *ranked[-place]) for place in range(1, num_worst + 1)]
    scenes = []
    for kind, place, frame_id, scores in chosen:
        name = f"{kind} {place}: {frame_id}, {_percent(scores.ssc_miou)}"
        scenes.append(_scene_of(model, source.read(frame_id), device, scores, palette=options.palette, name=name))
    frames = f"{'the first ' if len(ids) == options.limit else ''}{len(ids)} validation frames"
    remark = f"{num_best} best and {num_worst} worst of {frames} by SSC mIoU, with {BEST_WEIGHTS}"
    return scenes, remark


def _scene_of(
    model: AMMNet, frame: Frame, device: torch.device, scores: Scores, *, palette: Palette, name: str
) -> Scene:
    with torch.inference_mode():
        labels = model(Batch.from_frame(frame).to(device), voxels="not_free").labels[0].cpu().numpy()
    note = f"Frame {frame.frame_id}\nSSC mIoU {_percent(scores.ssc_miou)}, SC IoU {_percent(scores.sc_iou)}"
    scene = CompletedScene(frame, labels).painted(palette).to_scene(note=note)
    return dataclasses.replace(scene, name=name)


def _validation_frames(
    run: Path, options: argparse.Namespace, config: Config, model: AMMNet
) -> tuple[FrameSource, list[str]]:
    root = options.data or config.data.root
    if root is None:
        raise DataError(f"{run}/config.yaml: expected data.root, found none; give --data DIR or --scenes 0")
    try:
        source = open_set(root, dataset=config.data.dataset, config=model.config, for_pictures=True)
        check_labels(source)
    except DataError as error:
        raise DataError(f"{error} (--data DIR names the set, --scenes 0 leaves the scenes out)") from error
    data = config.data
    ids = validation_ids(source, split=data.split, count=data.validation_frames, seed=data.validation_seed)
    return source, ids[: options.limit]


def _rank(model: AMMNet, source: FrameSource, ids: Sequence[str], device: torch.device) -> list[tuple[str, Scores]]:
    """Frames with their scores, the highest SSC mIoU first; frames without any class are left out."""
    scored = []
    for frame_id in ProgressBar(ids, title="scoring", unit="frame"):
        batch = Batch.from_frame(source.read(frame_id))
        scores = evaluate(_labels_of(model), [batch], device=device, info=source.info)
        if not math.isnan(scores.ssc_miou):
            scored.append((frame_id, scores))
    return sorted(scored, key=lambda entry: entry[1].ssc_miou, reverse=True)


def _percent(fraction: float) -> str:
    return "undefined" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("report", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs of `ammnet train`")
    parser.add_argument(
        "--scenes",
        type=parse_count,
        default=3,
        metavar="N",
        help="N best and N worst scenes; N scenes if several runs are compared (default: 3)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also write a picture of the scores over the epochs (png, pdf or svg)"
    )
    add_data_option(parser, note=" (default: as trained)")
    add_out_option(parser, "page to write (default: RUN/report.html, or comparison.html)", metavar="FILE")
    add_limit_option(parser, "validation frames")
    add_palette_option(parser)
    add_device_option(parser)
    return parser.parse(arguments)
