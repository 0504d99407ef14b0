"""Which way is up, and along which axes a room is built, from the observed surface alone.

Floors, ceilings, table tops and walls make most of an indoor surface: their normals lie along the vertical, or across
it. So every direction near the camera's own upright is scored by how many normals do so (a vote), and the best one is
refined with the normals that agree with it, as in Gupta, Arbelaez and Malik (CVPR 2013). The walls' normals then give
the axes of the room.

All directions are in camera coordinates: x to the right, y down, z forward.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.camera.geometry.surface import Surface

Confidence = Literal["sure", "likely", "guess"]
Vector = NDArray[np.float64]

CAMERA_UP: Vector = np.array([0.0, -1.0, 0.0])
"""The camera's own upright: towards the upper edge of the image."""
MAX_TILT = 60.0
"""Degrees between the camera's own upright and the vertical that are searched."""
_TILT_PRIOR = 40.0
"""Degrees of tilt at which a direction's vote counts 1/e. Looking into a corner, the three axes of a room get equal
votes: then the one nearest to the camera's upright is the vertical."""
_SAMPLES_VOTING = 3000
_DIRECTION_STEP = 3.0
_ALONG, _ACROSS = 12.0, 8.0
"""Degrees from the vertical, and from the horizontal, within which a normal votes."""
_ACROSS_SHARE = 0.5
"""A normal across a direction says less about it than one along it."""
_REFINING = (15.0, 10.0, 6.0, 4.0)
_RIVAL_DISTANCE = 25.0
_MIN_SAMPLES = 200
_LEAST_VOTE, _MAX_AXES = 0.4, 3
"""Share of the largest vote that another axis must have, and how many are looked at."""
_AXIS_TOLERANCES = (5.0, 4.0, 3.0)
"""Degrees within which a wall lies along an axis of the room, round by round of its refinement."""
_MIN_ROOM_SHARE = 0.35
"""Of the upright surface that must lie along the room's axes. By chance it would be 0.11."""


@dataclasses.dataclass(frozen=True, eq=False)
class Gravity:
    """The vertical, seen from the camera.

    Attributes:
        up: [3] float64 of length 1.
        agreement: share of the samples whose normal lies within 10 degrees of the vertical or of the horizontal.
        rival: vote of the best direction more than 25 degrees off, as a share of the vote of ``up``.
        tilt: degrees between ``up`` and the camera's own upright.
        confidence: sure, likely or guess.
        vote: mean vote of the normals for ``up``, 0..1.
    """

    up: Vector
    agreement: float
    rival: float
    tilt: float
    confidence: Confidence
    vote: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Heading:
    """The horizontal direction that becomes the world's Y.

    Attributes:
        forward: [3] float64 of length 1, across ``up``.
        is_room_axis: an axis of the room, at most 45 degrees from the camera's direction, as in the published data;
            otherwise the camera's direction itself.
        room_share: share of the upright surface that lies along the room's axes.
        turn: degrees from the camera's direction to ``forward``, to the right positive.
    """

    forward: Vector
    is_room_axis: bool
    room_share: float
    turn: float


def find_gravity(surface: Surface) -> Gravity:
    """The vertical that the normals of a surface speak for, of the directions near the image's upright.

    ``upright.find_upright`` compares it with all others. Without enough surface (200 samples) it is the camera's own
    upright, as a guess.
    """
    if len(surface) < _MIN_SAMPLES:
        return Gravity(CAMERA_UP.copy(), 0.0, 1.0, 0.0, "guess")
    # Every k-th sample: they come row by row, so these are spread over the image.
    normals = surface.normals[:: max(1, len(surface) // _SAMPLES_VOTING)]
    directions = _directions_around(CAMERA_UP, MAX_TILT, step=_DIRECTION_STEP)
    tilt = np.degrees(np.arccos(np.clip(directions @ CAMERA_UP, -1, 1)))
    votes = _votes(directions, normals) * np.exp(-((tilt / _TILT_PRIOR) ** 2))
    up = refined(directions[votes.argmax()], surface.normals)
    is_far = directions @ up < math.cos(math.radians(_RIVAL_DISTANCE))
    best = float(votes.max())
    rival = float(votes[is_far].max() / best) if best > 0 and is_far.any() else 1.0
    along = np.abs(surface.normals @ up)
    tolerance = math.radians(10.0)
    agreement = float(((along > math.cos(tolerance)) | (along < math.sin(tolerance))).mean())
    vote = float(_votes(up[None], normals)[0])
    return Gravity(up, agreement, rival, angle_between(up, CAMERA_UP), _confidence(agreement, rival), vote)


def room_axes(surface: Surface, *, apart_from: Vector) -> list[tuple[Vector, float]]:
    """Axes that many normals lie along or across, of the whole sphere, and their votes; each stands for both ways.

    Args:
        surface: with enough samples.
        apart_from: [3] an axis that is known: others are 25 degrees and more away from it and from each other.
    """
    normals = surface.normals[:: max(1, len(surface) // _SAMPLES_VOTING)]
    directions = _directions_around(CAMERA_UP, 90.0, step=_DIRECTION_STEP)
    votes = _votes(directions, normals)
    least = _LEAST_VOTE * float(votes.max())
    is_left = np.abs(directions @ apart_from) < math.cos(math.radians(_RIVAL_DISTANCE))
    axes: list[tuple[Vector, float]] = []
    while is_left.any() and len(axes) < _MAX_AXES:
        best = int(np.where(is_left, votes, -1.0).argmax())
        if votes[best] < least:
            break
        axis = refined(directions[best], surface.normals)
        axes.append((axis, float(votes[best])))
        for found in (axis, directions[best]):
            is_left &= np.abs(directions @ found) < math.cos(math.radians(_RIVAL_DISTANCE))
    return axes


def find_heading(surface: Surface, up: ArrayLike) -> Heading:
    """The room axis nearest to the camera's horizontal direction; that direction itself where walls do not say.

    The published frames are turned so: in all 795 NYU training frames the camera's direction is within 47 degrees of
    the world's Y, evenly spread, and the walls lie along X and Y.
    """
    up = np.asarray(up, dtype=np.float64)
    forward = _horizontal_forward(up)
    right = np.cross(forward, up)
    upright = surface.select(np.abs(surface.normals @ up) < math.sin(math.radians(12.0)))
    turn, share = _room_axis(upright, forward, right) if len(upright) >= _MIN_SAMPLES else (0.0, 0.0)
    if share < _MIN_ROOM_SHARE:
        return Heading(forward, False, share, 0.0)
    axis = math.cos(turn) * forward + math.sin(turn) * right
    return Heading(axis, True, share, math.degrees(turn))


def world_pose(up: ArrayLike, *, forward: ArrayLike, camera_height: float) -> NDArray[np.float64]:
    """Camera-to-world [4, 4] of the project's world: Z up, floor at 0, camera at X = Y = 0.

    Args:
        up: [3] the vertical in camera coordinates.
        forward: [3] the world's Y in camera coordinates; what it has along ``up`` is taken out.
        camera_height: meters above the floor.
    """
    z = np.asarray(up, dtype=np.float64)
    z = z / np.linalg.norm(z)
    y = np.asarray(forward, dtype=np.float64)
    y = y - (y @ z) * z
    y /= np.linalg.norm(y)
    pose = np.eye(4)
    pose[:3, :3] = np.cross(y, z), y, z
    pose[2, 3] = camera_height
    return pose


def angle_between(first: ArrayLike, second: ArrayLike) -> float:
    """Degrees between two directions of length 1."""
    return math.degrees(math.acos(float(np.clip(np.dot(first, second), -1.0, 1.0))))


def _confidence(agreement: float, rival: float) -> Confidence:
    if agreement >= 0.6 and rival <= 0.8:
        return "sure"
    return "likely" if agreement >= 0.4 and rival <= 0.95 else "guess"


def _directions_around(center: Vector, reach: float, *, step: float) -> NDArray[np.float64]:
    """[N, 3] evenly spread directions, about ``step`` degrees apart, within ``reach`` degrees of ``center``."""
    count = int(4 * math.pi / math.radians(step) ** 2)
    index = np.arange(count) + 0.5
    z, turn = 1 - 2 * index / count, math.pi * (1 + math.sqrt(5)) * index  # a Fibonacci spiral
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)
    near: NDArray[np.float64] = directions[directions @ center > math.cos(math.radians(reach))]
    return near


def _votes(directions: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """[D] mean vote of the normals [N, 3] for each direction [D, 3], 0..1."""
    squared = (normals.astype(np.float32) @ directions.T.astype(np.float32)) ** 2
    along = np.maximum(0, 1 - (1 - squared) / math.sin(math.radians(_ALONG)) ** 2)
    across = np.maximum(0, 1 - squared / math.sin(math.radians(_ACROSS)) ** 2)
    return np.asarray((along + _ACROSS_SHARE * across).mean(axis=0), dtype=np.float64)


def refined(up: Vector, normals: NDArray[np.float64]) -> Vector:
    """The direction nearest to ``up`` that is most along the normals along it, and most across those across it."""
    for tolerance in _REFINING:
        along = normals @ up
        is_along = np.abs(along) > math.cos(math.radians(tolerance))
        is_across = np.abs(along) < math.sin(math.radians(tolerance))
        vertical, horizontal = normals[is_along], normals[is_across]
        axes = np.linalg.eigh(horizontal.T @ horizontal - vertical.T @ vertical)[1]
        if abs(axes[:, 0] @ up) < math.cos(math.radians(2 * tolerance)):
            break  # too few normals to hold it
        up = axes[:, 0] * np.sign(axes[:, 0] @ up)
    return up


def _horizontal_forward(up: Vector) -> Vector:
    """The camera's direction without what it has along ``up``; the image's upward direction where it looks down."""
    ahead = np.array([0.0, 0.0, 1.0])
    if abs(ahead @ up) > math.cos(math.radians(20.0)):
        ahead = CAMERA_UP * -np.sign(ahead @ up)
    forward = ahead - (ahead @ up) * up
    return np.asarray(forward / np.linalg.norm(forward), dtype=np.float64)


def _room_axis(upright: Surface, forward: Vector, right: Vector) -> tuple[float, float]:
    """Radians from ``forward`` to the right of the room axis that is at most 45 degrees off, and the share along it.

    Surfaces count by their area: something turned, near the camera, fills more of the picture than the walls.
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
