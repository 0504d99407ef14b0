"""How much of a camera's depth lies in the grid of its frame, and where the rest is."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.images.resizing import CameraImages
from ammnet_sparse.data.grid import GRID_SHAPE, VOXEL_SIZE
from ammnet_sparse.data.volumes.camera import CameraView

LITTLE = 0.1
"""Share of the depth in the grid below which a frame's completion says next to nothing of what the camera saw."""
_MOST = 0.5
_ADVICE = {
    "farther": "the room is larger than the grid, or the depth scale is wrong",
    "nearer": "the camera is very near, or the depth scale is wrong",
    "below the floor": "the detected floor is too high: give --camera-height",
    "above": "the detected floor is too low, or the vertical is wrong: give --camera-height, --pose or --rotate",
    "to the sides": "the view is wide, or the intrinsics belong to another image size",
}


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Where the depth of a view lies against the grid.

    Attributes:
        share: of the pixels with depth that fall into the grid; 0 where no pixel has depth.
        outside: share of the pixels with depth in every direction outside, largest first; a pixel counts once.
        reach: words for what the grid covers, seen from the camera.
    """

    share: float
    outside: tuple[tuple[str, float], ...]
    reach: str

    @property
    def is_little(self) -> bool:
        """Whether next to nothing of the depth lies in the grid."""
        return self.share < LITTLE

    def describe(self) -> str:
        """Where the depth lies, and what to check."""
        parts = [f"{share:.0%} lies {where}" for where, share in self.outside if share >= 0.005]
        said = f"the grid covers {self.reach}" + (f"; of the depth {', '.join(parts)}" if parts else "")
        return f"{said}; {_ADVICE[self.outside[0][0]]}" if parts else said

    def advice(self) -> list[str]:
        """A line where most of the depth lies outside."""
        if self.share >= _MOST:
            return []
        return [f"advice: most of the depth lies outside the grid: {self.describe()}"]


def coverage(images: CameraImages, view: CameraView) -> Coverage:
    """The coverage of the images at the network's size by the grid of a view."""
    # Every second row and column is enough for shares.
    rows, columns = (2 * index for index in np.nonzero(images.depth[::2, ::2]))
    positions = voxel_positions(images, view, rows, columns)
    low, high = positions < 0, positions >= np.array(GRID_SHAPE)
    count = max(1, len(positions))
    # In this order, so that what is beyond the far wall is not called high up.
    masks = {
        "farther": high[:, 2],
        "nearer": low[:, 2],
        "to the sides": low[:, 0] | high[:, 0],
        "below the floor": low[:, 1],
        "above": high[:, 1],
    }
    left = np.ones(len(positions), dtype=np.bool_)
    shares: dict[str, float] = {}
    for where, mask in masks.items():
        shares[where] = float((mask & left).sum() / count)
        left &= ~mask
    ordered = tuple(sorted(shares.items(), key=lambda item: -item[1]))
    return Coverage(float(left.sum() / count) if len(positions) else 0.0, ordered, _reach(view))


def voxel_positions(
    images: CameraImages, view: CameraView, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """[N, 3] positions in voxels along (X, height, Y) of the pixels at ``rows`` and ``columns``, which have depth."""
    camera = images.camera
    z = images.depth[rows, columns].astype(np.float64)
    points = np.stack([(columns - camera.cx) * z / camera.fx, (rows - camera.cy) * z / camera.fy, z], axis=1)
    world = points @ view.pose[:3, :3].T + view.pose[:3, 3] - view.origin
    return np.asarray(world[:, [0, 2, 1]] / VOXEL_SIZE, dtype=np.float64)


def _reach(view: CameraView) -> str:
    """What the grid covers along the world's axes, from the camera: depends on where it looks."""
    low = view.origin - view.pose[:3, 3]
    high = low + np.array(GRID_SHAPE)[[0, 2, 1]] * VOXEL_SIZE
    from_to = f"{-low[1]:.1f} m behind the camera to" if low[1] < 0 else f"{low[1]:.1f} to"
    return (
        f"{from_to} {high[1]:.1f} m ahead of the camera, {-low[0]:.1f} m to its left to {high[0]:.1f} m to its right, "
        f"and {-view.origin[2]:.2f} m below the floor to {view.origin[2] + GRID_SHAPE[1] * VOXEL_SIZE:.2f} m above it"
    )
