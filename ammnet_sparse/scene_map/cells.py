"""The surface that all frames of a room have seen, as a bounded sample that does not depend on their order."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.geometry.surface import Surface
from ammnet_sparse.files.errors import DataError

CELL = 0.05
"""Edge of a cell in meters: a cell is one sample, the mean of everything seen in it."""
MOST_CELLS = 20_000
"""More cells are thinned out to a half, a quarter and so on, chosen by their hashes."""
REACH = 50_000.0
"""Meters from the origin of the given world within which cells have numbers."""
_BITS = 21
_UNITS = 10_000
"""Per meter of a point and per 1 of a normal: sums of integers are the same in any order."""
_LARGEST_WEIGHT = 64
"""Of a sample at 0.5 m and nearer; it falls with the square of the depth, whose errors grow with it."""
_LEAST_NORMAL = 0.8
"""Length of the mean normal below which a cell holds an edge or both sides of something thin."""


@dataclasses.dataclass(frozen=True, eq=False)
class SurfaceCells:
    """Sums of points and normals by cell. At most ``MOST_CELLS`` are kept, the same ones for any order of frames.

    Attributes:
        keys: [N] int64, the numbers of the cells, ascending.
        sums: [N, 7] int64 of each cell: weight, weighted sum of points (X, Y, Z) and of normals in units of 1/10,000.
        halvings: cells are kept whose hash begins with so many zero bits.
    """

    keys: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sums: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((0, 7), dtype=np.int64))
    halvings: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def with_samples(
        self, points: NDArray[np.float64], normals: NDArray[np.float64], *, depth: NDArray[np.float64]
    ) -> "SurfaceCells":
        """These cells and the samples of one more frame.

        Args:
            points: [N, 3] meters, in the given world.
            normals: [N, 3] of length 1, there.
            depth: [N] meters along the optical axis.

        Raises:
            DataError: points farther than 50 km from the world's origin.
        """
        if len(points) and np.abs(points).max() >= REACH:
            raise DataError(
                f"pose: expected a position within {REACH / 1000:.0f} km of its world's origin, found surface at "
                f"{np.abs(points).max() / 1000:.0f} km; poses are in meters"
            )
        keys = _cell_numbers(points)
        is_kept = _is_kept(keys, self.halvings)
        weight = np.clip(_LARGEST_WEIGHT / 4 / depth[is_kept] ** 2, 1, _LARGEST_WEIGHT).astype(np.int64)[:, None]
        values = np.rint(np.hstack([points[is_kept], normals[is_kept]]) * _UNITS).astype(np.int64)
        order = np.argsort(keys[is_kept])
        keys, first = np.unique(keys[is_kept][order], return_index=True)
        added = np.add.reduceat(np.hstack([weight, weight * values])[order], first)
        place = np.searchsorted(self.keys, keys)
        is_new = np.append(self.keys, -1)[place] != keys
        sums, halvings = self.sums.copy(), self.halvings
        sums[place[~is_new]] += added[~is_new]
        keys = np.insert(self.keys, place[is_new], keys[is_new])
        sums = np.insert(sums, place[is_new], added[is_new], axis=0)
        while len(keys) > MOST_CELLS:
            halvings += 1
            is_kept = _is_kept(keys, halvings)
            keys, sums = keys[is_kept], sums[is_kept]
        return SurfaceCells(keys, sums, halvings)

    def surface(self) -> Surface:
        """The samples in the given world, with the areas that they stand for."""
        weight, points, normals = np.split(self.sums.astype(np.float64), [1, 4], axis=1)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        areas = np.full(len(self), CELL**2 * 2.0**self.halvings)
        is_smooth = (length > _LEAST_NORMAL * _UNITS * weight)[:, 0]
        return Surface(points / (_UNITS * weight), normals / np.maximum(length, 1e-9), areas).select(is_smooth)


def _cell_numbers(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N] a number for the cell of each point."""
    cells = np.floor(points / CELL).astype(np.int64) + (1 << (_BITS - 1))
    return cells[:, 0] << 2 * _BITS | cells[:, 1] << _BITS | cells[:, 2]


def _is_kept(keys: NDArray[np.int64], halvings: int) -> NDArray[np.bool_]:
    """[N] bool, of a share of 1/2 to the power of ``halvings`` of all cells, spread evenly."""
    mixed = keys.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed < np.uint64(min(2 ** (64 - halvings), 2**64 - 1))
