"""Where a run stands, and its records: metrics.jsonl, TensorBoard, a picture, and lines on the console."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ammnet_sparse.data.batch import IMAGE_DEVIATION, IMAGE_MEAN, Batch
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.evaluation.metrics import Scores, VoxelCounts
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.files.yaml_text import short
from ammnet_sparse.models.ammnet import AMMNet, not_free_mask
from ammnet_sparse.pictures.comparison import render_comparison
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.training.checkpoints import summary

_LARGEST_COUNT = 2**53


@dataclasses.dataclass
class Progress:
    """Where a run stands; what a resumed run starts from.

    Attributes:
        epoch, step: epochs and updates done.
        batches_done, seconds: of the unfinished epoch; the time at the last save.
        best_miou, best_epoch: validation SSC mIoU (fraction) of the best weights, and their epoch, from 1; 0: none yet.
        skipped, skipped_in_a_row: steps whose losses or gradients were not finite, and how many since the last
            finite step.
        sums, num_summed: sums of the values recorded in the unfinished epoch, and the number of steps.
        times: how many of these steps had each value.
        counts: voxels by truth and prediction over those steps; None before the first of them.
    """

    epoch: int = 0
    batches_done: int = 0
    seconds: float = 0.0
    step: int = 0
    best_miou: float = -1.0
    best_epoch: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    num_summed: int = 0
    times: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: VoxelCounts | None = None

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> "Progress":
        """From ``dataclasses.asdict``; values missing in older states start from their defaults.

        Raises:
            TypeError: unknown names, or values of other types.
        """
        counts = values.get("counts")
        found = cls(**{**values, "counts": None if counts is None else VoxelCounts(**counts)})
        whole = [found.epoch, found.batches_done, found.step, found.best_epoch, found.skipped, found.skipped_in_a_row]
        whole += [found.num_summed, *found.times.values()] + ([] if counts is None else [counts["frames"]])
        if any(type(value) is not int or not 0 <= value < _LARGEST_COUNT for value in whole):
            raise TypeError(f"progress: expected counts, found {short(whole)}")
        numbers = [found.seconds, found.best_miou, *found.sums.values()]
        if any(type(value) not in (int, float) for value in numbers):
            raise TypeError(f"progress: expected numbers, found {short(numbers)}")
        if found.counts is not None:
            for table in (found.counts.confusion, found.counts.occupancy):
                if not isinstance(table, Tensor) or table.dtype != torch.int64 or table.ndim != 2:
                    raise TypeError("progress: expected counts of voxels, found something else")
        return found

    def add(self, values: Mapping[str, float], counts: VoxelCounts) -> None:
        """Adds a step of the unfinished epoch."""
        for name, value in values.items():
            # States written before ``times`` had every value in every step.
            before = self.times.get(name, self.num_summed if name in self.sums else 0)
            self.times[name] = before + 1
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.num_summed += 1
        self.counts = counts if self.counts is None else self.counts + counts

    def means(self) -> dict[str, float]:
        """Means of the values recorded in the unfinished epoch, each over the steps that had it."""
        return {name: value / self.times.get(name, self.num_summed) for name, value in self.sums.items()}

    def scores(self, info: SetInfo = NYU) -> Scores | None:
        """Scores of the predictions that the unfinished epoch trained on; None before its first step."""
        return None if self.counts is None else self.counts.scores(info)

    def end_epoch(self) -> None:
        """Ends the epoch and resets its sums."""
        self.epoch += 1
        self.batches_done, self.seconds = 0, 0.0
        self.sums, self.num_summed, self.times, self.counts = {}, 0, {}, None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Validation scores of a run: of its best epoch, and of the best constant class."""

    best: Scores
    best_epoch: int
    baseline: Scores


def format_result(result: RunResult) -> str:
    """The last line of a run."""
    return (
        f"best validation (epoch {result.best_epoch}): {summary(result.best)}; "
        f"constant-class baseline: {summary(result.baseline)}"
    )


def epoch_line(epoch: int, values: dict[str, float], training: Scores | None, *, validation: Scores | None) -> str:
    """The 3D cross-entropy and the scores of training and, if there was one, validation."""
    parts = []
    for name, key, scores in (("training", "scene", training), ("validation", "validation_scene", validation)):
        if scores is not None and key in values:
            parts.append(f"{name} loss {values[key]:.3f}, {summary(scores)}")
    return f"epoch {epoch}: {'; '.join(parts) or 'done'}"


class StepBar(ProgressBar):
    """Progress of an epoch's steps on standard error, with losses and the mean wait for data."""

    _SHOWN = ("loss", "scene", "adversarial", "discriminator")

    def show_step(self, losses: dict[str, float], *, wait_seconds: float) -> None:
        """Advances by a step; ``wait_seconds`` is the mean over the steps of the epoch."""
        shown = {name: f"{losses[name]:.3f}" for name in self._SHOWN if name in losses}
        self.set_postfix(shown | {"wait": f"{1000 * wait_seconds:.1f}ms"})
        self.update()


class Records:
    """Appends to ``metrics.jsonl`` and ``tensorboard/`` of a run folder; a context manager.

    Args:
        folder: None: nothing is written, as in all processes but the first.
        resumed_at: (epochs, steps) done by the resumed run; records written after them are dropped.
            None: start from scratch.
    """

    def __init__(self, folder: Path | None, *, resumed_at: tuple[int, int] | None = None) -> None:
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        if resumed_at is not None:
            _drop_later_lines(path, *resumed_at)
        self._file = path.open("w" if resumed_at is None else "a", encoding="utf-8")
        # TensorBoard drops the points from this step on.
        purge_step = None if resumed_at is None else resumed_at[1] + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def change(self, step: int, change: dict[str, Any]) -> None:
        """Records a key that a resumed run has changed after ``step`` updates: key, before, now."""
        self._write({"kind": "change", "step": step, **change})

    def step(self, step: int, values: dict[str, float], *, is_skipped: bool = False) -> None:
        """Records the values of a step; ``step`` counts updates from 1, including skipped ones."""
        self._write({"kind": "step", "step": step, **values, **({"skipped": True} if is_skipped else {})})
        for name, value in values.items():
            self._scalar(f"step/{name}", value, step)

    def epoch(
        self, epoch: int, step: int, values: dict[str, Any], scores: Scores | None, *, training: Scores | None = None
    ) -> None:
        """Records an epoch (from 1), with the available scores of validation and training in percent."""
        line: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "step": step, **values}
        if scores is not None:
            line["validation"] = scores.to_json()
            self._totals("validation", scores, step)
            for name, iou in scores.ssc_iou.items():
                if not math.isnan(iou):
                    self._scalar(f"validation_classes/{name}", 100 * iou, step)
        if training is not None:
            line["training"] = training.to_json()
            self._totals("training", training, step)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._scalar(f"epoch/{name}", value, step)
        self._write(line)
        if self._writer is not None:
            self._writer.flush()

    def _totals(self, name: str, scores: Scores, step: int) -> None:
        self._scalar(f"{name}/sc_iou", 100 * scores.sc_iou, step)
        self._scalar(f"{name}/ssc_miou", 100 * scores.ssc_miou, step)

    def picture(self, step: int, network: AMMNet, batch: Batch) -> None:
        """Records prediction beside truth of the first frame of a batch on the network's device, in evaluation mode."""
        if self._writer is not None:
            self._writer.add_image("validation/scene", picture_of(network, batch), step, dataformats="HWC")

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        # JSON has no NaN and infinity (overflowed fp16 gradients): null.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in line.items()
        }
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()


def picture_of(network: AMMNet, batch: Batch) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[rows, columns, 3] uint8: prediction, truth and errors of the first frame at scored voxels."""
    with torch.inference_mode():
        labels = network(batch).labels[0].cpu().numpy()
    shape = batch.grid_shape
    image = label_map = truth = None
    if batch.image is not None:
        pixels = batch.image[0].permute(1, 2, 0).cpu().numpy() * np.array(IMAGE_DEVIATION) + np.array(IMAGE_MEAN)
        image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if batch.label_map is not None:
        label_map = batch.label_map[0].cpu().numpy()
    visible = not_free_mask(batch)[0]
    if batch.label is not None:
        truth = batch.label[0].view(shape).cpu().numpy().astype(np.uint8)
        visible = batch.scored_mask[0]
    return render_comparison(
        labels,
        truth,
        image=image,
        label_map=label_map,
        visible_mask=visible.view(shape).cpu().numpy(),
        title=batch.frame_ids[0] if batch.frame_ids else "",
        info=batch.info,
    )


def _drop_later_lines(path: Path, epoch: int, step: int) -> None:
    """Removes the lines that a resumed run will write again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the run was interrupted while writing
        is_done = entry["epoch"] <= epoch if entry["kind"] == "epoch" else entry["step"] <= step
        if is_done:
            kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))
