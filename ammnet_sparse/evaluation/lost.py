"""Which occupied voxels a completion loses, and which empty ones it fills: counts by class, place and visibility."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.data.batch import Batch, unflipped_tsdf
from ammnet_sparse.data.grid import EMPTY_LABEL, FLOOR_OFFSET, IGNORE_LABEL
from ammnet_sparse.data.set_info import SetInfo

_DISTANCES = (1, 2, 4, 8, 16)
"""Distance in voxels (maximum norm) to the nearest hit voxel: upper ends of the bins."""
_SLICES = 6
"""Number of parts of the height, and of the forward axis."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Occluded scored voxels of one kind.

    Attributes:
        occupied: truly occupied ones.
        found: occupied ones predicted to be occupied.
        empty: truly empty ones.
        filled: empty ones predicted to be occupied.
        right_class: of ``found``, those with the right class.
    """

    occupied: int
    found: int
    empty: int
    filled: int
    right_class: int

    @property
    def lost(self) -> int:
        """Occupied ones predicted to be empty."""
        return self.occupied - self.found

    def to_json(self) -> dict[str, Any]:
        """Counts, with recall and the share of the right class in percent, None where undefined."""
        return {
            **dataclasses.asdict(self),
            "recall": _percent(self.found, self.occupied),
            "right_class_of_found": _percent(self.right_class, self.found),
        }


class LostVoxels:
    """Adds up batches; ``groups`` counts what was lost by true class, distance to a hit voxel, height, and so on.

    Counts the voxels of scene completion: scored, and hit by no pixel.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}
        self._titles: dict[str, Sequence[str]] = {}

    def update(self, labels_predicted: Tensor, batch: Batch) -> None:
        """Adds a batch with labels.

        Args:
            labels_predicted: [B, V] or [B, X, H, Y] integer, a class.
            batch: the frames, on the same device.

        Raises:
            ValueError: no labels in ``batch``, or another grid or other classes than before.
        """
        if batch.label is None:
            raise ValueError(f"batch.label: expected the ground truth of frames {list(batch.frame_ids)}, found none")
        shape = (batch.batch_size, *batch.grid_shape)
        truth, predicted = batch.label.view(shape).long(), labels_predicted.reshape(shape).long()
        occluded = (batch.scored_mask & ~batch.hit_mask).view(shape)
        is_occupied, is_predicted = occluded & (truth != EMPTY_LABEL), predicted != EMPTY_LABEL
        is_empty = occluded & (truth == EMPTY_LABEL)
        masks = (
            is_occupied,
            is_occupied & is_predicted,
            is_empty,
            is_empty & is_predicted,
            is_occupied & (truth == predicted),
        )
        titles = _titles(batch.grid_shape, batch.info)
        if self._titles and titles != self._titles:
            raise ValueError(f"batch.tsdf: expected the grid of the batches before, found {batch.grid_shape}")
        self._titles = titles
        for name, bins in self._bins(batch, truth).items():
            size = len(titles[name])
            counts = torch.stack([bins[mask].bincount(minlength=size) for mask in masks], dim=1).cpu()
            self._counts[name] = self._counts.get(name, 0) + counts

    def groups(self) -> dict[str, dict[str, Group]]:
        """By aspect and name: ``class``, ``distance``, ``height``, ``forward``, ``visibility``."""
        return {
            aspect: {
                title: Group(*row)
                for title, row in zip(self._titles[aspect], counts.tolist(), strict=True)
                if any(row[:4])
            }
            for aspect, counts in self._counts.items()
        }

    def describe(self) -> str:
        """A table for people: recall, share of all lost voxels, precision and share of the right class."""
        lines = ["Occluded scored voxels, percent"]
        for aspect, groups in self.groups().items():
            total = sum(group.lost for group in groups.values())
            heading = f"{_HEADINGS[aspect]:34}{'occupied':>10}{'recall':>9}{'of lost':>9}{'filled':>9}{'class':>9}"
            lines += ["", heading, "-" * len(heading)]
            for title, group in groups.items():
                cells = (
                    _percent(group.found, group.occupied),
                    _percent(group.lost, total),
                    _percent(group.filled, group.empty),
                    _percent(group.right_class, group.found),
                )
                numbers = "".join(f"{'-' if cell is None else format(cell, '.1f'):>9}" for cell in cells)
                lines.append(f"{title:34}{group.occupied:>10,}{numbers}")
        lines += [
            "",
            "recall: of the occupied voxels, those predicted to be occupied; of lost: part of all lost voxels;",
            "filled: of the empty voxels, those predicted to be occupied; class: of what is found, the right class.",
        ]
        return "\n".join(lines)

    def _bins(self, batch: Batch, truth: Tensor) -> dict[str, Tensor]:
        """[B, X, H, Y] int64, the bin of every voxel, by aspect."""
        shape = truth.shape
        tsdf = unflipped_tsdf(batch).view(shape)
        visibility = torch.where(tsdf == 0, 2, torch.where(tsdf < 0, 1, 0))
        height = torch.arange(shape[2], device=truth.device) * _SLICES // shape[2]
        forward = torch.arange(shape[3], device=truth.device) * _SLICES // shape[3]
        return {
            "class": truth.masked_fill(truth == IGNORE_LABEL, EMPTY_LABEL),
            "distance": _distance_bins(batch.hit_mask.view(shape)),
            "visibility": visibility,
            "height": height.view(1, 1, -1, 1).expand(shape),
            "forward": forward.view(1, 1, 1, -1).expand(shape),
        }


def _distance_bins(is_hit: Tensor) -> Tensor:
    """[B, X, H, Y]: the first of ``_DISTANCES`` within which a hit voxel lies, else one more."""
    bins = torch.full(is_hit.shape, len(_DISTANCES), device=is_hit.device)
    near, reached = is_hit[:, None].float(), 0
    for index, distance in enumerate(_DISTANCES):
        size = 2 * (distance - reached) + 1
        near, reached = F.max_pool3d(near, size, stride=1, padding=size // 2), distance
        bins = torch.where((near[:, 0] > 0) & (bins == len(_DISTANCES)), index, bins)
    return bins


def _parts(length: float, first: str, *, start: float = 0.0) -> list[str]:
    """Titles of equal parts of a side of the grid, ``length`` meters from ``start``."""
    ends = [start + index * length / _SLICES for index in range(_SLICES + 1)]
    return [f"{first} {low:.2f} to {high:.2f} m" for low, high in itertools.pairwise(ends)]


def _titles(grid_shape: tuple[int, int, int], info: SetInfo) -> dict[str, Sequence[str]]:
    """Titles of the bins, by aspect, for a grid (X, height, Y)."""
    _, height, forward = (size * info.voxel_size for size in grid_shape)
    ends = [f"{info.voxel_size * 100 * distance:.0f} cm" for distance in _DISTANCES]
    return {
        "class": info.class_names,
        "distance": [*(f"within {end}" for end in ends), f"farther than {ends[-1]}"],
        "visibility": ["just before a surface", "behind a surface", "outside of the view"],
        "height": _parts(height, "above the floor", start=FLOOR_OFFSET),
        "forward": _parts(forward, "from the near edge"),
    }


_HEADINGS = {
    "class": "true class",
    "distance": "distance to the nearest hit voxel",
    "visibility": "seen from the camera",
    "height": "height in the grid",
    "forward": "forward in the grid",
}


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
