"""Scene completion (SC) and semantic scene completion (SSC) scores: the protocol of the paper's tables (5.1)."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import EMPTY_LABEL, IGNORE_LABEL, NUM_CLASSES
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.processes import num_processes, of_all_processes, sum_over_processes


@dataclass(frozen=True)
class Scores:
    """Scores of a set of frames, as fractions of 1; NaN if undefined (nothing to divide by).

    Attributes:
        frames: frames scored.
        sc_precision, sc_recall, sc_iou: occupied against empty over the occluded scored voxels.
        ssc_iou: intersection over union by class name, empty left out, in the order of the labels. A class that
            neither truth nor prediction holds anywhere is NaN.
        ssc_miou: mean of ``ssc_iou`` over the classes that are defined (on NYU: all 11).
        confusion: [classes, classes] int64 on the CPU, scored voxels by (true class, predicted class).
        occupancy: [2, 2] int64 on the CPU, occluded scored voxels by (truly occupied, predicted occupied).
        left_out: ids of frames without a scored voxel, which are not among ``frames``.
        without_hits: ids of frames without a hit voxel: nothing is seen, so empty space is predicted.
        subset: which frames of their list were scored, such as "first 10 of 654 frames"; empty: all of them.
    """

    frames: int
    sc_precision: float
    sc_recall: float
    sc_iou: float
    ssc_iou: dict[str, float]
    ssc_miou: float
    confusion: Tensor = field(repr=False, compare=False)
    occupancy: Tensor = field(repr=False, compare=False)
    left_out: tuple[str, ...] = ()
    without_hits: tuple[str, ...] = ()
    subset: str = ""

    def named(self, name: str) -> str:
        """The name of a line or row with these scores, which says so if they are of a part of the frames."""
        return f"{name} ({self.subset})" if self.subset else name

    def remarks(self) -> list[str]:
        """Lines about frames that were scored differently; usually empty."""
        remarks = []
        if self.left_out:
            remarks.append(f"without a scored voxel, left out: {_counted(self.left_out)}")
        if self.without_hits:
            remarks.append(f"no voxel hit by a pixel, scored as predicted empty: {_counted(self.without_hits)}")
        return remarks

    def to_json(self) -> dict[str, Any]:
        """Nested plain values in percent, None (JSON null) where undefined, ready for ``json.dump``."""
        exceptions = {"left_out": list(self.left_out), "without_hits": list(self.without_hits)}
        return {
            "frames": self.frames,
            "sc": {
                "precision": _percent(self.sc_precision),
                "recall": _percent(self.sc_recall),
                "iou": _percent(self.sc_iou),
            },
            "ssc": {
                "miou": _percent(self.ssc_miou),
                "iou": {name: _percent(iou) for name, iou in self.ssc_iou.items()},
            },
            **{name: ids for name, ids in exceptions.items() if ids},
            **({"subset": self.subset} if self.subset else {}),
        }


def scores_from_counts(confusion: Tensor, occupancy: Tensor, *, frames: int, info: SetInfo = NYU) -> Scores:
    """Scores from pooled voxel counts.

    Args:
        confusion: [classes, classes] integer, scored voxels by (true class, predicted class).
        occupancy: [2, 2] integer, occluded scored voxels by (truly occupied, predicted occupied), 0 for empty.
        frames: frames that the counts were pooled over.
        info: the set of the frames, which names the classes.
    """
    if tuple(confusion.shape) != (info.num_classes, info.num_classes):
        raise ValueError(f"confusion: expected {[info.num_classes] * 2}, found {list(confusion.shape)}")
    if tuple(occupancy.shape) != (2, 2):
        raise ValueError(f"occupancy: expected [2, 2], found {list(occupancy.shape)}")
    confusion = confusion.detach().to("cpu", torch.int64)
    occupancy = occupancy.detach().to("cpu", torch.int64)
    hits = confusion.diag().tolist()
    unions = (confusion.sum(0) + confusion.sum(1) - confusion.diag()).tolist()
    ssc_iou = {
        name: _ratio(hits[label], unions[label]) for label, name in enumerate(info.class_names) if label != EMPTY_LABEL
    }
    defined = [iou for iou in ssc_iou.values() if not math.isnan(iou)]
    (_, false_positives), (false_negatives, true_positives) = occupancy.tolist()
    return Scores(
        frames=frames,
        sc_precision=_ratio(true_positives, true_positives + false_positives),
        sc_recall=_ratio(true_positives, true_positives + false_negatives),
        sc_iou=_ratio(true_positives, true_positives + false_positives + false_negatives),
        ssc_iou=ssc_iou,
        ssc_miou=_ratio(math.fsum(defined), len(defined)),
        confusion=confusion,
        occupancy=occupancy,
    )


@dataclass(frozen=True, eq=False)
class VoxelCounts:
    """Voxels of scenes by truth and prediction, added up on their device without the host waiting for it.

    Attributes:
        confusion: [classes, classes] int64, scored voxels by (true class, predicted class).
        occupancy: [2, 2] int64, occluded scored voxels by (truly occupied, predicted occupied).
        frames: frames that were counted.
    """

    confusion: Tensor
    occupancy: Tensor
    frames: int

    @classmethod
    def of(
        cls, labels_predicted: Tensor, labels: Tensor, hit_mask: Tensor, *, frames: int, num_classes: int = NUM_CLASSES
    ) -> "VoxelCounts":
        """Counts voxels of ``frames`` frames.

        Args:
            labels_predicted: [N] integer, a class; not checked, as a check would wait for the device.
            labels: [N] integer, a class, or 255 where the voxel is not scored.
            hit_mask: [N] bool, voxels that a pixel hits: SC leaves them out.
        """
        scored = labels != IGNORE_LABEL
        cell = (hit_mask.long() * num_classes + labels.long()) * num_classes + labels_predicted.long()
        num_cells = 2 * num_classes**2
        # Not bincount, which reads the largest value from the device. Unscored voxels fall into a separate cell.
        table = cell.new_zeros(num_cells + 1)
        table.scatter_add_(0, cell.where(scored, num_cells), torch.ones_like(cell))
        occluded, hit = table[:-1].view(2, num_classes, num_classes)
        rows = torch.stack([occluded[0], occluded[1:].sum(0)])
        return cls(occluded + hit, torch.stack([rows[:, 0], rows[:, 1:].sum(1)], dim=1), frames)

    def __add__(self, other: "VoxelCounts") -> "VoxelCounts":
        """Counts of both, on the device of ``other``."""
        device = other.confusion.device
        return VoxelCounts(
            self.confusion.to(device) + other.confusion,
            self.occupancy.to(device) + other.occupancy,
            self.frames + other.frames,
        )

    def over_processes(self) -> "VoxelCounts":
        """Those of all processes together; collective."""
        if num_processes() == 1:
            return self
        frames = self.confusion.new_tensor([self.frames])
        sums = sum_over_processes(torch.cat([self.confusion.flatten(), self.occupancy.flatten(), frames]))
        confusion, occupancy, frames = sums.split([self.confusion.numel(), self.occupancy.numel(), 1])
        return VoxelCounts(confusion.view_as(self.confusion), occupancy.view_as(self.occupancy), frames=int(frames))

    def scores(self, info: SetInfo = NYU) -> Scores:
        """Scores of what was counted, with the names of a set's classes; waits for the device."""
        return scores_from_counts(self.confusion, self.occupancy, frames=self.frames, info=info)


class CompletionMetrics:
    """Counts pooled over batches, and the scores that follow from them.

    SSC counts the scored voxels (label weight set, label not ignored): one confusion matrix over the whole set,
    IoU = TP / (TP + FP + FN) per class. Empty can be predicted and counts in FP and FN, but not in the mean.
    SC counts those of them that no pixel hits, occupied against empty. Other voxels never matter.

    Args:
        device: counts stay there until ``compute``.
        info: the set of the batches.
        sc_counts_hits: SC counts all scored voxels, those hit by a pixel too.
    """

    def __init__(
        self, *, device: torch.device | str = "cpu", info: SetInfo = NYU, sc_counts_hits: bool = False
    ) -> None:
        self.info = info
        self.sc_counts_hits = sc_counts_hits
        self._device = torch.device(device)
        self.reset()

    def update(self, labels_predicted: Tensor, batch: Batch) -> None:
        """Adds a batch.

        Args:
            labels_predicted: [B, V] or [B, X, H, Y], any integer type, a class; unscored voxels may hold anything.
            batch: the frames, with labels, on any device.

        Raises:
            ValueError: no labels in ``batch``, a shape that does not fit it, or a scored voxel without a class.
        """
        truth, predicted = (labels.to(self._device) for labels in _truth_and_prediction(labels_predicted, batch))
        scored = batch.scored_mask.to(self._device)
        for name, labels in (("labels_predicted", predicted), ("batch.label", truth)):
            _check_classes(name, labels[scored], num_classes=self.info.num_classes)
        left_out = batch.hit_mask.new_zeros(batch.hit_mask.shape) if self.sc_counts_hits else batch.hit_mask
        self.counts += VoxelCounts.of(
            predicted.flatten(),
            truth.masked_fill(~scored, IGNORE_LABEL).flatten(),
            left_out.to(self._device).flatten(),
            frames=batch.batch_size,
            num_classes=self.info.num_classes,
        )

    def compute(self) -> Scores:
        """Scores of everything added so far; NaN if nothing was."""
        return self.counts.scores(self.info)

    def reset(self) -> None:
        """Forgets everything added so far."""
        confusion, occupancy = (
            torch.zeros(size, size, dtype=torch.int64, device=self._device) for size in (self.info.num_classes, 2)
        )
        self.counts = VoxelCounts(confusion, occupancy, frames=0)


def evaluate(
    predict: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    over_processes: bool = False,
    info: SetInfo = NYU,
    sc_counts_hits: bool = False,
) -> Scores:
    """Scores of a predictor over batches with labels, without gradients.

    Frames without a scored voxel are left out. Frames without a hit voxel are scored as if
    empty space was predicted, and are not passed to ``predict``. ``Scores`` names both.

    Args:
        predict: from a batch on ``device`` to labels [B, V] or [B, X, H, Y], integers, a class at the scored voxels.
        batches: frames to score, for instance a data loader.
        device: where prediction and counting run.
        over_processes: scores of the batches of all processes together; collective.
        info: the set of the frames.
        sc_counts_hits: SC counts all scored voxels, those hit by a pixel too.
    """
    metrics = CompletionMetrics(device=device, info=info, sc_counts_hits=sc_counts_hits)
    left_out: list[str] = []
    without_hits: list[str] = []
    with torch.inference_mode():
        for batch in batches:
            is_scored = batch.scored_mask.any(dim=1)
            is_seen = is_scored & batch.hit_mask.any(dim=1)
            left_out += _names(batch, ~is_scored)
            without_hits += _names(batch, is_scored & ~is_seen)
            seen = batch.select(is_seen).to(device, non_blocking=True)
            if seen.batch_size:
                metrics.update(predict(seen), seen)
            unseen = batch.select(is_scored & ~is_seen)
            if unseen.batch_size:
                empty = torch.full((unseen.batch_size, unseen.num_voxels), EMPTY_LABEL, device=unseen.tsdf.device)
                metrics.update(empty, unseen)
    scores = (metrics.counts.over_processes() if over_processes else metrics.counts).scores(info)
    if over_processes and num_processes() > 1:
        names = of_all_processes((left_out, without_hits))
        left_out, without_hits = (sorted(itertools.chain(*part)) for part in zip(*names, strict=True))
    return replace(scores, left_out=tuple(left_out), without_hits=tuple(without_hits))


def _names(batch: Batch, chosen: Tensor) -> list[str]:
    """Ids of the chosen frames; indices within the batch if they have none."""
    names = batch.frame_ids or tuple(f"(frame {index} of a batch)" for index in range(batch.batch_size))
    return [name for name, is_chosen in zip(names, chosen.tolist(), strict=True) if is_chosen]


def _counted(names: tuple[str, ...]) -> str:
    return f"{len(names)} frame{'s' * (len(names) != 1)} ({abbreviated(names)})"


def _truth_and_prediction(labels_predicted: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.label is None:
        raise ValueError(f"batch.label: expected the ground truth of frames {list(batch.frame_ids)}, found none")
    flat, grid = (batch.batch_size, batch.num_voxels), (batch.batch_size, *batch.grid_shape)
    if tuple(labels_predicted.shape) not in (flat, grid):
        raise ValueError(
            f"labels_predicted: expected {list(flat)} or {list(grid)}, found {list(labels_predicted.shape)}"
        )
    if labels_predicted.is_floating_point() or labels_predicted.dtype == torch.bool:
        raise ValueError(f"labels_predicted: expected integer classes, found {labels_predicted.dtype}")
    return batch.label, labels_predicted.reshape(flat)


def _check_classes(name: str, labels: Tensor, *, num_classes: int) -> None:
    # A stray value would land in another cell of the confusion matrix instead of raising.
    stray = (labels < 0) | (labels >= num_classes)
    if stray.any():
        found = sorted(set(labels[stray].tolist()))[:5]
        raise ValueError(f"{name}: expected classes 0..{num_classes - 1} at scored voxels, found {found}")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _percent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else 100.0 * fraction
