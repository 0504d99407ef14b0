"""A small software renderer of colored voxels: one ray per pixel, traversed through the grid.

World coordinates are in voxels along (X, height, Y) with the origin at the outer corner of voxel (0, 0, 0).
X points to the right of the camera, height up, Y forward.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.compiled import compiled

_NO_HIT = -1
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
        eye: position of the camera, in voxels along (X, height, Y).
        target: point at the center of the picture.
        up: direction that points up in the picture; not parallel to the line of sight.
        height: extent of the picture at the target's distance, in voxels, from bottom to top.
        perspective: rays start at the eye; otherwise they are parallel.
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    up: tuple[float, float, float]
    height: float
    perspective: bool = True


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
    """Straight from above, as a floor plan: X to the right, Y (away from the camera) up."""
    x, height, y = grid_shape
    return View(
        eye=(0.5 * x, 3.0 * height, 0.5 * y),
        target=(0.5 * x, 0.0, 0.5 * y),
        up=(0.0, 0.0, 1.0),
        height=1.04 * max(x, y),
        perspective=False,
    )


def framed(view: View, occupied: NDArray[np.bool_]) -> View:
    """The view, moved across its line of sight and zoomed so that the occupied voxels [X, H, Y] fill the picture."""
    filled = np.argwhere(occupied)
    if not len(filled):
        return view
    points = np.concatenate([filled, filled + 1])
    right, up, forward, distance = _basis(view)
    shift = points.mean(0) - view.target
    for _ in range(3):  # in perspective the effect of a shift depends on the depth
        offsets = points - np.array(view.eye) - shift
        scale = distance / (offsets @ forward) if view.perspective else np.ones(len(points))
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
    origins, directions = _rays(view, fine)
    pixels = np.full((fine * fine, 3), _BACKGROUND, dtype=np.float32)
    pixels[_meets_base(occupied.shape, origins, directions)] = _BASE
    if occupied.any():
        # Rays skip the empty margin.
        filled = np.argwhere(occupied)
        first, last = filled.min(0), filled.max(0)
        box = tuple(slice(start, end + 1) for start, end in zip(first, last, strict=True))
        voxels, light = _cast(np.ascontiguousarray(occupied[box]), origins - first, directions)
        hit = voxels[:, 0] != _NO_HIT
        pixels[hit] = colors[box][tuple(voxels[hit].T)] * light[hit, None]
    blocks = pixels.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
    return blocks.mean((1, 3)).round().clip(0, 255).astype(np.uint8)


def _rays(view: View, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Origins and unit directions [size * size, 3] of the rays through the pixels, row by row from the top."""
    eye = np.array(view.eye, dtype=np.float64)
    right, up, forward, distance = _basis(view)
    steps = (np.arange(size) + 0.5) / size - 0.5
    across = steps[None, :, None] * view.height * right
    along = -steps[:, None, None] * view.height * up
    offsets = (across + along).reshape(-1, 3)
    if view.perspective:
        directions = forward * distance + offsets
        origins = np.broadcast_to(eye, directions.shape).copy()
    else:
        directions = np.broadcast_to(forward, offsets.shape).copy()
        origins = eye + offsets
    return origins, directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _basis(view: View) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Unit vectors that point right, up and forward in the picture, and the distance of the target."""
    sight = np.array(view.target, dtype=np.float64) - view.eye
    distance = float(np.linalg.norm(sight))
    forward = sight / distance
    # (X, height, Y) is a left-handed triple, hence up x forward and not forward x up.
    right = np.cross(view.up, forward)
    right /= np.linalg.norm(right)
    return right, np.cross(forward, right), forward, distance


def _meets_base(
    shape: tuple[int, ...], origins: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which rays [N] reach the lower face of the grid from above."""
    falling = directions[:, 1] < 0
    distance = -origins[:, 1] / np.where(falling, directions[:, 1], -1.0)
    x, y = (origins[:, axis] + distance * directions[:, axis] for axis in (0, 2))
    return falling & (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[2])


@compiled()
def _cast(occupied, origins, directions):  # type: ignore[no-untyped-def]
    """The first occupied voxel [N, 3] along each ray (-1: none) and the brightness [N] of the point it is hit at."""
    num_rays = origins.shape[0]
    voxels = np.full((num_rays, 3), _NO_HIT, dtype=np.int32)
    light = np.ones(num_rays, dtype=np.float32)
    cell = np.zeros(3, dtype=np.int64)
    crossing = np.zeros(3, dtype=np.float64)
    for ray in range(num_rays):
        origin, direction = origins[ray], directions[ray]
        enter, leave, face = _clip_to_grid(occupied.shape, origin, direction)
        if enter >= leave:
            continue
        for axis in range(3):
            cell[axis] = min(max(int(np.floor(origin[axis] + enter * direction[axis])), 0), occupied.shape[axis] - 1)
            crossing[axis] = np.inf
            if direction[axis] != 0.0:
                crossing[axis] = (cell[axis] + (1 if direction[axis] > 0 else 0) - origin[axis]) / direction[axis]
        distance = enter
        while not occupied[cell[0], cell[1], cell[2]]:
            face = 0 if crossing[0] < crossing[1] else 1
            face = 2 if crossing[2] < crossing[face] else face
            distance = crossing[face]
            cell[face] += 1 if direction[face] > 0 else -1
            if not 0 <= cell[face] < occupied.shape[face]:
                break
            crossing[face] += 1.0 / abs(direction[face])
        if 0 <= cell[face] < occupied.shape[face]:
            voxels[ray] = cell
            light[ray] = _light(occupied, cell, face, origin + distance * direction, direction[face])
    return voxels, light


@compiled()
def _clip_to_grid(shape, origin, direction):  # type: ignore[no-untyped-def]
    """Distances where a ray enters and leaves the grid (enter >= leave: it misses), and the axis it enters along."""
    enter, leave, face = 0.0, np.inf, 1
    for axis in range(3):
        if direction[axis] == 0.0:
            if not 0.0 <= origin[axis] < shape[axis]:
                leave = -1.0
            continue
        first, second = -origin[axis] / direction[axis], (shape[axis] - origin[axis]) / direction[axis]
        if min(first, second) > enter:
            enter, face = min(first, second), axis
        leave = min(leave, max(first, second))
    return enter, leave, face


@compiled()
def _light(occupied, cell, face, point, slope):  # type: ignore[no-untyped-def]
    """Brightness of a point on a face: by the axis faced, darker on the edges of cubes and in corners between them."""
    first, second = (face + 1) % 3, (face + 2) % 3
    across = min(max(point[first] - cell[first], 0.0), 1.0)
    along = min(max(point[second] - cell[second], 0.0), 1.0)
    neighbor = cell.copy()
    neighbor[face] -= 1 if slope > 0 else -1
    shadow = 0.0
    for step_across in range(-1, 2):
        for step_along in range(-1, 2):
            neighbor[first], neighbor[second] = cell[first] + step_across, cell[second] + step_along
            is_inside = True
            for axis in range(3):
                is_inside &= 0 <= neighbor[axis] < occupied.shape[axis]
            if is_inside and occupied[neighbor[0], neighbor[1], neighbor[2]]:
                # A neighbor darkens the points near it: the weight falls linearly over the face.
                near = 1.0 if step_across == 0 else (across if step_across > 0 else 1.0 - across)
                shadow += near * (1.0 if step_along == 0 else (along if step_along > 0 else 1.0 - along))
    light = _FACE_LIGHT[face] * (1.0 - _CORNER_SHADOW * min(shadow, 1.5))
    is_on_edge = min(across, 1.0 - across, along, 1.0 - along) < _EDGE_WIDTH
    return light * _EDGE_LIGHT if is_on_edge else light
