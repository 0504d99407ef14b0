"""The room around the camera: its floor, the direction of its walls, and the pose of the camera in it.

The floor is the lowest large level surface below the camera, or an assumption where none is seen.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.camera.geometry.surface import CAMERA_UP, Confidence, Surface, Vector, angle_between, pixel_rays
from ammnet_sparse.data.volumes.camera import Camera

ASSUMED_CAMERA_HEIGHT = 1.36
"""Meters; the median over the 795 NYU training frames (a tenth lie below 1.15, a tenth above 1.50)."""
STANDING_HEIGHT = 0.9
"""Meters: a level surface so far below the camera is hardly a table, bed or seat. In the NYU training frames the
camera is 0.93 m and more above the floor in 99 of 100, and furniture without a visible floor is nearer."""
_USUAL_HEIGHT = (1.1, 2.2)
_BIN = 0.02
_THICKNESS = 0.05
"""Meters on either side of a level that belong to it."""
_LEVEL_ANGLE = 12.0
_MIN_AREA = 0.12
"""Square meters."""
_SURE_AREA = 0.4
_LARGEST_SAMPLE = 0.02
"""Largest area of one sample in square meters: areas seen at a slant are uncertain."""
_BELOW = 0.15
_MAX_SHARE_BELOW = 0.01
"""Largest share of all samples 0.15 m and more below the floor: reflections and outliers."""
_NEAR_FLOOR_AREA, _FLOOR_EXTENT = 1.0, 2.8
"""Least area in square meters of a floor nearer than the usual height, and least length in meters of one nearer yet."""
_LOW_FLOOR_AREA, _LOW_FLOOR_EXTENTS = 2.4, (1.6, 1.2)
"""Least area in square meters, and length and width in meters, of a floor just below the camera of a robot. A bed of
that size is seen together with the floor around it."""
_PLANE_AREA, _PLANE_WIDTH = 0.8, 0.7
"""Least area in square meters, and least width in meters, of a floor that corrects the vertical."""
_MAX_CORRECTION = 5.0
"""Degrees."""
_AXIS_TOLERANCES = (5.0, 4.0, 3.0)
"""Degrees within which a wall lies along an axis of the room, round by round of its refinement."""
_MIN_ROOM_SHARE = 0.35
"""Least share of the upright surface that is parallel to the room's axes. By chance it would be 0.11."""
_MIN_WALL_SAMPLES = 200
_SIDE_ANGLE = 45.0
"""Degrees of a normal from the horizontal, and from the normal of a wall, up to which a sample may be of the wall."""
_LAYER, _WALL_THICKNESSES = 0.05, (0.15, 0.12, 0.1, 0.1)
"""Meters: bins of the search for walls, and what lies on either side of a wall's plane, round by round of its fit."""
_WALL_AREA, _WALL_LENGTH, _WALL_SHARE, _WALL_DEVIATION = 2.5, 1.8, 0.5, 0.05
"""A wall is large from so many square meters, meters and this share of the upright surface on, if it is so even: mean
deviation from its plane in meters."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """The floor below the camera.

    Attributes:
        below: meters that it is below the camera.
        is_seen: found in the depth; otherwise assumed.
        area: square meters seen of it, 0 where it is assumed.
        confidence: sure, likely or guess.
        reason: the evidence for it, for people.
        may_be: meters below the camera of a level surface that is seen and could be the floor of an assumed one.
    """

    below: float
    is_seen: bool
    area: float
    confidence: Confidence
    reason: str
    may_be: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Heading:
    """The horizontal direction that becomes the world's Y.

    Attributes:
        forward: [3] float64 of length 1, perpendicular to ``up``.
        is_room_axis: an axis of the room, at most 45 degrees from the camera's direction, as in the published data;
            otherwise the camera's direction itself.
        room_share: share of the upright surface that lies along the room's axes.
        turn: degrees from the camera's direction to ``forward``, to the right positive.
    """

    forward: Vector
    is_room_axis: bool
    room_share: float
    turn: float


def find_floor(surface: Surface, up: ArrayLike) -> Floor:
    """The floor, given the vertical.

    It is the lowest level surface of some size with nothing beneath it. Nearer than 1.1 m below the camera it must be
    large, and nearer than 0.9 m longer than furniture, or wide and of several square meters. Without such a surface the
    camera is assumed at the height at which people hold one, or higher if something lower is seen.

    Args:
        surface: what the camera sees.
        up: [3] the vertical in camera coordinates.
    """
    up = np.asarray(up, dtype=np.float64)
    heights = surface.points @ up
    is_level = surface.normals @ up > math.cos(math.radians(_LEVEL_ANGLE))
    level = _lowest_level(heights, is_level, np.minimum(surface.areas, _LARGEST_SAMPLE))
    if level is None:
        return _assumed(heights, "no level surface is seen")
    members = is_level & (np.abs(heights - level) < _THICKNESS)
    area, below = float(surface.areas[members].sum()), -level
    is_small = below < _USUAL_HEIGHT[0] and area < _NEAR_FLOOR_AREA
    if is_small or (below < STANDING_HEIGHT and not _is_large(surface.select(members), area)):
        assumed = _assumed(
            heights,
            f"the lowest level surface is only {below:.2f} m below the camera and has only {area:.1f} m2, "
            "so it may be a table, bed or seat",
        )
        return dataclasses.replace(assumed, may_be=below)
    reason = f"a level surface of {area:.1f} m2 is seen, with nothing beneath it"
    is_usual = _USUAL_HEIGHT[0] <= below <= _USUAL_HEIGHT[1] and area >= _SURE_AREA
    return Floor(below, True, area, "sure" if is_usual else "likely", reason)


def level_to_floor(
    depth: NDArray[np.floating], up: ArrayLike, *, camera: Camera, below: float, may_tilt: bool = True
) -> tuple[NDArray[np.float64], float]:
    """The vertical and the camera's height corrected by a plane through every pixel of the floor.

    Where enough floor is seen (0.8 square meters, 0.7 m wide) and its plane is within 5 degrees of ``up``, its normal
    becomes the vertical: what matters to the grid is that the floor fills one layer. Otherwise only the height
    changes: a smaller floor is less reliable than walls and furniture.

    Args:
        depth: [rows, columns] float, meters, 0 where missing.
        up: [3] the vertical in camera coordinates, as found before.
        camera: intrinsics of the depth image.
        below: meters that the floor is below the camera, as found before.
        may_tilt: False keeps ``up``.

    Returns:
        [3] vertical and meters.
    """
    up = np.asarray(up, dtype=np.float64)
    x, y = pixel_rays(depth.shape, camera)  # type: ignore[arg-type]
    z = depth.astype(np.float64)
    normal, height = up, below
    for thickness in (0.06, 0.04, 0.03):
        # Along a ray of slope s a plane at height -h is met at depth h / s: one height image serves every round.
        slope = normal[0] * x[None] + normal[1] * y[:, None] + normal[2]
        is_floor = (depth > 0) & (np.abs(slope * z + height) < thickness * np.maximum(1.0, z / 2.5))
        rows, columns = np.nonzero(is_floor)
        if len(rows) < 500:
            return up, below
        points = np.stack([x[columns], y[rows], np.ones(len(rows))], axis=1) * z[rows, columns][:, None]
        # Errors of depth grow with its square, so inverse depth is fitted: (a, b, c) . (x, y, 1) = 1 / z.
        rays = points / points[:, 2:]
        plane = np.linalg.lstsq(rays.T @ rays, rays.T @ (1.0 / points[:, 2]), rcond=None)[0]
        length = float(np.linalg.norm(plane))
        fitted = -plane / length
        area = float((points[:, 2] ** 2 / np.maximum(-(rays @ fitted), 0.05)).sum() / (camera.fx * camera.fy))
        is_small = not may_tilt or area < _PLANE_AREA or _extents(points[::7])[1] < _PLANE_WIDTH
        if is_small or angle_between(fitted, up) > _MAX_CORRECTION:
            return up, float(-np.median(points @ up))
        normal, height = fitted, 1.0 / length
    return normal, height


def find_heading(surface: Surface, up: ArrayLike) -> Heading:
    """The room axis nearest to the camera's horizontal direction; that direction itself if no walls show one.

    The published frames are oriented like this: in all 795 NYU training frames the camera's direction is within 47
    degrees of the world's Y, evenly spread, and the walls lie along X and Y.
    """
    up = np.asarray(up, dtype=np.float64)
    forward = _horizontal_forward(up)
    right = np.cross(forward, up)
    upright = surface.select(np.abs(surface.normals @ up) < math.sin(math.radians(12.0)))
    turn, share = _room_axis(upright, forward, right) if len(upright) >= _MIN_WALL_SAMPLES else (0.0, 0.0)
    sides = surface.select(np.abs(surface.normals @ up) < math.sin(math.radians(_SIDE_ANGLE)))
    if len(sides) >= _MIN_WALL_SAMPLES and (wall := _large_wall(sides, forward, right)) is not None:
        turn, share = wall
    if share < _MIN_ROOM_SHARE:
        return Heading(forward, False, share, 0.0)
    axis = math.cos(turn) * forward + math.sin(turn) * right
    return Heading(axis, True, share, math.degrees(turn))


def world_pose(up: ArrayLike, *, forward: ArrayLike, height: float) -> NDArray[np.float64]:
    """Camera-to-world [4, 4] of the project's world: Z up, floor at 0, camera at X = Y = 0.

    Args:
        up: [3] the vertical in camera coordinates.
        forward: [3] the world's Y in camera coordinates; its component along ``up`` is removed.
        height: meters of the camera above the floor.
    """
    z = np.asarray(up, dtype=np.float64)
    z = z / np.linalg.norm(z)
    y = np.asarray(forward, dtype=np.float64)
    y = y - (y @ z) * z
    y /= np.linalg.norm(y)
    pose = np.eye(4)
    pose[:3, :3] = np.cross(y, z), y, z
    pose[2, 3] = height
    return pose


def _lowest_level(
    heights: NDArray[np.float64], is_level: NDArray[np.bool_], areas: NDArray[np.float64]
) -> float | None:
    """Height relative to the camera of the lowest level surface below it with nothing beneath it, or None."""
    candidates = is_level & (heights < -0.2)
    if not candidates.any():
        return None
    lowest = float(heights[candidates].min())
    bins = ((heights[candidates] - lowest) / _BIN).astype(np.int64)
    area = np.bincount(bins, weights=areas[candidates], minlength=2 * round(_THICKNESS / _BIN) + 1)
    reach = round(_THICKNESS / _BIN)
    around = np.convolve(area, np.ones(2 * reach + 1), mode="same")[: len(area)]
    for index in np.flatnonzero(around >= _MIN_AREA):
        if around[index] < around[index : index + 2 * reach + 1].max():
            continue  # on the way up to a peak
        level = lowest + (float(index) + 0.5) * _BIN
        members = np.abs(heights[candidates] - level) < _THICKNESS
        level = float(np.average(heights[candidates][members], weights=areas[candidates][members]))
        if (heights < level - _BELOW).mean() <= _MAX_SHARE_BELOW:
            return level
    return None


def _is_large(level: Surface, area: float) -> bool:
    """Whether a level surface just below the camera is longer than furniture, or a floor by its area and extent."""
    length, width = _extents(level.points)
    is_wide = length >= _LOW_FLOOR_EXTENTS[0] and width >= _LOW_FLOOR_EXTENTS[1]
    return length >= _FLOOR_EXTENT or (area >= _LOW_FLOOR_AREA and is_wide)


def _extents(points: NDArray[np.float64]) -> tuple[float, float]:
    """Meters along the two longest directions of a cloud, longest first, without its outermost twentieths."""
    centered = points - points.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered)[1]
    low, high = np.percentile(centered @ axes[:, :0:-1], [5, 95], axis=0)
    first, second = (high - low) / 0.9
    return float(first), float(second)


def _assumed(heights: NDArray[np.float64], reason: str) -> Floor:
    lowest = -float(np.percentile(heights, 1)) if len(heights) else 0.0
    height = max(ASSUMED_CAMERA_HEIGHT, lowest)
    return Floor(height, False, 0.0, "guess", f"{reason}; assumed {height:.2f} m below the camera")


def _horizontal_forward(up: Vector) -> Vector:
    """The camera's direction without its component along ``up``; the image's upward direction if it looks down."""
    ahead = np.array([0.0, 0.0, 1.0])
    if abs(ahead @ up) > math.cos(math.radians(20.0)):
        ahead = CAMERA_UP * -np.sign(ahead @ up)
    forward = ahead - (ahead @ up) * up
    return np.asarray(forward / np.linalg.norm(forward), dtype=np.float64)


def _room_axis(upright: Surface, forward: Vector, right: Vector) -> tuple[float, float]:
    """Radians from ``forward`` to the right of the room axis that is at most 45 degrees off, and the share along it.

    Surfaces count by their area: something near the camera, at another angle, fills more of the picture than walls.
    """
    degrees = np.degrees(np.arctan2(upright.normals @ right, upright.normals @ forward)) % 90.0
    area = np.bincount(np.minimum(degrees.astype(np.int64), 89), weights=upright.areas, minlength=90)
    smooth = sum(np.roll(area, shift) for shift in range(-2, 3))
    turn = float(np.argmax(smooth)) + 0.5
    for tolerance in _AXIS_TOLERANCES:
        off = (degrees - turn + 45.0) % 90.0 - 45.0
        is_along = np.abs(off) < tolerance
        turn += float(np.average(off[is_along], weights=upright.areas[is_along])) if is_along.any() else 0.0
    is_along = np.abs((degrees - turn + 45.0) % 90.0 - 45.0) < _AXIS_TOLERANCES[0]
    share = float(upright.areas[is_along].sum() / upright.areas.sum())
    turn = (turn + 45.0) % 90.0 - 45.0
    return math.radians(turn), share


def _large_wall(sides: Surface, forward: Vector, right: Vector) -> tuple[float, float] | None:
    """As ``_room_axis``, by the planes that the samples lie on; None unless a large wall is among them.

    Normals follow every wave of uneven depth, most of them its steepest parts; a plane averages over it.
    """
    points = np.stack([sides.points @ forward, sides.points @ right])
    normals = np.stack([sides.normals @ forward, sides.normals @ right])
    normals /= np.linalg.norm(normals, axis=0)
    few, areas = points[:, ::4], sides.areas[::4]
    concentration = [sum(float((_layers(q, areas) ** 2).sum()) for q in _turned(few, degrees)) for degrees in range(90)]
    turn = float(np.argmax(concentration))
    for thickness in _WALL_THICKNESSES:
        covariance = variance = share = 0.0
        is_large = False
        for quarter in (0.0, 90.0):
            offset, along = _turned(points, turn + quarter)
            level = offset.min() + (int(_layers(offset, sides.areas).argmax()) + 0.5) * _LAYER
            is_wall = np.abs(offset - level) < thickness
            is_wall &= np.abs(_turned(normals, turn + quarter)[0]) > math.cos(math.radians(_SIDE_ANGLE))
            if not is_wall.any():
                continue
            offset, along, weights = offset[is_wall], along[is_wall], sides.areas[is_wall]
            offset -= np.average(offset, weights=weights)
            along -= np.average(along, weights=weights)
            covariance += float((weights * along * offset).sum())
            variance += float((weights * along**2).sum())
            area, length = float(weights.sum()), float(np.ptp(np.percentile(along, [5, 95]))) / 0.9
            deviation = math.sqrt(float(np.average(offset**2, weights=weights)))
            of_sides = area / float(sides.areas.sum())
            is_wide = area >= _WALL_AREA and length >= _WALL_LENGTH
            is_large |= is_wide and of_sides >= _WALL_SHARE and deviation <= _WALL_DEVIATION
            share += of_sides
        turn -= math.degrees(covariance / variance) if variance else 0.0
    return (math.radians((turn + 45.0) % 90.0 - 45.0), share) if is_large else None


def _turned(vectors: NDArray[np.float64], degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Components of vectors [2, N] (forward, right) along an axis ``degrees`` to the right, and perpendicular to it."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cosine * vectors[0] + sine * vectors[1], cosine * vectors[1] - sine * vectors[0]


def _layers(offsets: NDArray[np.float64], areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area by offset, in bins of ``_LAYER`` from the least one, each with its neighbors."""
    bins = ((offsets - offsets.min()) / _LAYER).astype(np.int64)
    return np.convolve(np.bincount(bins, weights=areas), np.ones(3), mode="same")
