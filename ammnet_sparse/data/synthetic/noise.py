"""Sensor noise: depth like a Kinect's, and colors like a camera's."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.compiled import compiled

Rng = np.random.Generator

DISPARITY_AT_ONE_METER = 43.5
"""Pixels: focal length 580 times the baseline of 0.075 m."""
DISPARITY_STEPS = 8
"""Steps per pixel in which a Kinect reports disparity: 3 mm apart at 1 m, 26 mm at 3 m."""
DISPARITY_NOISE = 0.02
"""Standard deviation in pixels of the disparity before it is rounded."""
SHADOW_SHARE = 0.4
"""Share of the projector's shadow that stays missing; of the published depth the rest is filled in."""
KINECT_RANGE = (0.5, 8.0)
"""Meters that a Kinect measures."""


def smooth_noise(rng: Rng, shape: tuple[int, int], *, cell: int) -> NDArray[np.float32]:
    """[rows, columns] float32: bilinear interpolation of uniform numbers in 0..1, ``cell`` pixels apart."""
    knots = rng.random([(size - 1) // cell + 2 for size in shape], dtype=np.float32)
    # Elementwise on purpose: a matrix product may round differently with other threads.
    low, share = _position(shape[0], cell)
    rows: NDArray[np.float32] = knots[low] * (1 - share)[:, None] + knots[low + 1] * share[:, None]
    low, share = _position(shape[1], cell)
    noise: NDArray[np.float32] = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return noise


def _position(size: int, cell: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Index of the knot before each pixel, and the share of the way to the next one."""
    low, rest = np.divmod(np.arange(size, dtype=np.int64), cell)
    return low, (rest / cell).astype(np.float32)


def kinect_depth(
    depth: NDArray[np.float32], rng: Rng, *, incidence: NDArray[np.float32], absorbing: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Depth as a Kinect would measure it: the same shape and unit, 0 where missing.

    Rounded disparity with noise, ragged edges, the projector's shadow beside near objects, holes at grazing
    angles and on glass and screens, nothing beyond 8 m or within 0.5 m, a missing rim, whole millimeters.

    Args:
        depth: [rows, columns] float32 in meters, 0 where missing.
        incidence: cosine between ray and surface normal.
        absorbing: True on glass and screens.
    """
    shape = depth.shape
    jittered = _lateral_jitter(depth, rng)
    with np.errstate(divide="ignore"):
        disparity = DISPARITY_AT_ONE_METER / jittered
        disparity += rng.normal(0, DISPARITY_NOISE, shape).astype(np.float32)
        measured = DISPARITY_AT_ONE_METER / (np.round(disparity * DISPARITY_STEPS) / DISPARITY_STEPS)
    patches = smooth_noise(rng, shape, cell=6)
    missing = (depth <= 0) | _shadow(depth, DISPARITY_AT_ONE_METER * SHADOW_SHARE)
    missing |= incidence < 0.22 * patches
    missing |= absorbing & (smooth_noise(rng, shape, cell=25) < rng.uniform(0.2, 0.6))
    missing |= ~((measured >= KINECT_RANGE[0]) & (measured <= KINECT_RANGE[1]))
    missing |= _rim(rng, shape)
    return np.where(missing, np.float32(0), np.round(measured * 1000) / 1000).astype(np.float32)


def _lateral_jitter(depth: NDArray[np.float32], rng: Rng) -> NDArray[np.float32]:
    """Every pixel takes the depth of one up to two pixels away: edges become ragged, planes keep their slope."""
    rows, columns = depth.shape
    shifts = np.clip(np.round(rng.normal(0, 0.6, (2, rows, columns))), -2, 2).astype(np.int64)
    v = np.clip(np.arange(rows)[:, None] + shifts[0], 0, rows - 1)
    u = np.clip(np.arange(columns)[None] + shifts[1], 0, columns - 1)
    other = depth[v, u]
    return np.where(np.abs(other - depth) > 0.05 * depth, other, depth)


def _rim(rng: Rng, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The rim that is missing where depth was warped to the color camera; wider at the top."""
    rows, columns = shape
    top, bottom, left, right = rng.integers(2, [24, 10, 8, 8])
    bend = np.round(6 * (2 * np.arange(columns) / columns - 1) ** 2)
    row = np.arange(rows)[:, None]
    rim = (row < top - bend) | (row >= rows - bottom + bend)
    rim[:, :left] = True
    rim[:, columns - right :] = True
    return rim


@compiled()
def _shadow(depth, disparity_at_one_meter):
    """Pixels that a projector to the right of the camera cannot see, row by row."""
    hidden = np.zeros(depth.shape, dtype=np.bool_)
    for v in range(depth.shape[0]):
        leftmost = np.inf
        for u in range(depth.shape[1] - 1, -1, -1):
            if depth[v, u] > 0:
                column = u - disparity_at_one_meter / depth[v, u]
                hidden[v, u] = column > leftmost + 0.5
                leftmost = min(leftmost, column)
    return hidden


def camera_image(color: NDArray[np.float32], rng: Rng) -> NDArray[np.uint8]:
    """[rows, columns, 3] uint8 RGB of a noise-free color image in 0..1: exposure, white balance, blur, grain."""
    gain = rng.uniform(0.85, 1.2) * rng.normal(1.0, 0.04, 3).astype(np.float32)
    grain = rng.normal(0, 0.02, color.shape[:2]).astype(np.float32)
    exposed = _blurred(color * gain.astype(np.float32)) + grain[..., None]
    return (np.clip(exposed, 0, 1) ** np.float32(0.8) * 255 + 0.5).astype(np.uint8)


def _blurred(color: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights 1 2 1 along rows and columns; this also smooths the steps of edges."""
    padded = np.pad(color, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / np.float32(16)
