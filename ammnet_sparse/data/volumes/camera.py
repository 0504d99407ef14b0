"""The camera: intrinsics, pose and position of a frame's grid.

World axes are X lateral, Y forward, Z up, in meters, floor at Z = 0. Points, origins and
poses have the order (X, Y, Z).
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.data.grid import FLOOR_OFFSET, GRID_SHAPE, VOXEL_SIZE

FORWARD_OFFSET = 3.4
"""Meters in front of the camera around which the grid of an own frame is centered."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """Pinhole intrinsics in pixels: focal lengths and principal point of (column, row)."""

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        if not np.isfinite(values).all() or self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"Camera: expected finite values and positive focal lengths in pixels, found {self}")


@dataclasses.dataclass(frozen=True, eq=False)
class CameraView:
    """The camera of a depth image: everything that the volumes of a frame depend on.

    Attributes:
        camera: intrinsics of the depth image.
        pose: [4, 4] float64, camera to world; camera axes x right, y down, z forward; floor at Z = 0.
        origin: [3] float64, world position (X, Y, Z) in meters of the grid's lower corner.

    Raises:
        ValueError: a pose that is not a finite rigid transform, or an origin that is not three finite coordinates.
    """

    camera: Camera
    pose: NDArray[np.float64]
    origin: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pose", checked_pose(self.pose))
        object.__setattr__(self, "origin", checked_origin(self.origin))

    @classmethod
    def of_own_frame(cls, camera: Camera, pose: ArrayLike) -> "CameraView":
        """The view of a frame without published origin (``own_frame_origin``)."""
        return cls(camera, checked_pose(pose), own_frame_origin(pose))


NYU_CAMERA = Camera(518.8579, 519.4696, 325.58, 253.74)
"""Intrinsics behind the published NYU files (mapping, TSDF)."""
SSCNET_CAMERA = Camera(518.8579, 518.8579, 320.0, 240.0)
"""Intrinsics of SSCNet, MonoScene and of NYUCAD's rendered depth; on NYU files half of the mapping would be wrong."""


def own_frame_origin(pose: ArrayLike) -> NDArray[np.float64]:
    """World position (X, Y, Z) in meters of the lower corner of the grid for a frame without published origin.

    The grid is centered 3.4 m in front of the camera; its lowest layer starts 0.05 m below the floor.

    Args:
        pose: [4, 4] camera to world; floor at Z = 0.
    """
    pose = checked_pose(pose)
    extent = np.array(GRID_SHAPE, dtype=np.float64)[[0, 2, 1]] * VOXEL_SIZE
    origin = pose[:3, 2] * FORWARD_OFFSET + pose[:3, 3] - extent / 2
    origin[2] = FLOOR_OFFSET
    return origin


def intrinsics(camera: Camera) -> NDArray[np.float64]:
    """[4] fx, fy, cx, cy in pixels, as the compiled loops take them."""
    return np.array(dataclasses.astuple(camera), dtype=np.float64)


def checked_depth(depth: NDArray[np.floating]) -> NDArray[np.float32]:
    """[rows, columns] float32 in meters, 0 where the depth is not finite. Raises ValueError for another array."""
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise ValueError(
            f"depth: expected a float image [rows, columns] in meters, found {depth.dtype} {list(depth.shape)}"
        )
    return np.ascontiguousarray(np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0), dtype=np.float32)


def checked_pose(pose: ArrayLike) -> NDArray[np.float64]:
    """[4, 4] float64 camera to world. Raises ValueError if it is not a finite rigid transform."""
    matrix = np.ascontiguousarray(pose, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"pose: expected a finite 4x4 camera-to-world matrix, found {matrix.tolist()}")
    if np.abs(matrix[:3, :3].T @ matrix[:3, :3] - np.eye(3)).max() > 1e-2:
        raise ValueError(f"pose: expected a rotation in its upper left 3x3, found {matrix[:3, :3].tolist()}")
    return matrix


def checked_origin(origin: ArrayLike) -> NDArray[np.float64]:
    """[3] float64 in meters. Raises ValueError if it is not three finite coordinates."""
    vector = np.ascontiguousarray(origin, dtype=np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise ValueError(f"origin: expected three finite world coordinates in meters, found {vector.tolist()}")
    return vector
