"""The eight symmetries of the grid: flips of its horizontal axes, and their exchange.

A symmetry moves the voxels of a volume; heights stay. Augmentation draws one for a frame, evaluation takes the mean
over several.
"""

import itertools
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

X_AXIS, Y_AXIS = -3, -1
_Volume = TypeVar("_Volume", Tensor, NDArray[Any])


class Symmetry(NamedTuple):
    """Which axes are flipped, and whether X and Y are exchanged after that."""

    flips_x: bool = False
    flips_y: bool = False
    exchanges_xy: bool = False

    def apply(self, volume: _Volume) -> _Volume:
        """[..., X, H, Y], or [..., Y, H, X] where the axes are exchanged; arrays may be views of the given one.

        A flip takes voxel (x, h, y) to (X - 1 - x, h, y) or (x, h, Y - 1 - y), the exchange to (y, h, x).
        """
        axes = tuple(axis for axis, is_flipped in ((X_AXIS, self.flips_x), (Y_AXIS, self.flips_y)) if is_flipped)
        if axes:
            volume = volume.flip(axes) if isinstance(volume, Tensor) else np.flip(volume, axes)
        return volume.swapaxes(X_AXIS, Y_AXIS) if self.exchanges_xy else volume

    def invert(self, volume: _Volume) -> _Volume:
        """The inverse of ``apply``."""
        volume = volume.swapaxes(X_AXIS, Y_AXIS) if self.exchanges_xy else volume
        return self._replace(exchanges_xy=False).apply(volume)

    def check_grid(self, grid_shape: tuple[int, int, int], *, source: str, advice: str) -> None:
        """Raises ValueError if X and Y of a grid would be exchanged and have different numbers of voxels.

        Args:
            source: what the grid belongs to, for the message.
            advice: what to do about it.
        """
        x, height, y = grid_shape
        if self.exchanges_xy and x != y:
            raise ValueError(
                f"{source}: expected as many voxels along X as along Y to exchange them, found a grid of "
                f"{x} x {height} x {y}; {advice}"
            )


SYMMETRIES = tuple(Symmetry(*flags) for flags in itertools.product((False, True), repeat=3))
"""All eight; the identity first."""


def source_voxels(grid_shape: tuple[int, int, int]) -> Tensor:
    """[8, V] int64: for each of ``SYMMETRIES`` the flat voxel that it brings to each voxel; X equals Y."""
    voxels = torch.arange(int(np.prod(grid_shape))).view(grid_shape)
    return torch.stack([symmetry.apply(voxels).flatten() for symmetry in SYMMETRIES])
