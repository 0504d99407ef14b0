"""Where a user's camera stands in the project's world: Z up, floor at 0, camera at X = Y = 0, Y along the room.

What the user knows (a pose, the camera's height) is combined with what the depth shows, and every choice is said.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.camera.floor import Floor, find_floor, level_to_floor
from ammnet_sparse.data.camera.gravity import (
    CAMERA_UP,
    Confidence,
    Gravity,
    Heading,
    Vector,
    angle_between,
    find_gravity,
    find_heading,
    world_pose,
)
from ammnet_sparse.data.camera.surface import Surface, surface_from_depth
from ammnet_sparse.data.volumes.camera import Camera

POSE_AXES = ("x", "y", "z", "-x", "-y", "-z")
"""Names of the directions of a given pose's world that may be up."""
_AXIS_AGREES, _AXIS_LIKELY = 4.0, 15.0
"""Degrees from the vertical found in the depth up to which an axis of the pose's world is taken for the vertical: where
that finding is sure, and where it is not."""
_FLOOR_AGREES = 0.10
"""Metres between the floor seen and the pose's height 0 up to which the pose is believed."""
_POSE_HEIGHTS = (0.3, 2.5)
_ROOM_AGREES = 3.0
"""Degrees between an axis of the pose's world and the walls up to which the pose is believed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """The camera in the project's world.

    Attributes:
        pose: [4, 4] float64, camera to world.
        gravity: what the depth says of the vertical.
        floor: what the camera's height is taken from.
        heading: what the world's Y is.
        up: [3] float64, the vertical that was used, in camera coordinates.
        up_confidence: sure, likely or guess.
        up_reason: where it comes from, for people.
        nearest_pose_axis: the axis of the given pose's world nearest to ``up``, and degrees between them; or None.
        world_from_given: [4, 4] from the given pose's world to the project's; None without a pose.
    """

    pose: NDArray[np.float64]
    gravity: Gravity
    floor: Floor
    heading: Heading
    up: Vector
    up_confidence: Confidence
    up_reason: str
    nearest_pose_axis: tuple[str, float] | None = None
    world_from_given: NDArray[np.float64] | None = None

    def describe(self) -> list[str]:
        """Lines that say how camera, floor and room were placed, and how sure that is."""
        forward = self.pose[:3, 2]
        pitch = math.degrees(math.asin(float(np.clip(forward[2], -1, 1))))
        roll = math.degrees(math.atan2(self.pose[2, 0], -self.pose[2, 1]))
        lines = [
            f"up ({self.up_confidence}): {self.up_reason}",
            f"camera: {self.pose[2, 3]:.2f} m above the floor, looking {abs(pitch):.0f} degrees "
            f"{'up' if pitch > 0 else 'down'}, tilted {abs(roll):.0f} degrees to the {'left' if roll > 0 else 'right'}",
            f"floor ({self.floor.confidence}): {self.floor.reason}",
        ]
        if self.heading.is_room_axis:
            side = "right" if self.heading.turn > 0 else "left"
            lines.append(
                f"room: its walls run {abs(self.heading.turn):.0f} degrees to the {side} of the camera's direction "
                f"({self.heading.room_share:.0%} of the upright surface)"
            )
        else:
            lines.append("room: no direction of walls found; the grid points where the camera does")
        if self.floor.confidence == "guess":
            lines.append("advice: the floor is a guess; give --camera-height in metres if you know it")
        if self.up_confidence == "guess":
            lines.append("advice: the vertical is a guess; give --pose with an upright world if you have one")
        return lines


def place_camera(
    depth: NDArray[np.floating],
    *,
    camera: Camera,
    pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    camera_height: float | None = None,
) -> Placement:
    """Finds the vertical, the floor and the room's direction of a view.

    A given pose is believed as far as the depth does not speak against it: an axis of its world within 4 degrees of
    the vertical found is the vertical, its height 0 within 0.1 m of the floor seen is the floor, its horizontal axes
    within 3 degrees of the walls are the room's. Worlds that start with the camera's first frame are not upright:
    there only the depth counts.

    Args:
        depth: [rows, columns] float, metres, 0 where missing.
        camera: intrinsics of the depth image.
        pose: [4, 4] camera to some world, camera axes x right, y down, z forward; or None.
        pose_up: which axis of that world is up, of ``POSE_AXES``; None: found out.
        camera_height: metres above the floor, where known; then no floor is looked for.

    Raises:
        ValueError: an unknown axis, one given without a pose, or a height that is not above 0.
    """
    if pose_up is not None and (pose_up not in POSE_AXES or pose is None):
        raise ValueError(f"pose_up: expected one of {', '.join(POSE_AXES)} with a pose, found {pose_up!r}")
    if camera_height is not None and not 0 < camera_height < math.inf:
        raise ValueError(f"camera_height: expected metres above 0, found {camera_height}")
    surface = surface_from_depth(depth, camera=camera)
    gravity = find_gravity(surface)
    axis: str | None = None
    up, confidence, reason = gravity.up, gravity.confidence, _gravity_reason(gravity)
    if pose is not None:
        axis, confidence, reason = _upright_axis(gravity, pose, pose_up)
        up = gravity.up if axis is None else axis_direction(pose, axis)
    up, floor = _find_floor(depth, up, surface, camera=camera, may_tilt=axis is None, camera_height=camera_height)
    if pose is not None and axis is not None and camera_height is None:
        floor = _floor_with_pose(floor, surface, up, pose, axis)
    heading = find_heading(surface, up)
    if pose is not None and axis is not None:
        heading = _heading_with_pose(heading, pose, up)
    placed = world_pose(up, forward=heading.forward, camera_height=floor.camera_height)
    return Placement(
        pose=placed,
        gravity=gravity,
        floor=floor,
        heading=heading,
        up=up,
        up_confidence=confidence,
        up_reason=reason,
        nearest_pose_axis=None if pose is None else nearest_axis(pose, up),
        world_from_given=None if pose is None else placed @ np.linalg.inv(pose),
    )


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


def _gravity_reason(gravity: Gravity) -> str:
    if gravity.agreement == 0:
        return "too little smooth surface is seen, so the camera is taken to be held level"
    return (
        f"found in the depth: {gravity.agreement:.0%} of the surface lies along it or across it, and the next best "
        f"direction has {gravity.rival:.0%} of its votes"
    )


def _upright_axis(
    gravity: Gravity, pose: NDArray[np.float64], pose_up: str | None
) -> tuple[str | None, Confidence, str]:
    """The axis of the pose's world to use as the vertical (None: the depth's instead), how sure that is, and why."""
    if pose_up is not None:
        off = angle_between(axis_direction(pose, pose_up), gravity.up)
        return pose_up, "sure", f"the pose's {pose_up}, as told; {off:.1f} degrees off what the depth shows"
    if gravity.confidence == "guess":
        axis, off = nearest_axis(pose, CAMERA_UP)
        return axis, "guess", f"the pose's {axis}, the nearest to the camera's upright; the depth does not say"
    axis, off = nearest_axis(pose, gravity.up)
    if off <= (_AXIS_AGREES if gravity.confidence == "sure" else _AXIS_LIKELY):
        return axis, "sure", f"the pose's {axis}, {off:.1f} degrees off what the depth shows"
    reason = (
        f"{_gravity_reason(gravity)}; the pose's world is not upright: its nearest axis {axis} is {off:.0f} degrees "
        "off (--pose-up would insist on an axis)"
    )
    return None, gravity.confidence, reason


def _find_floor(
    depth: NDArray[np.floating],
    up: Vector,
    surface: Surface,
    *,
    camera: Camera,
    may_tilt: bool,
    camera_height: float | None,
) -> tuple[Vector, Floor]:
    if camera_height is not None:
        return up, Floor(camera_height, False, 0.0, "sure", f"the camera is {camera_height:.2f} m above it, as told")
    floor = find_floor(surface, up)
    if floor.is_seen:
        up, height = level_to_floor(depth, up, camera=camera, camera_height=floor.camera_height, may_tilt=may_tilt)
        floor = dataclasses.replace(floor, camera_height=height)
    return up, floor


def _floor_with_pose(floor: Floor, surface: Surface, up: Vector, pose: NDArray[np.float64], axis: str) -> Floor:
    """The pose's height 0 as the floor, where what is seen allows it."""
    height = float(pose["xyz".index(axis[-1]), 3]) * (-1 if axis.startswith("-") else 1)
    if floor.is_seen:
        off = abs(floor.camera_height - height)
        if off > _FLOOR_AGREES:
            return floor
        reason = f"the pose's height 0, {100 * off:.0f} cm off the floor seen"
        return dataclasses.replace(floor, camera_height=height, reason=reason)
    lowest = -float(np.percentile(surface.points @ up, 1)) if len(surface) else 0.0
    if _POSE_HEIGHTS[0] <= height <= _POSE_HEIGHTS[1] and lowest <= height + _FLOOR_AGREES:
        return Floor(height, False, 0.0, "likely", f"the pose's height 0; {floor.reason}")
    return floor


def _heading_with_pose(heading: Heading, pose: NDArray[np.float64], up: Vector) -> Heading:
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
