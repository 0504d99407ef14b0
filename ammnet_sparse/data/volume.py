"""From a depth image and fine labels to the volumes of the grid: mapping, TSDF, labels, label weight.

World axes are X lateral, Y forward, Z up, in metres, floor at Z = 0. Arrays of voxels have the axes
(X, height, Y); world points, origins and poses keep the order (X, Y, Z). The *fine* grid has voxels of 0.02 m,
four along each edge of a voxel of the grid.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.data import volume_kernels as kernels
from ammnet_sparse.data.grid import (
    FLOOR_OFFSET,
    GRID_SHAPE,
    IGNORE_LABEL,
    NUM_CLASSES,
    UNMAPPED,
    UNMAPPED_ON_DISK,
    VOXEL_SIZE,
)
from ammnet_sparse.data.volume_kernels import FINE_PER_VOXEL, TRUNCATION

FINE_VOXEL_SIZE = VOXEL_SIZE / FINE_PER_VOXEL
FINE_GRID_SHAPE = (GRID_SHAPE[0] * FINE_PER_VOXEL, GRID_SHAPE[1] * FINE_PER_VOXEL, GRID_SHAPE[2] * FINE_PER_VOXEL)
FORWARD_OFFSET = 3.4
"""Metres in front of the camera around which the grid of an own frame is centred."""

RAW_TO_CLASS = np.array(
    [0, 1, 2, 3, 4, 11, 5, 6, 7, 8, 8, 10, 10, 10, 11, 11, 9, 8, 11]
    + [11, 11, 11, 11, 11, 11, 11, 11, 10, 10, 11, 8, 10, 11, 9, 11, 11, 11],
    dtype=np.uint8,
)
"""[37] class of every raw label of SSCNet."""
NUM_RAW_LABELS = len(RAW_TO_CLASS)

GridShape = tuple[int, int, int]


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


NYU_CAMERA = Camera(518.8579, 519.4696, 325.58, 253.74)
"""Intrinsics behind the published NYU files (mapping, TSDF)."""
SSCNET_CAMERA = Camera(518.8579, 518.8579, 320.0, 240.0)
"""Intrinsics of SSCNet, MonoScene and of NYUCAD's rendered depth; on NYU files half of the mapping would be wrong."""


def own_frame_origin(pose: ArrayLike) -> NDArray[np.float64]:
    """World position (X, Y, Z) in metres of the lower corner of the grid for a frame without published origin.

    The grid is centred 3.4 m in front of the camera; its lowest layer starts 0.05 m below the floor.

    Args:
        pose: [4, 4] camera to world; floor at Z = 0.
    """
    pose = _checked_pose(pose)
    extent = np.array(GRID_SHAPE, dtype=np.float64)[[0, 2, 1]] * VOXEL_SIZE
    origin = pose[:3, 2] * FORWARD_OFFSET + pose[:3, 3] - extent / 2
    origin[2] = FLOOR_OFFSET
    return origin


def mapping_from_depth(
    depth: NDArray[np.floating],
    *,
    camera: Camera,
    pose: ArrayLike,
    origin: ArrayLike,
    grid_shape: GridShape = GRID_SHAPE,
    voxel_size: float = VOXEL_SIZE,
) -> NDArray[np.int32]:
    """Which pixel hits each voxel; where several do, the largest pixel index wins.

    Args:
        depth: [rows, columns] float, metres along the optical axis; 0 or not finite where missing.
        camera: intrinsics of the depth image.
        pose: [4, 4] camera to world.
        origin: [3] world position of the grid's lower corner, metres.
        grid_shape: voxels along (X, height, Y).
        voxel_size: metres.

    Returns:
        [X * height * Y] int32, pixel ``row * columns + column``, or ``UNMAPPED`` (-1) where no pixel hits;
        ``mapping_to_disk`` gives the convention of files.
    """
    depth, pose, origin = _checked_depth(depth), _checked_pose(pose), _checked_origin(origin)
    mapping = np.full(grid_shape, UNMAPPED, dtype=np.int32)
    kernels.scatter_pixels(depth, _intrinsics(camera), pose, origin, voxel_size, mapping)
    return mapping.reshape(-1)


def mapping_to_disk(mapping: NDArray[np.int32]) -> NDArray[np.int32]:
    """The mapping of a 480x640 image as files hold it: 307200 instead of -1 where no pixel hits."""
    return np.where(mapping == UNMAPPED, np.int32(UNMAPPED_ON_DISK), mapping)


def tsdf_from_depth(
    depth: NDArray[np.floating],
    *,
    camera: Camera,
    pose: ArrayLike,
    origin: ArrayLike,
    grid_shape: GridShape = GRID_SHAPE,
    voxel_size: float = VOXEL_SIZE,
) -> NDArray[np.float32]:
    """Truncated signed distance to the observed surface, averaged over 4x4x4 fine voxels. Not flipped.

    Arguments as ``mapping_from_depth``.

    Returns:
        [X * height * Y] float32 in [-1, 1]: +1 observed free, -1 occluded, 0 unobserved; the distance is Euclidean,
        between fine voxels, and saturates at 12 of them.
    """
    depth, pose, origin = _checked_depth(depth), _checked_pose(pose), _checked_origin(origin)
    fine_size = voxel_size / FINE_PER_VOXEL
    surface = np.zeros([size * FINE_PER_VOXEL for size in grid_shape], dtype=np.bool_)
    kernels.mark_surface(depth, _intrinsics(camera), pose, origin, fine_size, surface)
    squared = truncated_squared_distance(surface)
    # Rigid inverse: world to camera.
    rotation, translation = pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3]
    magnitude = np.minimum(1.0, np.sqrt(np.arange(TRUNCATION**2 + 1)) / TRUNCATION)
    tsdf = np.zeros(grid_shape, dtype=np.float64)
    kernels.integrate(depth, _intrinsics(camera), rotation, translation, origin, fine_size, squared, magnitude, tsdf)
    return tsdf.astype(np.float32).reshape(-1)


def truncated_squared_distance(surface: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Squared Euclidean distance in voxels to the nearest surface voxel, capped at 144 (12 voxels).

    Args:
        surface: [X, height, Y] bool.
    """
    squared = np.empty(surface.shape, dtype=np.uint16)
    buffer = np.empty(surface.shape, dtype=np.uint16)
    kernels.distance_along_rows(surface, squared)
    kernels.distance_along_height(squared, buffer)
    kernels.distance_along_x(buffer, squared)
    return squared


def flip_tsdf(tsdf: NDArray[np.floating]) -> NDArray[np.float32]:
    """The flipped convention of SSCNet, DDRNet and NYUCAD's ``tsdf_lr``: ``s * max(0.001, 1 - |t|)``.

    s is the sign of t, and +1 where ``|t| < 0.001``: unobserved and surface both become +1.
    """
    magnitude = np.abs(tsdf)
    sign = np.where((tsdf < 0) & (magnitude >= 0.001), np.float32(-1), np.float32(1))
    return (sign * np.maximum(0.001, 1 - magnitude)).astype(np.float32)


def unflip_tsdf(flipped: NDArray[np.floating]) -> NDArray[np.float32]:
    """The unflipped convention, ``t = s(1 - |f|)``, as far as flipping kept it.

    Free space comes back as 0.999, occluded space as -0.999; small negative t lose their sign.
    """
    return (np.sign(flipped) * (1 - np.abs(flipped))).astype(np.float32)


def classes_from_raw(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes 0..11 of raw labels 0..36; 255 stays. Any shape, uint8.

    Raises:
        ValueError: a label that is neither 0..36 nor 255.
    """
    table = np.full(256, NUM_CLASSES, dtype=np.uint8)
    table[:NUM_RAW_LABELS] = RAW_TO_CLASS
    table[IGNORE_LABEL] = IGNORE_LABEL
    classes = table[labels]
    if (classes == NUM_CLASSES).any():
        unknown = np.unique(labels[classes == NUM_CLASSES])
        raise ValueError(
            f"labels: expected raw labels 0..{NUM_RAW_LABELS - 1} or {IGNORE_LABEL}, found {unknown[:8].tolist()}"
        )
    return classes


def downsample_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes of voxels from those of their 4x4x4 fine voxels.

    With n0 empty and n255 ignored fine voxels: where ``n0 + n255 > 0.95 * 64`` the most frequent of all 64 values,
    ties to the smallest; elsewhere the most frequent of 1..11, ties to the smallest.

    Args:
        labels: [4 X, 4 height, 4 Y] uint8, classes 0..11 or 255 (``classes_from_raw`` comes first).

    Returns:
        [X, height, Y] uint8.

    Raises:
        ValueError: axes that are not multiples of 4, another type, or unknown classes.
    """
    if labels.ndim != 3 or any(size % FINE_PER_VOXEL for size in labels.shape) or labels.dtype != np.uint8:
        raise ValueError(
            f"labels: expected uint8 with three axes that are multiples of {FINE_PER_VOXEL}, "
            f"found {labels.dtype} {labels.shape}"
        )
    x, height, y = (size // FINE_PER_VOXEL for size in labels.shape)
    classes = np.empty((x, height, y), dtype=np.uint8)
    if not kernels.vote(np.ascontiguousarray(labels), classes):
        raise ValueError(
            f"labels: expected classes 0..{NUM_CLASSES - 1} or {IGNORE_LABEL}; raw labels go through classes_from_raw"
        )
    return classes


def label_weight_of(label: NDArray[np.integer], tsdf: NDArray[np.floating]) -> NDArray[np.uint8]:
    """1 where loss and evaluation look: occupied voxels, and those well behind a surface (tsdf < -0.5).

    Args:
        label: class 0..11 or 255, any shape.
        tsdf: not flipped, float32 (of a float16 file the mask differs in places), the same shape.
    """
    return (((label > 0) & (label < IGNORE_LABEL)) | (tsdf < -0.5)).astype(np.uint8)


def _intrinsics(camera: Camera) -> NDArray[np.float64]:
    return np.array(dataclasses.astuple(camera), dtype=np.float64)


def _checked_depth(depth: NDArray[np.floating]) -> NDArray[np.float32]:
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise ValueError(
            f"depth: expected a float image [rows, columns] in metres, found {depth.dtype} {list(depth.shape)}"
        )
    return np.ascontiguousarray(np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0), dtype=np.float32)


def _checked_pose(pose: ArrayLike) -> NDArray[np.float64]:
    matrix = np.ascontiguousarray(pose, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"pose: expected a finite 4x4 camera-to-world matrix, found {matrix.tolist()}")
    if np.abs(matrix[:3, :3].T @ matrix[:3, :3] - np.eye(3)).max() > 1e-2:
        raise ValueError(f"pose: expected a rotation in its upper left 3x3, found {matrix[:3, :3].tolist()}")
    return matrix


def _checked_origin(origin: ArrayLike) -> NDArray[np.float64]:
    vector = np.ascontiguousarray(origin, dtype=np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise ValueError(f"origin: expected three finite world coordinates in metres, found {vector.tolist()}")
    return vector
