"""The operators that make mapping and TSDF of a depth image: csrc/cpu/tsdf.cpp, or NumPy with the same bits.

They take ``camera`` as (fx, fy, cx, cy), ``pose`` as camera to world and world vectors as (X, Y, Z).
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ammnet_sparse.data.grid import FINE_PER_VOXEL, TRUNCATION, TSDF_DEPTH_RANGE, UNMAPPED, GridShape
from ammnet_sparse.ops._library import define_operator


def as_tensors(arrays: Sequence[NDArray[np.floating]]) -> list[Tensor]:
    """Copies, as PyTorch warns of arrays that cannot be written."""
    return [torch.from_numpy(np.array(array, order="C")) for array in arrays]


def map_depth_reference(
    depth: Tensor, camera: Tensor, pose: Tensor, origin: Tensor, size: float, x: int, height: int, y: int
) -> Tensor:
    """[x, height, y] int32, the last pixel that falls in each voxel; the arguments are those of ``tsdf.cpp``."""
    pixels, voxels = _voxels_of_pixels(depth, camera, pose, origin, size, (x, height, y))
    mapping = np.full(x * height * y, UNMAPPED, dtype=np.int32)
    np.maximum.at(mapping, voxels, pixels)
    return torch.from_numpy(mapping.reshape(x, height, y))


def tsdf_of_depth_reference(
    depth: Tensor,
    camera: Tensor,
    pose: Tensor,
    origin: Tensor,
    rotation: Tensor,
    translation: Tensor,
    magnitude: Tensor,
    size: float,
    x: int,
    height: int,
    y: int,
) -> Tensor:
    """[x, height, y] float32; the arguments are those of ``tsdf.cpp``."""
    fine = FINE_PER_VOXEL
    shape = (x * fine, height * fine, y * fine)
    surface = np.zeros(shape, dtype=np.bool_)
    surface.reshape(-1)[_voxels_of_pixels(depth, camera, pose, origin, size, shape)[1]] = True
    distances = magnitude.numpy()[_truncated_squared_distance(surface)]
    px, pz, py = (origin[axis].item() + np.arange(extent) * size for axis, extent in zip((0, 2, 1), shape, strict=True))
    tsdf = np.empty((x, height, y), dtype=np.float32)
    for index in range(x):
        slab = slice(index * fine, (index + 1) * fine)
        signs = _signs(depth, camera, rotation, translation, positions=(px[slab], pz, py))
        values = (signs * distances[slab]).reshape(fine, height, fine, y, fine)
        total = np.zeros((height, y))
        for i, k, j in itertools.product(range(fine), repeat=3):  # in the order of tsdf.cpp, which decides the bits
            total += values[i, :, k, :, j]
        tsdf[index] = total / fine**3
    return torch.from_numpy(tsdf)


def _voxels_of_pixels(
    depth: Tensor, camera: Tensor, pose: Tensor, origin: Tensor, size: float, shape: GridShape
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pixels that fall in a voxel of the grid, in ascending order, and the flat indices of their voxels."""
    fx, fy, cx, cy = camera.tolist()
    rows, columns = np.indices(depth.shape)
    d = depth.numpy().astype(np.float64)
    point = ((columns - cx) * d / fx, (rows - cy) * d / fy, d)
    world = [row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3] for row in pose.tolist()]
    i, j, k = (np.floor((world[axis] - origin[axis].item()) / size) for axis in range(3))
    voxels = np.stack([i, k, j]).reshape(3, -1)
    is_inside = (voxels >= 0).all(axis=0) & (voxels < np.reshape(shape, (3, 1))).all(axis=0) & (d > 0).reshape(-1)
    pixels = is_inside.nonzero()[0]
    return pixels, np.ravel_multi_index(tuple(voxels[:, pixels].astype(np.int64)), shape)


def _truncated_squared_distance(surface: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Squared Euclidean distance in voxels to the nearest surface voxel, at most 144 (12 voxels); [X, height, Y]."""
    squared = np.where(surface, np.uint16(0), np.uint16(TRUNCATION**2))
    for axis in range(3):
        source = np.moveaxis(squared, axis, 0)
        lowered = source.copy()
        for offset in range(1, TRUNCATION):
            np.minimum(lowered[offset:], source[:-offset] + np.uint16(offset**2), out=lowered[offset:])
            np.minimum(lowered[:-offset], source[offset:] + np.uint16(offset**2), out=lowered[:-offset])
        squared = np.moveaxis(lowered, 0, axis)
    return squared


def _signs(
    depth: Tensor,
    camera: Tensor,
    rotation: Tensor,
    translation: Tensor,
    *,
    positions: Sequence[NDArray[np.floating]],
) -> NDArray[np.int8]:
    """[X, height, Y] of voxels: 1 in front of the surface, -1 behind it, 0 where nothing is observed.

    Args:
        positions: [X], [height] and [Y], of the voxels in the world.
    """
    fx, fy, cx, cy = camera.tolist()
    px, pz, py = positions
    at_row = [r[0] * px[:, None] + r[2] * pz + t for r, t in zip(rotation.tolist(), translation.tolist(), strict=True)]
    x, y, z = (at[..., None] + r[1] * py for at, r in zip(at_row, rotation.tolist(), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = fx * x / z + cx, fy * y / z + cy
    rows, columns = depth.shape
    is_seen = (z > 0) & (u >= -0.5) & (v >= -0.5) & (u < columns - 0.5) & (v < rows - 0.5)
    # Half a pixel is added after the range test, so that truncation rounds to the nearest pixel.
    pixels = [np.where(is_seen, place + 0.5, 0).astype(np.int64) for place in (v, u)]
    d = depth.numpy()[pixels[0], pixels[1]].astype(np.float64)
    nearest, farthest = TSDF_DEPTH_RANGE
    is_seen &= (d >= nearest) & (d <= farthest)
    return np.where(is_seen, np.where(d - z > -1e-4, np.int8(1), np.int8(-1)), np.int8(0))


map_depth = define_operator(
    "map_depth",
    "(Tensor depth, Tensor camera, Tensor pose, Tensor origin, float size, SymInt x, SymInt height, SymInt y) "
    "-> Tensor",
    reference=map_depth_reference,
    fake=lambda depth, camera, pose, origin, size, *shape: depth.new_empty(shape, dtype=torch.int32),
)
tsdf_of_depth = define_operator(
    "tsdf_of_depth",
    "(Tensor depth, Tensor camera, Tensor pose, Tensor origin, Tensor rotation, Tensor translation, Tensor magnitude, "
    "float size, SymInt x, SymInt height, SymInt y) -> Tensor",
    reference=tsdf_of_depth_reference,
    fake=lambda depth, *others: depth.new_empty(others[-3:]),
)
