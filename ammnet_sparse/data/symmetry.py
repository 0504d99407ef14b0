"""Moves of the voxels: the eight symmetries of the grid's horizontal axes, and shifts along them; heights stay.

Augmentation draws a symmetry and a shift for each frame; evaluation takes the mean over several symmetries.
"""

import itertools
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ammnet_sparse.data.grid import IGNORE_LABEL, UNMAPPED
from ammnet_sparse.data.sets.conventions import FLIPPED_SURFACE, LEAST_UNOBSERVED, unobserved_of

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


_FILL = {"mapping": UNMAPPED, "label_weight": False, "label": IGNORE_LABEL, "depth_hit": False}
_UNOBSERVED, _UNOBSERVED_FLIPPED, _UNOBSERVED_SURFACE = 0.0, 0.001, 1.0


class Shift(NamedTuple):
    """Voxels by which the content of the grid moves towards larger X and Y; what leaves the grid is lost."""

    x: int = 0
    y: int = 0

    def apply(self, volume: NDArray[Any], fill: float) -> NDArray[Any]:
        """[X, H, Y], contiguous, with ``fill`` where nothing has moved to; a shift is shorter than the grid."""
        moved = np.full_like(volume, fill)
        (to_x, from_x), (to_y, from_y) = _ranges(self.x), _ranges(self.y)
        moved[to_x, :, to_y] = volume[from_x, :, from_y]
        return moved


def fill_of(name: str, volume: NDArray[Any], *, tsdf_is_flipped: bool) -> float:
    """The value of an array of a frame in voxels of unknown content: unobserved, not hit, not scored.

    A flipped TSDF is filled with the value that it gives to unobserved space itself (``conventions.unobserved_of``).
    """
    if name != "tsdf":
        return _FILL[name]
    if not tsdf_is_flipped:
        return _UNOBSERVED
    return _UNOBSERVED_SURFACE if unobserved_of(volume) == "surface" else _UNOBSERVED_FLIPPED


def shift_volumes(
    volumes: dict[str, Tensor], shifts: Tensor, *, grid_shape: tuple[int, int, int], tsdf_is_flipped: bool
) -> dict[str, Tensor]:
    """The arrays of frames, by name, after ``Shift.apply``; the host does not wait for the device.

    A frame that would lose every hit or every scored voxel is returned as it is.

    Args:
        volumes: [B, V] each, on one device: ``tsdf``, ``mapping``, ``label_weight``, ``label`` if there is one.
        shifts: [B, 2] int64, along X and Y.
    """
    size_x, height, size_y = grid_shape
    device = shifts.device
    from_x = torch.arange(size_x, device=device) - shifts[:, :1]
    from_y = torch.arange(size_y, device=device) - shifts[:, 1:]
    is_inside_x, is_inside_y = (from_x >= 0) & (from_x < size_x), (from_y >= 0) & (from_y < size_y)
    from_x, from_y = from_x.clamp(0, size_x - 1), from_y.clamp(0, size_y - 1)
    column = torch.arange(height, device=device)[:, None]
    source = ((from_x[:, :, None, None] * height + column) * size_y + from_y[:, None, None, :]).flatten(1)
    is_inside = (is_inside_x[:, :, None, None] & is_inside_y[:, None, None, :]).expand(-1, -1, height, -1).flatten(1)
    moved = {
        name: torch.where(is_inside, values.gather(1, source), _fills(name, values, tsdf_is_flipped=tsdf_is_flipped))
        for name, values in volumes.items()
    }
    is_scored = moved["label_weight"]
    if "label" in moved:
        is_scored = is_scored & (moved["label"] != IGNORE_LABEL)
    is_usable = (moved["mapping"] != UNMAPPED).any(dim=1) & is_scored.any(dim=1)
    return {name: torch.where(is_usable[:, None], values, volumes[name]) for name, values in moved.items()}


def _fills(name: str, volumes: Tensor, *, tsdf_is_flipped: bool) -> Tensor:
    """``fill_of`` for each of these volumes [B, V], as [B, 1] or a scalar; the host does not wait for the device."""
    if name != "tsdf":
        return volumes.new_full((), _FILL[name])
    if not tsdf_is_flipped:
        return volumes.new_full((), _UNOBSERVED)
    is_surface = (volumes >= FLIPPED_SURFACE).to(torch.float32).mean(dim=1, keepdim=True) >= LEAST_UNOBSERVED
    return torch.where(is_surface, _UNOBSERVED_SURFACE, _UNOBSERVED_FLIPPED).to(volumes.dtype)


def _ranges(shift: int) -> tuple[slice, slice]:
    """Indices along an axis: of the target, and of the source."""
    if shift >= 0:
        return slice(shift, None), slice(None, -shift or None)
    return slice(None, shift), slice(-shift, None)
