"""The surface that all frames of a room have seen, as a bounded sample that does not depend on their order."""

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


class SurfaceCells:
    """Sums of points and normals by cell. At most ``MOST_CELLS`` are kept, the same ones for any order of frames."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._sums = np.zeros((256, 7), dtype=np.int64)
        self.halvings = 0
        """Cells are kept whose hash begins with so many zero bits."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def keys(self) -> NDArray[np.int64]:
        """[N] the numbers of the cells."""
        return np.fromiter(self._rows, dtype=np.int64, count=len(self))

    @property
    def sums(self) -> NDArray[np.int64]:
        """[N, 7] of each cell: weight, weighted sum of points (X, Y, Z) and of normals in units of 1/10,000."""
        return self._sums[: len(self)]

    @classmethod
    def restored(cls, keys: NDArray[np.int64], sums: NDArray[np.int64], *, halvings: int) -> "SurfaceCells":
        """The cells with these ``keys``, ``sums`` and ``halvings``."""
        cells = cls()
        cells._rows = {key: row for row, key in enumerate(keys.tolist())}
        cells._sums, cells.halvings = sums.copy(), halvings
        return cells

    def add(self, points: NDArray[np.float64], normals: NDArray[np.float64], *, depth: NDArray[np.float64]) -> None:
        """Adds samples of one frame.

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
        unique, first = np.unique(keys[is_kept][order], return_index=True)
        sums = np.add.reduceat(np.hstack([weight, weight * values])[order], first) if len(first) else 0
        rows = [self._rows.setdefault(key, len(self._rows)) for key in unique.tolist()]
        if len(self._rows) > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums, shape=(len(self._rows), 7))])
        self._sums[rows] += sums
        while len(self._rows) > MOST_CELLS:
            self._thin_out()

    def surface(self) -> Surface:
        """The samples in the given world, with the areas that they stand for."""
        weight, points, normals = np.split(self.sums.astype(np.float64), [1, 4], axis=1)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        areas = np.full(len(self), CELL**2 * 2.0**self.halvings)
        is_smooth = (length > _LEAST_NORMAL * _UNITS * weight)[:, 0]
        # In the order of their numbers sums of floats do not depend on that of the frames either.
        chosen = np.argsort(self.keys)
        chosen = chosen[is_smooth[chosen]]
        return Surface(
            (points / (_UNITS * weight))[chosen], (normals / np.maximum(length, 1e-9))[chosen], areas[chosen]
        )

    def _thin_out(self) -> None:
        self.halvings += 1
        keys = self.keys
        is_kept = _is_kept(keys, self.halvings)
        self._sums = self.sums[is_kept]
        self._rows = {key: row for row, key in enumerate(keys[is_kept].tolist())}


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
