"""A small software renderer of colored voxels: their visible faces, drawn from the farthest to the nearest.

World coordinates are in voxels along (X, height, Y) with the origin at the outer corner of voxel (0, 0, 0).
X points to the right of the camera, height up, Y forward.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Light on a face by the axis it faces: the sides left and right, top and bottom, front and back.
_FACE_LIGHT = (0.74, 1.0, 0.86)
_EDGE_WIDTH, _EDGE_LIGHT = 0.045, 0.82
_CORNER_SHADOW = 0.26
_BACKGROUND = (255, 255, 255)
# The lower face of the grid, to show the position of the scene in it.
_BASE = (241, 241, 241)
_SUPERSAMPLING = 2
_MARGIN = 1.06
"""Height of a picture over that of its content."""


@dataclass(frozen=True)
class View:
    """The viewpoint of a picture.

    Attributes:
        eye: position of the camera, in voxels along (X, height, Y); all voxels are in front of it.
        target: point at the center of the picture.
        up: direction that points up in the picture; not parallel to the line of sight.
        height: extent of the picture at the target's distance, in voxels, from bottom to top.
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    up: tuple[float, float, float]
    height: float


def camera_side_view(grid_shape: tuple[int, int, int]) -> View:
    """From behind and above the camera, which is in front of the face Y = 0 at the center of X, looking along Y."""
    x, height, y = grid_shape
    return View(
        eye=(0.5 * x, 1.9 * height, -1.0 * y),
        target=(0.5 * x, 0.33 * height, 0.42 * y),
        up=(0.0, 1.0, 0.0),
        height=1.12 * x,
    )


def top_view(grid_shape: tuple[int, int, int]) -> View:
    """From so far above that it is a floor plan: X to the right, Y (away from the camera) up."""
    x, height, y = grid_shape
    return View(
        eye=(0.5 * x, 1e6 * height, 0.5 * y),
        target=(0.5 * x, 0.0, 0.5 * y),
        up=(0.0, 0.0, 1.0),
        height=1.04 * max(x, y),
    )


def framed(view: View, occupied: NDArray[np.bool_]) -> View:
    """The view, moved across its line of sight and zoomed so that the occupied voxels [X, H, Y] fill the picture."""
    filled = np.argwhere(occupied)
    if not len(filled):
        return view
    points = np.concatenate([filled, filled + 1])
    right, up, forward, distance = _basis(view)
    shift = points.mean(0) - view.target
    for _ in range(3):  # the effect of a shift depends on the depth
        offsets = points - np.array(view.eye) - shift
        scale = distance / (offsets @ forward)
        first, last = (
            reduce(offsets @ np.stack([right, up], axis=1) * scale[:, None], axis=0) for reduce in (np.min, np.max)
        )
        shift = shift + (first + last) @ np.stack([right, up]) / 2
    eye, target = (tuple((np.array(point) + shift).tolist()) for point in (view.eye, view.target))
    return dataclasses.replace(view, eye=eye, target=target, height=_MARGIN * float((last - first).max()))


def render_voxels(
    colors: NDArray[np.uint8], occupied: NDArray[np.bool_], *, view: View, size: int
) -> NDArray[np.uint8]:
    """Picture of the occupied voxels as shaded cubes on white.

    Args:
        colors: [X, H, Y, 3] uint8, RGB of each voxel.
        occupied: [X, H, Y] bool, which voxels are drawn.
        view: the viewpoint.
        size: edge of the picture in pixels.

    Returns:
        [size, size, 3] uint8 RGB; row 0 is the top.
    """
    if occupied.ndim != 3 or colors.shape != (*occupied.shape, 3):
        raise ValueError(
            f"colors: expected [X, H, Y, 3] to match occupied {list(occupied.shape)}, found {list(colors.shape)}"
        )
    fine = size * _SUPERSAMPLING
    eye, directions = np.array(view.eye), _directions(view, fine)
    pixels = np.full((fine * fine, 3), _BACKGROUND, dtype=np.float32)
    pixels[_meets_base(occupied.shape, eye, directions)] = _BASE
    nearest = np.full(fine * fine, np.inf)
    for axis in range(3):
        for side in (0, 1):
            cells = _faces(occupied, eye, axis=axis, side=side)
            face, pixel = _covered(cells, view, axis=axis, side=side, size=fine)
            level = cells[:, axis] + side - eye[axis]
            distance = level[face] / directions[axis][pixel]
            first, second = (
                eye[other] + distance * directions[other][pixel] - cells[face, other] for other in _others(axis)
            )
            is_hit = (first >= 0) & (first < 1) & (second >= 0) & (second < 1) & (distance < nearest[pixel])
            face, pixel, first, second = (values[is_hit] for values in (face, pixel, first, second))
            light = _light(occupied, cells, face, first, second, axis=axis, side=side)
            # Of faces at the same pixel the nearest is the last one, which stays.
            nearest[pixel] = distance[is_hit]
            pixels[pixel] = colors[tuple(cells.T)][face] * light[:, None]
    blocks = pixels.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
    return blocks.mean((1, 3)).round().clip(0, 255).astype(np.uint8)


def _others(axis: int) -> tuple[int, int]:
    """The two axes within a face perpendicular to ``axis``."""
    return (axis + 1) % 3, (axis + 2) % 3


def _directions(view: View, size: int) -> NDArray[np.float64]:
    """Directions [3, size * size] from the eye through the pixels, row by row from the top."""
    right, up, forward, distance = _basis(view)
    steps = view.height * ((np.arange(size) + 0.5) / size - 0.5)
    across, along = steps * right[:, None], -steps * up[:, None]
    return (across[:, None] + along[:, :, None] + distance * forward[:, None, None]).reshape(3, -1)


def _basis(view: View) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Unit vectors that point right, up and forward in the picture, and the distance of the target."""
    sight = np.array(view.target, dtype=np.float64) - view.eye
    distance = float(np.linalg.norm(sight))
    forward = sight / distance
    # (X, height, Y) is a left-handed triple, hence up x forward and not forward x up.
    right = np.cross(view.up, forward)
    right /= np.linalg.norm(right)
    return right, np.cross(forward, right), forward, distance


def _meets_base(shape: tuple[int, ...], eye: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rays [N] from the eye reach the lower face of the grid from above."""
    falling = directions[1] < 0
    distance = -eye[1] / np.where(falling, directions[1], -1.0)
    x, y = (eye[axis] + distance * directions[axis] for axis in (0, 2))
    return falling & (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[2])


def _in_front(occupied: NDArray[np.bool_], *, axis: int, side: int) -> NDArray[np.bool_]:
    """[X + 2, H + 2, Y + 2] whether the neighbor on a side (0: lower, 1: higher) is occupied, with a margin of one."""
    return np.roll(np.pad(occupied, 1), 1 - 2 * side, axis)


def _faces(occupied: NDArray[np.bool_], eye: NDArray[np.float64], *, axis: int, side: int) -> NDArray[np.int64]:
    """[F, 3] occupied voxels whose face on a side is free and turned to the eye, farthest first."""
    cells = np.argwhere(occupied & ~_in_front(occupied, axis=axis, side=side)[1:-1, 1:-1, 1:-1])
    distance = (eye[axis] - cells[:, axis] - side) * (2 * side - 1)
    order = np.argsort(-distance, kind="stable")
    return cells[order[: np.count_nonzero(distance > 0)]]


def _covered(
    cells: NDArray[np.int64], view: View, *, axis: int, side: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a face and a pixel of the smallest rectangle around it, as two arrays [N], face by face."""
    right, up, forward, distance = _basis(view)
    corners = np.zeros((4, 3))
    corners[:, axis] = side
    corners[:, _others(axis)] = [(0, 0), (0, 1), (1, 0), (1, 1)]
    offsets = cells[:, None] + corners - view.eye
    scale = distance / (offsets @ forward) * size / view.height
    places = np.stack([-(offsets @ up) * scale, offsets @ right * scale]) + (size - 1) / 2
    first = np.ceil(places.min(axis=2)).clip(0, size).astype(np.int64)
    num_rows, num_columns = (np.floor(places.max(axis=2)).clip(-1, size - 1).astype(np.int64) - first + 1).clip(0)
    counts = num_rows * num_columns
    face = np.repeat(np.arange(len(cells)), counts)
    row, column = np.divmod(np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts), num_columns[face])
    return face, (first[0][face] + row) * size + first[1][face] + column


def _light(
    occupied: NDArray[np.bool_],
    cells: NDArray[np.int64],
    face: NDArray[np.int64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    axis: int,
    side: int,
) -> NDArray[np.float32]:
    """Brightness [N] of points (0..1, 0..1) on faces: by the axis, darker on edges and in corners between cubes."""
    in_front = _in_front(occupied, axis=axis, side=side).astype(np.float32)
    # A neighbor darkens the points near it: the weight falls linearly over the face. So the shadow is linear along
    # both axes between those of the corners, each of which four voxels share.
    for other in _others(axis):
        in_front += np.roll(in_front, 1, other)
    shadow = np.zeros(len(face), dtype=np.float64)
    for at_first, at_second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = np.ones(3, dtype=np.int64)
        corner[list(_others(axis))] += at_first, at_second
        weight = (first if at_first else 1 - first) * (second if at_second else 1 - second)
        shadow += weight * in_front[tuple((cells + corner).T)][face]
    light = _FACE_LIGHT[axis] * (1.0 - _CORNER_SHADOW * np.minimum(shadow, 1.5))
    edge = np.minimum(np.minimum(first, 1.0 - first), np.minimum(second, 1.0 - second))
    light[edge < _EDGE_WIDTH] *= _EDGE_LIGHT
    return light.astype(np.float32)
