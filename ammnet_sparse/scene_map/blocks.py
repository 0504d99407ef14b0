"""A map's voxels in blocks that are made where something is seen; an update touches only the blocks under its frame.

What frames say about the voxels of a box is its *evidence*, sums of integers: [classes + 2, X, height, Y] int32. First
the weighted log-probabilities of the classes (``fusion.py`` has the units), then the sum of the weights, and the number
of frames that say something.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

EDGE = 16
"""Voxels along X and Y of a block; it is as high as a frame's grid."""
WEIGHTS, VIEWS = -2, -1
"""Where evidence has the sum of weights and the number of frames."""
Evidence = NDArray[np.int32]
Position = tuple[int, int]
"""Of a block along X and Y: voxels ``EDGE * position`` and on."""


class Blocks:
    """Evidence by blocks.

    Args:
        num_classes: of the network.
        height: voxels.

    Attributes:
        shape: of a block's evidence.
        at: the blocks by position.
    """

    def __init__(self, num_classes: int, height: int) -> None:
        self.shape = (num_classes + 2, EDGE, height, EDGE)
        self.at: dict[Position, Evidence] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks."""
        return sum(block.nbytes for block in self.at.values())

    def add(self, corner: tuple[int, int], evidence: Evidence) -> None:
        """Adds the evidence of a box whose first voxel along X and Y is ``corner``."""
        lengths = evidence.shape[1], evidence.shape[3]
        along = (
            range(start // EDGE, (start + length - 1) // EDGE + 1)
            for start, length in zip(corner, lengths, strict=True)
        )
        for position in itertools.product(*along):
            (x, from_x), (y, from_y) = (
                overlap(EDGE * position[axis] - corner[axis], lengths[axis]) for axis in range(2)
            )
            part = evidence[:, from_x, :, from_y]
            if part[VIEWS].any():
                block = self.at.setdefault((position[0], position[1]), np.zeros(self.shape, np.int32))
                block[:, x, :, y] += part

    def box(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """First and last voxel (X, height, Y) of the smallest box around everything known; None of an empty map."""
        corners = []
        for position, block in self.at.items():
            known = np.argwhere(block[VIEWS])
            if len(known):
                start = np.array([EDGE * position[0], 0, EDGE * position[1]])
                corners += [known.min(axis=0) + start, known.max(axis=0) + start]
        return (np.min(corners, axis=0), np.max(corners, axis=0)) if corners else None


def overlap(start: int, length: int) -> tuple[slice, slice]:
    """Which voxels of a block, and which of a box, are those that both have along one axis.

    Args:
        start: first voxel of the block, counted from the first of the box.
        length: of the box.
    """
    low = max(0, start)
    high = max(low, min(length, start + EDGE))
    return slice(low - start, high - start), slice(low, high)
