"""What a frame keeps from the placement of the previous frame of the same camera.

Between two frames a camera moves little or not at all. Then the previous vertical, floor and room, each
corrected with the new depth, are steadier than new ones. If the depth contradicts them, nothing is kept.
"""

import dataclasses
import math

import numpy as np

from ammnet_sparse.camera.geometry.room import Floor, Heading
from ammnet_sparse.camera.geometry.surface import Confidence, Surface, Vector, angle_between
from ammnet_sparse.camera.geometry.vertical import agreement_with, refined

_MAX_TURN = 12.0
"""Largest rotation in degrees of a camera against the vertical, or the room, between two frames."""
_STANDS_STILL = 2.0
"""Degrees of correction below which it is noise and smoothed, and above which the camera was rotated."""
_SHARE_OF_NEW = 0.3
_MIN_AGREEMENT, _MIN_SHARE_OF_AGREEMENT = 0.35, 0.75
"""Least share of the surface parallel or perpendicular to the vertical, absolute and relative to the previous frame."""
_SAME_FLOOR = 0.10
"""Meters."""
_BELOW, _MAX_SHARE_BELOW = 0.15, 0.01
_MIN_SAMPLES = 200


def kept_up(up: Vector, surface: Surface, *, confidence: Confidence, agreement: float) -> Vector | None:
    """The vertical of the previous frame, corrected with this frame's depth; None if the depth contradicts it.

    Args:
        up: [3] float64 of length 1, the vertical of the previous frame in camera coordinates.
        surface: of the new depth.
        confidence: of that vertical.
        agreement: share of the previous surface parallel or perpendicular to it.
    """
    if len(surface) < _MIN_SAMPLES:
        return up
    if confidence == "guess":
        return None
    found = refined(up, surface.normals)
    least = max(_MIN_AGREEMENT, _MIN_SHARE_OF_AGREEMENT * agreement)
    is_contradicted = angle_between(found, up) > _MAX_TURN or agreement_with(found, surface.normals) < least
    return None if is_contradicted else found


def smoothed_up(before: Vector, now: Vector) -> Vector:
    """The vertical: the new one if the camera was rotated, otherwise one in between."""
    return now if angle_between(now, before) > _STANDS_STILL else _between(before, now)


def smoothed_floor(before: Floor, now: Floor, surface: Surface, up: Vector) -> Floor:
    """The floor: the new one, smoothed, if both agree; the old one if none is seen and nothing lies below it."""
    if now.confidence == "sure" and not now.is_seen:
        return now  # told
    if now.is_seen:
        off = now.below - before.below
        if before.is_seen and abs(off) <= _SAME_FLOOR:
            return dataclasses.replace(now, below=before.below + _SHARE_OF_NEW * off)
        return now
    if len(surface) == 0:
        return dataclasses.replace(before, reason=_kept_reason(before))
    heights = surface.points @ up
    is_contradicted = (heights < -before.below - _BELOW).mean() > _MAX_SHARE_BELOW
    if is_contradicted:
        return now
    return dataclasses.replace(before, reason=_kept_reason(before))


def smoothed_heading(before: Heading, now: Heading, up: Vector) -> Heading:
    """The room axis that was the world's Y before, smoothed; a new one if the camera was rotated too far."""
    old = before.forward - (before.forward @ up) * up
    old /= np.linalg.norm(old)
    if not now.is_room_axis:
        return dataclasses.replace(before, forward=old) if before.is_room_axis else now
    right = np.cross(now.forward, up)
    axes = [now.forward, right, -now.forward, -right]
    nearest = max(axes, key=lambda axis: float(axis @ old))
    off = angle_between(nearest, old)
    ahead = np.array([0.0, 0.0, 1.0])
    if not before.is_room_axis or off > _MAX_TURN or nearest @ ahead < 0.5 * math.sqrt(1 - (up @ ahead) ** 2):
        return now
    forward = nearest if off > _STANDS_STILL else _between(old, nearest)
    forward = forward - (forward @ up) * up
    forward /= np.linalg.norm(forward)
    turn = now.turn + math.degrees(math.atan2(float(np.cross(forward, now.forward) @ up), float(forward @ now.forward)))
    return dataclasses.replace(now, forward=forward, turn=turn)


def _kept_reason(floor: Floor) -> str:
    return f"kept from the frame before: {floor.reason.split(': ')[-1]}"


def _between(before: Vector, now: Vector) -> Vector:
    direction = (1 - _SHARE_OF_NEW) * before + _SHARE_OF_NEW * now
    return np.asarray(direction / np.linalg.norm(direction), dtype=np.float64)
