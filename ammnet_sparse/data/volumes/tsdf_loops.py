"""The loops of ``tsdf.py`` for numba, where no kernels are compiled; csrc/cpu/tsdf.cpp gives the same bits.

They take ``intrinsics`` as (fx, fy, cx, cy), ``pose`` as camera to world and world vectors as (X, Y, Z).
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.compiled import compiled
from ammnet_sparse.data.grid import UNMAPPED, GridShape
from ammnet_sparse.data.volumes.tsdf import FINE_PER_VOXEL, TRUNCATION, TSDF_DEPTH_RANGE


def mapping_of_loops(arrays: list[NDArray[Any]], size: float, grid_shape: GridShape) -> NDArray[np.int32]:
    """[X, height, Y]: the last pixel that falls in each voxel, of (depth, intrinsics, pose, origin)."""
    mapping = np.full(grid_shape, UNMAPPED, dtype=np.int32)
    depth, intrinsics, pose, origin = arrays
    _scatter_pixels(depth, intrinsics, pose, origin, size, mapping)
    return mapping


def tsdf_of_loops(arrays: list[NDArray[Any]], size: float, grid_shape: GridShape) -> NDArray[np.float32]:
    """[X, height, Y], of (depth, intrinsics, pose, origin, rotation, translation, magnitude); rotation to camera."""
    depth, intrinsics, pose, origin, rotation, translation, magnitude = arrays
    surface = np.zeros([extent * FINE_PER_VOXEL for extent in grid_shape], dtype=np.bool_)
    _mark_surface(depth, intrinsics, pose, origin, size, surface)
    squared = truncated_squared_distance(surface)
    tsdf = np.zeros(grid_shape, dtype=np.float64)
    _integrate(depth, intrinsics, rotation, translation, origin, size, squared, magnitude, tsdf)
    return tsdf.astype(np.float32)


def truncated_squared_distance(surface: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Squared Euclidean distance in voxels to the nearest surface voxel, capped at 144 (12 voxels).

    Args:
        surface: [X, height, Y] bool.
    """
    squared = np.empty(surface.shape, dtype=np.uint16)
    buffer = np.empty(surface.shape, dtype=np.uint16)
    _distance_along_rows(surface, squared)
    _distance_along_height(squared, buffer)
    _distance_along_x(buffer, squared)
    return squared


@compiled(nogil=True)
def _voxel_of_pixel(u, v, d, intrinsics, pose, origin, size):
    """Voxel (X, height, Y) that pixel (column u, row v) of depth d falls in, possibly outside the grid."""
    x, y = (u - intrinsics[2]) * d / intrinsics[0], (v - intrinsics[3]) * d / intrinsics[1]
    i = np.floor((pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * d + pose[0, 3] - origin[0]) / size)
    j = np.floor((pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * d + pose[1, 3] - origin[1]) / size)
    k = np.floor((pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * d + pose[2, 3] - origin[2]) / size)
    return int(i), int(k), int(j)


@compiled(nogil=True)
def _inside(voxel, shape):
    return 0 <= voxel[0] < shape[0] and 0 <= voxel[1] < shape[1] and 0 <= voxel[2] < shape[2]


@compiled(nogil=True)
def _scatter_pixels(depth, intrinsics, pose, origin, size, mapping):
    """Writes each pixel's index into the voxel it falls in; row-major order, so the largest index stays."""
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            if depth[v, u] > 0.0:
                voxel = _voxel_of_pixel(u, v, np.float64(depth[v, u]), intrinsics, pose, origin, size)
                if _inside(voxel, mapping.shape):
                    mapping[voxel] = v * depth.shape[1] + u


@compiled(nogil=True)
def _mark_surface(depth, intrinsics, pose, origin, size, surface):
    """Sets every voxel that a pixel falls in."""
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            if depth[v, u] > 0.0:
                voxel = _voxel_of_pixel(u, v, np.float64(depth[v, u]), intrinsics, pose, origin, size)
                if _inside(voxel, surface.shape):
                    surface[voxel] = True


@compiled(nogil=True)
def _distance_along_rows(surface, squared):
    """Along Y: squared distance to the nearest surface voxel of the row, capped."""
    cap = TRUNCATION
    for x in range(surface.shape[0]):
        for h in range(surface.shape[1]):
            is_seen = False
            for y in range(surface.shape[2]):
                is_seen |= surface[x, h, y]
            if not is_seen:  # most rows
                squared[x, h] = cap * cap
                continue
            distance = cap
            for y in range(surface.shape[2]):
                distance = 0 if surface[x, h, y] else min(distance + 1, cap)
                squared[x, h, y] = distance
            distance = cap
            for y in range(surface.shape[2] - 1, -1, -1):
                distance = 0 if surface[x, h, y] else min(distance + 1, cap)
                if distance < squared[x, h, y]:
                    squared[x, h, y] = distance
                squared[x, h, y] *= squared[x, h, y]


@compiled(nogil=True)
def _lower(target, source, offset):
    """target = min(target, source + offset), elementwise over rows."""
    for y in range(target.shape[0]):
        target[y] = min(target[y], np.uint16(source[y] + offset))  # unlike a condition, compiled to vector instructions


@compiled(nogil=True)
def _rows_below_cap(squared):
    cap = TRUNCATION * TRUNCATION
    below = np.zeros(squared.shape[:2], dtype=np.bool_)
    for x in range(squared.shape[0]):
        for h in range(squared.shape[1]):
            for y in range(squared.shape[2]):
                if squared[x, h, y] < cap:
                    below[x, h] = True
                    break
    return below


@compiled(nogil=True)
def _distance_along_height(source, target):
    """Squared distances, in fine voxels, lowered by those of the rows above and below; ``target`` is written."""
    below = _rows_below_cap(source)
    height = source.shape[1]
    for x in range(source.shape[0]):
        for h in range(height):
            target[x, h] = source[x, h]
            for other in range(max(0, h - TRUNCATION + 1), min(height, h + TRUNCATION)):
                if other != h and below[x, other]:
                    _lower(target[x, h], source[x, other], np.uint16((other - h) * (other - h)))


@compiled(nogil=True)
def _distance_along_x(source, target):
    """The same along X, which makes the distances those in space."""
    below = _rows_below_cap(source)
    length = source.shape[0]
    for x in range(length):
        for h in range(source.shape[1]):
            target[x, h] = source[x, h]
            for other in range(max(0, x - TRUNCATION + 1), min(length, x + TRUNCATION)):
                if other != x and below[other, h]:
                    _lower(target[x, h], source[other, h], np.uint16((other - x) * (other - x)))


@compiled(nogil=True, error_model="numpy")
def _integrate(depth, intrinsics, rotation, translation, origin, size, squared, magnitude, tsdf):
    """Signs every fine voxel by projecting its position, and averages sign times magnitude over voxels."""
    fine = FINE_PER_VOXEL
    last_row, last_column = depth.shape[0] - 0.5, depth.shape[1] - 0.5
    fx, fy, cx, cy = intrinsics
    nearest, farthest = TSDF_DEPTH_RANGE
    for i in range(squared.shape[0]):
        for k in range(squared.shape[1]):
            px, pz = origin[0] + i * size, origin[2] + k * size
            row_x = rotation[0, 0] * px + rotation[0, 2] * pz + translation[0]
            row_y = rotation[1, 0] * px + rotation[1, 2] * pz + translation[1]
            row_z = rotation[2, 0] * px + rotation[2, 2] * pz + translation[2]
            for j in range(squared.shape[2]):
                py = origin[1] + j * size
                z = row_z + rotation[2, 1] * py
                if z <= 0.0:
                    continue
                # Half a pixel is added before the range test, so that truncation rounds to the nearest pixel.
                u = fx * (row_x + rotation[0, 1] * py) / z + cx
                v = fy * (row_y + rotation[1, 1] * py) / z + cy
                if u < -0.5 or v < -0.5 or u >= last_column or v >= last_row:
                    continue
                d = np.float64(depth[int(v + 0.5), int(u + 0.5)])
                if d < nearest or d > farthest:
                    continue
                distance = magnitude[squared[i, k, j]]
                tsdf[i // fine, k // fine, j // fine] += distance if d - z > -1e-4 else -distance
    tsdf /= fine * fine * fine
