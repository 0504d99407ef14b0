"""A map's voxels in blocks that are made where something is seen; an update touches only the blocks under its frame."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import GridShape

EDGE = 16
"""Voxels along X and Y of a block; it is as high as a frame's grid."""
Position = tuple[int, int]
"""Of a block along X and Y: voxels ``EDGE * position`` and on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What frames say about the voxels of a box, as sums of integers.

    Attributes:
        sums: [classes, X, height, Y] int32, weighted log-probabilities (``fusion.py`` has the units).
        weights: [X, height, Y] int32.
        views: [X, height, Y] int32, frames that say something.
    """

    sums: NDArray[np.int32]
    weights: NDArray[np.int32]
    views: NDArray[np.int32]

    @classmethod
    def none(cls, num_classes: int, shape: GridShape) -> "Evidence":
        """A box that no frame has said anything about."""
        return cls(np.zeros((num_classes, *shape), np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32))

    def turned(self, quarters: int) -> "Evidence":
        """The box turned about the vertical by so many times 90 degrees, counterclockwise seen from above."""
        return Evidence(
            np.rot90(self.sums, quarters, axes=(1, 3)),
            np.rot90(self.weights, quarters, axes=(0, 2)),
            np.rot90(self.views, quarters, axes=(0, 2)),
        )

    def part(self, x: slice, y: slice) -> "Evidence":
        """A view of a part of the box."""
        return Evidence(self.sums[:, x, :, y], self.weights[x, :, y], self.views[x, :, y])

    def add(self, other: "Evidence") -> None:
        """Adds the evidence of a box of the same shape, in place."""
        np.add(self.sums, other.sums, out=self.sums)
        np.add(self.weights, other.weights, out=self.weights)
        np.add(self.views, other.views, out=self.views)


class Blocks:
    """Evidence by blocks.

    Args:
        num_classes: of the network.
        height: voxels.
    """

    def __init__(self, num_classes: int, height: int) -> None:
        self.num_classes, self.height = num_classes, height
        self.at: dict[Position, Evidence] = {}

    def __len__(self) -> int:
        return len(self.at)

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks."""
        return sum(block.sums.nbytes + block.weights.nbytes + block.views.nbytes for block in self.at.values())

    def add(self, corner: tuple[int, int], evidence: Evidence) -> None:
        """Adds the evidence of a box whose first voxel along X and Y is ``corner``."""
        for position, x, y in _overlaps(corner, evidence.weights.shape):
            inside = (x.start + corner[0] - EDGE * position[0], y.start + corner[1] - EDGE * position[1])
            part = evidence.part(x, y)
            if not part.views.any():
                continue
            if position not in self.at:
                self.at[position] = Evidence.none(self.num_classes, (EDGE, self.height, EDGE))
            size_x, size_y = x.stop - x.start, y.stop - y.start
            inner = slice(inside[0], inside[0] + size_x), slice(inside[1], inside[1] + size_y)
            self.at[position].part(*inner).add(part)

    def box(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """First and last voxel (X, height, Y) of the smallest box around everything known; None of an empty map."""
        corners = []
        for position, block in self.at.items():
            known = np.argwhere(block.views)
            if len(known):
                start = np.array([EDGE * position[0], 0, EDGE * position[1]])
                corners += [known.min(axis=0) + start, known.max(axis=0) + start]
        return (np.min(corners, axis=0), np.max(corners, axis=0)) if corners else None


def _overlaps(corner: tuple[int, int], shape: tuple[int, ...]) -> Iterator[tuple[Position, slice, slice]]:
    """The blocks under a box, and which part of the box along X and Y lies in each."""

    def along(start: int, length: int) -> Iterator[tuple[int, slice]]:
        for position in range(start // EDGE, (start + length - 1) // EDGE + 1):
            yield position, slice(max(0, EDGE * position - start), min(length, EDGE * (position + 1) - start))

    for x_position, x in along(corner[0], shape[0]):
        for y_position, y in along(corner[1], shape[2]):
            yield (x_position, y_position), x, y
