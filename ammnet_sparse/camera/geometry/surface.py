"""The observed surface as samples: points, normals and areas from a depth image, in camera coordinates.

Camera coordinates are x to the right, y down, z forward, in meters.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.data.volumes.camera import Camera

Confidence = Literal["sure", "likely", "guess"]
Vector = NDArray[np.float64]

CAMERA_UP: Vector = np.array([0.0, -1.0, 0.0])
"""The camera's own upright: towards the upper edge of the image."""
SAMPLE_STEP = 4
"""Pixels between samples."""
WINDOW_RADIUS = 8
"""Pixels on every side of a sample that its normal is fitted to."""
_MIN_FILLED = 0.5
"""Least share of a window that must have depth."""
_MAX_RESIDUAL = 0.012
"""Relative depth residual of a window above which it holds an edge and not a surface."""
_MIN_COSINE = 0.12
"""Least cosine between normal and line of sight: surfaces seen at less than 7 degrees have no reliable normal."""


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """N samples of the surface that a camera sees.

    Attributes:
        points: [N, 3] float64, meters.
        normals: [N, 3] float64 of length 1, towards the camera.
        areas: [N] float64, square meters of surface that a sample stands for.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    areas: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.areas)

    def select(self, mask: NDArray[np.bool_]) -> "Surface":
        """The samples where ``mask`` [N] is True."""
        return Surface(self.points[mask], self.normals[mask], self.areas[mask])


def angle_between(first: ArrayLike, second: ArrayLike) -> float:
    """Degrees between two directions of length 1."""
    return math.degrees(math.acos(float(np.clip(np.dot(first, second), -1.0, 1.0))))


def pixel_rays(shape: tuple[int, int], camera: Camera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x/z of every column and y/z of every row."""
    rows, columns = shape
    across, down = np.arange(columns, dtype=np.float64), np.arange(rows, dtype=np.float64)
    return (across - camera.cx) / camera.fx, (down - camera.cy) / camera.fy


def surface_from_depth(depth: NDArray[np.floating], *, camera: Camera) -> Surface:
    """Samples of the surface at every fourth row and column, where depth is smooth enough to have a normal.

    Over a plane the inverse depth is linear in the pixel coordinates, and the noise of stereo and structured light is
    uniform in it; so each normal comes from a least-squares fit of inverse depth over a window of 17x17 pixels.

    Args:
        depth: [rows, columns] float, meters along the optical axis, 0 where missing.
        camera: intrinsics of the depth image.
    """
    valid = depth > 0
    inverse = np.zeros(depth.shape, dtype=np.float64)
    inverse[valid] = 1.0 / depth[valid]
    v, u = np.arange(depth.shape[0], dtype=np.float64)[:, None], np.arange(depth.shape[1], dtype=np.float64)[None]
    weight = valid.astype(np.float64)
    # Over the rows of each window first, where terms with the factor u need no sums of their own.
    of_1, of_v, of_vv, of_r, of_vr, of_rr = (
        _window_sums(image, axis=0)
        for image in (weight, weight * v, weight * v * v, inverse, inverse * v, inverse * inverse)
    )
    count, sum_u, sum_v, sum_r, sum_uu, sum_uv, sum_vv, sum_ur, sum_vr, sum_rr = (
        _window_sums(band, axis=1)
        for band in (of_1, of_1 * u, of_v, of_r, of_1 * u * u, of_v * u, of_vv, of_r * u, of_vr, of_rr)
    )
    usable = count >= _MIN_FILLED * (2 * WINDOW_RADIUS + 1) ** 2
    usable &= valid[::SAMPLE_STEP, ::SAMPLE_STEP]
    count = np.maximum(count, 1.0)
    u_mean, v_mean, r_mean = sum_u / count, sum_v / count, sum_r / count
    uu, vv, uv = sum_uu / count - u_mean**2, sum_vv / count - v_mean**2, sum_uv / count - u_mean * v_mean
    ur, vr = sum_ur / count - u_mean * r_mean, sum_vr / count - v_mean * r_mean
    determinant = uu * vv - uv * uv
    usable &= determinant > 1.0
    determinant = np.where(usable, determinant, 1.0)
    slope_u, slope_v = (ur * vv - vr * uv) / determinant, (vr * uu - ur * uv) / determinant
    residual = sum_rr / count - r_mean**2 - slope_u * ur - slope_v * vr
    usable &= np.sqrt(np.maximum(residual, 0.0)) < _MAX_RESIDUAL * np.maximum(r_mean, 1e-9)
    return _samples(usable, (slope_u, slope_v), r_mean - slope_u * u_mean - slope_v * v_mean, camera=camera)


def _samples(
    usable: NDArray[np.bool_],
    slopes: tuple[NDArray[np.float64], NDArray[np.float64]],
    at_corner: NDArray[np.float64],
    *,
    camera: Camera,
) -> Surface:
    """Surface samples from inverse depth ``at_corner + slope_u u + slope_v v`` around each sampled pixel."""
    slope_u, slope_v = (slope[usable] for slope in slopes)
    v, u = (index * SAMPLE_STEP for index in np.nonzero(usable))
    inverse = at_corner[usable] + slope_u * u + slope_v * v
    # 1/z = a x/z + b y/z + c is the plane a x + b y + c z = 1, so (a, b, c) points away from the camera.
    away = np.stack(
        [
            slope_u * camera.fx,
            slope_v * camera.fy,
            at_corner[usable] + slope_u * camera.cx + slope_v * camera.cy,
        ],
        axis=1,
    )
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(len(u))], axis=1)
    normals = -away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    cosine = -(normals * rays).sum(1) / np.linalg.norm(rays, axis=1)
    good = (inverse > 1e-3) & (cosine > _MIN_COSINE)
    points = rays[good] / inverse[good, None]
    # A pixel of depth z covers (z/f)^2 perpendicular to the optical axis, and more of an inclined surface.
    slant = -(normals[good] * rays[good]).sum(1)
    areas = SAMPLE_STEP**2 * points[:, 2] ** 2 / (camera.fx * camera.fy * slant)
    return Surface(points, normals[good], areas)


def _window_sums(image: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Sums along an axis over the windows around every sampled pixel, cut off at the border of the image."""
    length = 2 * WINDOW_RADIUS + 1
    whole, rest = divmod(length, SAMPLE_STEP)
    samples = -(-image.shape[axis] // SAMPLE_STEP)
    blocks = samples + whole
    padding = [(0, 0), (0, 0)]
    padding[axis] = (WINDOW_RADIUS, blocks * SAMPLE_STEP + rest - WINDOW_RADIUS - image.shape[axis])
    padded = np.moveaxis(np.pad(image, padding), axis, 0)
    # A window is some whole blocks of SAMPLE_STEP pixels and the first pixels of the next.
    parts = padded[: blocks * SAMPLE_STEP].reshape(blocks, SAMPLE_STEP, -1).sum(axis=1)
    sums = sum(parts[first : first + samples] for first in range(whole))
    for offset in range(rest):
        sums = sums + padded[whole * SAMPLE_STEP + offset :: SAMPLE_STEP][:samples]
    return np.moveaxis(np.asarray(sums, dtype=np.float64), 0, axis)
