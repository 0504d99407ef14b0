"""The vertical, the floor and the room by a given pose, as far as the depth does not contradict it."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.poses import PoseConvention
from ammnet_sparse.camera.geometry.room import Floor, Heading
from ammnet_sparse.camera.geometry.surface import CAMERA_UP, Confidence, Surface, Vector, angle_between
from ammnet_sparse.camera.geometry.vertical import Candidate, Vertical

POSE_AXES = ("x", "y", "z", "-x", "-y", "-z")
"""Names of the directions of a given pose's world that may be up."""
_AXIS_AGREES, _AXIS_LIKELY = 4.0, 15.0
"""Largest angle in degrees from the vertical found in the depth to an axis of the pose's world that is then taken for
the vertical: if the one found is sure, and if it is not."""
_AXIS_WEIGHTS = {"z": 3.0, "y": 2.0, "-y": 2.0}
"""Factor of a direction's score if it is an axis of the pose's world that usually points up."""
_OTHER_AXIS_WEIGHT, _HEIGHT_WEIGHT = 0.3, 5.0
"""The same for the other axes, and if the pose's height above its 0 is the height above the floor seen."""
_FLOOR_AGREES = 0.10
"""Largest distance in meters between the floor seen and the pose's height 0 at which the pose is trusted."""
_POSE_HEIGHTS = (0.3, 2.5)
_ROOM_AGREES = 3.0
"""Largest angle in degrees between an axis of the pose's world and the walls at which the pose is trusted."""


def axis_direction(pose: NDArray[np.float64], axis: str) -> Vector:
    """[3] an axis of the pose's world, such as ``-y``, in camera coordinates."""
    direction = np.array(pose["xyz".index(axis[-1]), :3], dtype=np.float64)
    direction /= np.linalg.norm(direction)
    return -direction if axis.startswith("-") else direction


def nearest_axis(pose: NDArray[np.float64], up: Vector) -> tuple[str, float]:
    """The axis of the pose's world that is nearest to a direction in camera coordinates, and degrees between them."""
    angles = {axis: angle_between(axis_direction(pose, axis), up) for axis in POSE_AXES}
    nearest = min(angles, key=lambda axis: angles[axis])
    return nearest, angles[nearest]


def pose_by_depth(
    vertical: Vertical,
    pose: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    convention: PoseConvention,
    pose_up: str | None,
) -> tuple[NDArray[np.float64], str]:
    """The pose, read with the other convention of camera axes if only that fits the depth; and a note.

    A camera with y up seems tilted to the other side if it is read as one with y down. Without a tilt, the axis that is
    up has the other sign, and the floor another height.

    Args:
        pose: read with ``convention``.
        other: read with the other one.
        pose_up: the axis of the pose's world that is up, if it is known.
    """
    if not vertical.candidates:
        return pose, ""

    def off(one: NDArray[np.float64]) -> float:
        if pose_up is not None:
            return angle_between(axis_direction(one, pose_up), vertical.up)
        return nearest_axis(one, vertical.up)[1]

    def has_floor(one: NDArray[np.float64]) -> bool:
        floor, axis = vertical.candidates[0].floor, pose_up or nearest_axis(one, vertical.up)[0]
        return floor.is_seen and abs(floor.below - _height_in_pose(one, axis)) <= _FLOOR_AGREES

    names: dict[PoseConvention, str] = {"opencv": "y down and z forward", "opengl": "y up and z back"}
    another: PoseConvention = "opengl" if convention == "opencv" else "opencv"
    here, there = off(pose), off(other)
    fits_better = there <= _AXIS_AGREES and here > _AXIS_AGREES and there < 0.5 * here
    if fits_better or (max(here, there) <= _AXIS_AGREES and has_floor(other) and not has_floor(pose)):
        why = f"{here:.1f} degrees off" if fits_better else "off the height of the floor"
        return other, (
            f"; its camera has {names[another]}, as {another}: read as {convention} it would be {why} "
            f"(`pose_convention={convention!r}` would insist)"
        )
    return pose, "" if convention == "opencv" else f"; its camera has {names[convention]}, as its file's format says"


def upright_axis(
    vertical: Vertical, pose: NDArray[np.float64], pose_up: str | None
) -> tuple[str | None, Vector, Confidence, str]:
    """The axis of the pose's world that is vertical (None: none is), the vertical, its confidence, and the reason."""
    if pose_up is not None:
        up = axis_direction(pose, pose_up)
        off = angle_between(up, vertical.up)
        reason = f"the pose's {pose_up}, as given; {off:.1f} degrees off what the depth shows"
        if off <= _AXIS_LIKELY or vertical.confidence == "guess":
            return pose_up, up, "sure", reason
        return pose_up, up, "likely", f"{reason}, where the pose's {nearest_axis(pose, vertical.up)[0]} is up"
    if not vertical.candidates or (vertical.confidence == "guess" and not _agreeing(vertical, pose)):
        axis, off = nearest_axis(pose, CAMERA_UP)
        reason = f"the pose's {axis}, the nearest to the camera's upright; the depth does not show it"
        return axis, axis_direction(pose, axis), "guess", reason
    best = max(vertical.candidates, key=lambda candidate: candidate.score * _pose_weight(candidate, pose))
    axis, off = nearest_axis(pose, best.up)
    if off <= (_AXIS_AGREES if vertical.confidence == "sure" else _AXIS_LIKELY):
        confidence: Confidence = "sure" if off <= _AXIS_AGREES else vertical.confidence
        reason = f"the pose's {axis}, {off:.1f} degrees off what the depth shows"
        return axis, axis_direction(pose, axis), confidence, reason
    axis, off = nearest_axis(pose, vertical.up)
    reason = (
        f"{vertical.reason}; the pose's world is not upright: its nearest axis {axis} is {off:.0f} degrees "
        "off (`pose_up` would insist on an axis)"
    )
    return None, vertical.up, vertical.confidence, reason


def _agreeing(vertical: Vertical, pose: NDArray[np.float64]) -> bool:
    """Whether an axis of the pose's world that usually is up agrees with a direction that the depth allows."""
    found = [nearest_axis(pose, candidate.up) for candidate in vertical.candidates if candidate.score > 0.05]
    return any(off <= _AXIS_AGREES and axis in _AXIS_WEIGHTS for axis, off in found)


def _pose_weight(candidate: Candidate, pose: NDArray[np.float64]) -> float:
    """The evidence of a pose for a direction being up: by the axis that it is, and by the pose's height."""
    axis, off = nearest_axis(pose, candidate.up)
    if off > _AXIS_AGREES:
        return 1.0
    weight = _AXIS_WEIGHTS.get(axis, _OTHER_AXIS_WEIGHT)
    height = _height_in_pose(pose, axis)
    if candidate.floor.is_seen and abs(candidate.floor.below - height) <= _FLOOR_AGREES:
        weight *= _HEIGHT_WEIGHT
    return weight


def _height_in_pose(pose: NDArray[np.float64], axis: str) -> float:
    """Meters of the camera along an axis of the pose's world."""
    return float(pose["xyz".index(axis[-1]), 3]) * (-1 if axis.startswith("-") else 1)


def floor_with_pose(floor: Floor, surface: Surface, up: Vector, pose: NDArray[np.float64], axis: str) -> Floor:
    """The pose's height 0 as the floor, if the surface seen allows it."""
    height = _height_in_pose(pose, axis)
    if floor.is_seen:
        off = abs(floor.below - height)
        if off > _FLOOR_AGREES:
            return floor
        reason = f"the pose's height 0, {100 * off:.0f} cm off the floor seen"
        return dataclasses.replace(floor, below=height, reason=reason)
    lowest = -float(np.percentile(surface.points @ up, 1)) if len(surface) else 0.0
    if _POSE_HEIGHTS[0] <= height <= _POSE_HEIGHTS[1] and lowest <= height + _FLOOR_AGREES:
        return Floor(height, False, 0.0, "likely", f"the pose's height 0; {floor.reason}")
    return floor


def heading_with_pose(heading: Heading, pose: NDArray[np.float64], up: Vector) -> Heading:
    """A horizontal axis of the pose's world, where it runs along the walls."""
    if not heading.is_room_axis:
        return heading
    axis, off = nearest_axis(pose, heading.forward)
    if off > _ROOM_AGREES:
        return heading
    direction = axis_direction(pose, axis)
    sine = float(np.cross(direction, heading.forward) @ up)
    turn = heading.turn + math.degrees(math.asin(float(np.clip(sine, -1, 1))))
    return dataclasses.replace(heading, forward=direction, turn=turn)
