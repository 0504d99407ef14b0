"""The mapping and the truncated signed distance function (TSDF) of a depth image, and their conventions on disk.

Arrays of voxels have the axes (X, height, Y). The *fine* grid has voxels of 0.02 m, four along each edge of a voxel of
the grid.

The functions check the arguments; the operators of ``tsdf_operators.py`` compute. Those and PyTorch are imported by the
first call, as most users of this module need the conventions only.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import (
    FINE_PER_VOXEL,
    GRID_SHAPE,
    TRUNCATION,
    UNMAPPED,
    UNMAPPED_ON_DISK,
    VOXEL_SIZE,
    GridShape,
)
from ammnet_sparse.data.volumes.camera import CameraView, checked_depth, intrinsics


def mapping_from_depth(
    depth: NDArray[np.floating],
    *,
    view: CameraView,
    grid_shape: GridShape = GRID_SHAPE,
) -> NDArray[np.int32]:
    """Which pixel hits each voxel; where several do, the largest pixel index wins.

    Args:
        depth: [rows, columns] float, meters along the optical axis; 0 or not finite where missing.
        view: intrinsics and pose of the depth image, and the grid's lower corner.
        grid_shape: voxels of 0.08 m along (X, height, Y).

    Returns:
        [X * height * Y] int32, pixel ``row * columns + column``, or ``UNMAPPED`` (-1) where no pixel hits;
        ``mapping_to_disk`` gives the convention of files.
    """
    from ammnet_sparse.data.volumes.tsdf_operators import as_tensors, map_depth

    arrays = (checked_depth(depth), intrinsics(view.camera), view.pose, view.origin)
    mapping: NDArray[np.int32] = map_depth(*as_tensors(arrays), VOXEL_SIZE, *grid_shape).numpy()
    return mapping.reshape(-1)


def mapping_to_disk(mapping: NDArray[np.int32]) -> NDArray[np.int32]:
    """The mapping of a 480x640 image as files hold it: 307200 instead of -1 where no pixel hits."""
    return np.where(mapping == UNMAPPED, np.int32(UNMAPPED_ON_DISK), mapping)


Unobserved = Literal["free", "surface"]
"""How a flipped TSDF encodes unobserved space: like distant free space, or like a surface."""


def tsdf_from_depth(
    depth: NDArray[np.floating],
    *,
    view: CameraView,
    grid_shape: GridShape = GRID_SHAPE,
) -> NDArray[np.float32]:
    """Truncated signed distance to the observed surface, averaged over 4x4x4 fine voxels. Not flipped.

    Arguments as ``mapping_from_depth``.

    Returns:
        [X * height * Y] float32 in [-1, 1]: +1 observed free, -1 occluded, 0 unobserved; the distance is Euclidean,
        between fine voxels, and saturates at 12 of them.
    """
    from ammnet_sparse.data.volumes.tsdf_operators import as_tensors, tsdf_of_depth

    pose = view.pose
    rotation, translation = pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3]  # rigid inverse: world to camera
    magnitude = np.minimum(1.0, np.sqrt(np.arange(TRUNCATION**2 + 1)) / TRUNCATION)
    arrays = (checked_depth(depth), intrinsics(view.camera), pose, view.origin, rotation, translation, magnitude)
    size = VOXEL_SIZE / FINE_PER_VOXEL
    tsdf: NDArray[np.float32] = tsdf_of_depth(*as_tensors(arrays), size, *grid_shape).numpy()
    return tsdf.reshape(-1)


def flip_tsdf(tsdf: NDArray[np.floating], *, unobserved: Unobserved = "free") -> NDArray[np.float32]:
    """The flipped convention of SSCNet, DDRNet and NYUCAD's ``tsdf_lr``: ``s * max(0.001, 1 - |t|)``.

    s is the sign of t, and +1 where ``|t| < 0.001``.

    Args:
        tsdf: not flipped, any shape.
        unobserved: value for t = 0, unobserved space. ``free``: 0.001, like free space far from a
            surface, as in SSCNet's source; ``surface``: +1, by the rule above, as in EdgeNet's files.
    """
    magnitude = np.abs(tsdf)
    sign = np.where((tsdf < 0) & (magnitude >= 0.001), np.float32(-1), np.float32(1))
    flipped = (sign * np.maximum(0.001, 1 - magnitude)).astype(np.float32)
    if unobserved == "free":
        flipped[tsdf == 0] = 0.001
    elif unobserved != "surface":
        raise ValueError(f"unobserved: expected 'free' or 'surface', found {unobserved!r}")
    return flipped


def unflip_tsdf(flipped: NDArray[np.floating]) -> NDArray[np.float32]:
    """The unflipped convention, ``t = s(1 - |f|)``, as far as flipping preserved it.

    Free space comes back as 0.999, occluded space as -0.999; small negative t lose their sign.
    """
    return (np.sign(flipped) * (1 - np.abs(flipped))).astype(np.float32)
