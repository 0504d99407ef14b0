"""The mapping: which pixel hits each voxel. Arrays of voxels have the axes (X, height, Y)."""

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import GRID_SHAPE, UNMAPPED, UNMAPPED_ON_DISK, VOXEL_SIZE, GridShape
from ammnet_sparse.data.volumes import kernels
from ammnet_sparse.data.volumes.camera import CameraView, checked_depth, intrinsics


def mapping_from_depth(
    depth: NDArray[np.floating],
    *,
    view: CameraView,
    grid_shape: GridShape = GRID_SHAPE,
    voxel_size: float = VOXEL_SIZE,
) -> NDArray[np.int32]:
    """Which pixel hits each voxel; where several do, the largest pixel index wins.

    Args:
        depth: [rows, columns] float, meters along the optical axis; 0 or not finite where missing.
        view: intrinsics and pose of the depth image, and the grid's lower corner.
        grid_shape: voxels along (X, height, Y).
        voxel_size: meters.

    Returns:
        [X * height * Y] int32, pixel ``row * columns + column``, or ``UNMAPPED`` (-1) where no pixel hits;
        ``mapping_to_disk`` gives the convention of files.
    """
    mapping = np.full(grid_shape, UNMAPPED, dtype=np.int32)
    camera = intrinsics(view.camera)
    kernels.scatter_pixels(checked_depth(depth), camera, view.pose, view.origin, voxel_size, mapping)
    return mapping.reshape(-1)


def mapping_to_disk(mapping: NDArray[np.int32]) -> NDArray[np.int32]:
    """The mapping of a 480x640 image as files hold it: 307200 instead of -1 where no pixel hits."""
    return np.where(mapping == UNMAPPED, np.int32(UNMAPPED_ON_DISK), mapping)
