"""The camera: intrinsics, pose and position of a frame's grid, and which numbers of a depth image are invalid.

World axes are X lateral, Y forward, Z up, in meters, floor at Z = 0. Points, origins and
poses have the order (X, Y, Z).
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.data.grid import FLOOR_OFFSET, GRID_SHAPE, IMAGE_SHAPE, VOXEL_SIZE, GridShape

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


def voxels_in_view(
    view: CameraView, *, image_shape: tuple[int, int] = IMAGE_SHAPE, grid_shape: GridShape = GRID_SHAPE
) -> NDArray[np.uint8]:
    """[X * height * Y] uint8: 1 where a voxel's center is in front of the camera and projects into the image."""
    centers = np.moveaxis(np.indices(grid_shape), 0, -1).reshape(-1, 3)[:, [0, 2, 1]] + 0.5
    points = (view.origin + centers * VOXEL_SIZE - view.pose[:3, 3]) @ view.pose[:3, :3]
    column, row, depth = pixels_of(points, camera=view.camera)
    inside = (column >= -0.5) & (column < image_shape[1] - 0.5) & (row >= -0.5) & (row < image_shape[0] - 0.5)
    return (inside & (depth > 0)).astype(np.uint8)


def pixels_of(points: NDArray[np.float64], *, camera: Camera) -> NDArray[np.float64]:
    """[3, N] column, row and depth in meters of points [N, 3] in camera axes; NaN or infinite in its plane."""
    x, y, depth = points.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([x / depth * camera.fx + camera.cx, y / depth * camera.fy + camera.cy, depth])


def quarter_turn(quarters: int) -> NDArray[np.float64]:
    """[4, 4] exact rotation about Z by so many times 90 degrees, counterclockwise seen from above."""
    turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return np.linalg.matrix_power(turn, quarters % 4)


def intrinsics(camera: Camera) -> NDArray[np.float64]:
    """[4] fx, fy, cx, cy in pixels, as the operators of TSDF and mapping take them."""
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


LARGEST_CODE = 65535
"""The largest 16-bit number: invalid in an image of integers and in a float copy of it."""
FARTHEST = 60.0
"""Meters: no indoor camera measures farther. Renderers write 1e10, 65504 or 65535 where they hit nothing."""
_MIN_SPIKE_SHARE = 0.001
"""Of the valid pixels that must hold one code."""
_MIN_SPIKE = 20
_NEAR_CODES = (2047, 4095)
"""Largest numbers of 11 and 12 bits: "too far" of the first Kinect and of time-of-flight cameras."""
_FAR_CODE = 8190
"""From here on (millimeters; the largest number of 13 bits is 8191) an isolated group of pixels is invalid depth."""
_CODE_WIDTH = 4
"""Millimeters."""


def depth_in_meters(values: NDArray[Any], *, scale: float) -> NDArray[np.float32]:
    """Depth in meters, 0 where the values are invalid; the rule is the same for integers, floats and meters.

    Invalid are: 0, negative, infinite and NaN values; 65535 of any type, also divided by the scale; values
    beyond 60 m; and the "too far" codes of sensors: 2047 and 4095 if they are the image's largest value and
    many pixels have exactly it, and everything from 8.19 m on if nothing lies shortly before it.

    Args:
        values: [rows, columns], integers or floats.
        scale: units per meter.

    Returns:
        [rows, columns] float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values.astype(np.float64)
        meters = numbers / scale
        # The same code after a division: a copy in meters of an image in millimeters.
        is_code = (numbers == LARGEST_CODE) | np.isclose(meters, LARGEST_CODE / 1000, rtol=0, atol=2e-3)
        valid = np.isfinite(meters) & (numbers > 0) & ~is_code & (meters <= FARTHEST)
    valid &= ~_too_far(meters, valid)
    return np.where(valid, meters, 0.0).astype(np.float32)


def _too_far(meters: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that hold a sensor's code for "too far"."""
    is_code = np.zeros(meters.shape, dtype=np.bool_)
    count = int(valid.sum())
    needed = max(_MIN_SPIKE, _MIN_SPIKE_SHARE * count)
    millimeters = np.where(valid, meters, 0.0) * 1000.0
    far = millimeters >= _FAR_CODE - 0.5
    # A hall continues without a gap; a code is isolated, with almost nothing in the meter before it.
    before = (millimeters >= _FAR_CODE - 1000) & ~far
    stands_alone = far.sum() >= needed and before.sum() < 0.05 * far.sum()
    # If it is most of the image it must be a single number: otherwise the unit is wrong, which is found elsewhere.
    if stands_alone and (far.sum() <= 0.5 * count or np.ptp(millimeters[far]) < _CODE_WIDTH):
        is_code |= far
    largest = float(millimeters[~is_code].max(initial=0.0))
    for code in _NEAR_CODES:
        exact = np.abs(millimeters - code) < 0.5
        before = (millimeters > code - 60) & ~exact & (millimeters < code)
        if abs(largest - code) < 0.5 and exact.sum() >= needed and before.sum() < 0.05 * exact.sum():
            is_code |= exact
    return is_code
