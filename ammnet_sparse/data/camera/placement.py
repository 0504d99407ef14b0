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
    find_heading,
    world_pose,
)
from ammnet_sparse.data.camera.surface import Surface, surface_from_depth
from ammnet_sparse.data.camera.tracking import Kept, keep
from ammnet_sparse.data.camera.upright import Candidate, Upright, find_upright
from ammnet_sparse.data.volumes.camera import Camera

POSE_AXES = ("x", "y", "z", "-x", "-y", "-z")
"""Names of the directions of a given pose's world that may be up."""
_AXIS_AGREES, _AXIS_LIKELY = 4.0, 15.0
"""Degrees from the vertical found in the depth up to which an axis of the pose's world is taken for the vertical: where
that finding is sure, and where it is not."""
_AXIS_WEIGHTS = {"z": 3.0, "y": 2.0, "-y": 2.0}
"""How much more likely a direction is up if it is an axis of the pose's world that usually is."""
_OTHER_AXIS_WEIGHT, _HEIGHT_WEIGHT = 0.3, 5.0
"""The same for the other axes, and where the pose's height above its 0 is that above the floor seen."""
_RANK: dict[Confidence, int] = {"guess": 0, "likely": 1, "sure": 2}
_ASIDE = 60.0
"""Degrees of tilt from which on the images themselves should be turned."""
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
        alternative: the next best vertical, if any comes near; None where the vertical was told or kept.
        is_continued: vertical, floor and room are those of the frame before, corrected by this one's depth.
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
    alternative: Candidate | None = None
    is_continued: bool = False

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
        return [*lines, *self._advice_on_up()]

    def _advice_on_up(self) -> list[str]:
        """What to do where the vertical is doubtful, or where the images lie on their side."""
        lines = []
        turn = upright_turn(self.up)
        if self.up_confidence == "guess":
            lines.append("advice: the vertical is a guess; give --pose with an upright world if you have one")
        if self.up_confidence != "sure" and self.alternative is not None:
            other = describe_direction(self.alternative.up)
            other_turn = upright_turn(self.alternative.up)
            how = f" (--rotate {other_turn} would turn it upright)" if other_turn else ""
            if self.alternative.up[2] < -0.8:
                how = " (a --pose of 1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1 with --pose-up=-z says so)"
            upright = (
                "--rotate 0 says that the images are upright" if not turn else f"--rotate {turn} turns them upright"
            )
            lines.append(f"advice: the vertical could also be {other}{how}; {upright}")
        elif turn:
            lines.append(f"advice: the images do not lie upright; --rotate {turn} turns them")
        return lines


def place_camera(
    depth: NDArray[np.floating],
    *,
    camera: Camera,
    pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    camera_height: float | None = None,
    previous: Placement | None = None,
    is_told_upright: bool = False,
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
        previous: the placement of the frame before, of the same camera and without a pose: vertical, floor and room are
            kept and smoothed as long as the depth agrees, and found anew where it does not.
        is_told_upright: someone said that the images are upright.

    Raises:
        ValueError: an unknown axis, one given without a pose, or a height that is not above 0.
    """
    if pose_up is not None and (pose_up not in POSE_AXES or pose is None):
        raise ValueError(f"pose_up: expected one of {', '.join(POSE_AXES)} with a pose, found {pose_up!r}")
    if camera_height is not None and not 0 < camera_height < math.inf:
        raise ValueError(f"camera_height: expected metres above 0, found {camera_height}")
    surface = surface_from_depth(depth, camera=camera)
    kept = keep(previous, surface) if previous is not None and pose is None else None
    if previous is not None and kept is not None:
        return _continued(previous, kept, depth, surface, camera=camera, camera_height=camera_height)
    upright = find_upright(surface, is_told=is_told_upright)
    gravity = upright.gravity
    axis: str | None = None
    up, confidence, reason = gravity.up, gravity.confidence, _gravity_reason(upright)
    if pose is not None:
        axis, up, confidence, reason = _upright_axis(upright, pose, pose_up)
    up, floor = _find_floor(depth, up, surface, camera=camera, may_tilt=axis is None, camera_height=camera_height)
    if pose is not None and axis is not None and camera_height is None:
        floor = _floor_with_pose(floor, surface, up, pose, axis)
    if floor.is_seen and _RANK[floor.confidence] > _RANK[confidence]:
        floor = dataclasses.replace(floor, confidence=confidence)  # no surer than the vertical that it lies across
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
        alternative=upright.alternative if axis is None else None,
    )


def _continued(
    previous: Placement,
    kept: Kept,
    depth: NDArray[np.floating],
    surface: Surface,
    *,
    camera: Camera,
    camera_height: float | None,
) -> Placement:
    """The placement of the frame before, corrected by what this frame's depth says."""
    seen, floor = _find_floor(depth, kept.up, surface, camera=camera, may_tilt=True, camera_height=camera_height)
    up = kept.smoothed_up(previous.up, seen)
    floor = kept.smoothed_floor(previous.floor, floor, surface)
    heading = kept.smoothed_heading(previous.heading, find_heading(surface, up), up)
    return dataclasses.replace(
        previous,
        pose=world_pose(up, forward=heading.forward, camera_height=floor.camera_height),
        floor=floor,
        heading=heading,
        up=up,
        up_reason=f"kept from the frame before, {angle_between(seen, previous.up):.1f} degrees off this one's",
        alternative=None,
        is_continued=True,
    )


def upright_turn(up: Vector) -> int:
    """Degrees clockwise by which an image must be turned so that ``up`` points to its upper edge; 0 where it does."""
    across = math.hypot(up[0], up[1])
    if across < math.sin(math.radians(90.0 - _ASIDE)):
        return 0  # the camera looks up or down: no edge of the image is the upper one
    clockwise = math.degrees(math.atan2(up[0], -up[1]))
    return round(-clockwise / 90.0) % 4 * 90


def describe_direction(up: Vector) -> str:
    """Where a direction points, in the image."""
    if up[2] < -0.8:
        return "towards the camera, which would look straight down"
    if up[2] > 0.8:
        return "away from the camera, which would look straight up"
    edge = {0: "upper", 90: "left", 180: "lower", 270: "right"}[upright_turn(up)]
    return f"towards the {edge} edge of the image"


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


def _gravity_reason(upright: Upright) -> str:
    gravity, other = upright.gravity, upright.alternative
    if gravity.agreement == 0:
        return "too little smooth surface is seen, so the camera is taken to be held level"
    reason = f"found in the depth: {gravity.agreement:.0%} of the surface lies along it or across it"
    if other is None:
        return f"{reason}, and no other direction comes near"
    share = f"{other.score:.0%}" if other.score >= 0.01 else "less than 1%"
    return f"{reason}, and the next best of all directions ({describe_direction(other.up)}) has {share} of its score"


def _upright_axis(
    upright: Upright, pose: NDArray[np.float64], pose_up: str | None
) -> tuple[str | None, Vector, Confidence, str]:
    """The axis of the pose's world that is vertical (None: none is), the vertical, how sure that is, and why."""
    gravity = upright.gravity
    if pose_up is not None:
        up = axis_direction(pose, pose_up)
        off = angle_between(up, gravity.up)
        return pose_up, up, "sure", f"the pose's {pose_up}, as told; {off:.1f} degrees off what the depth shows"
    if not upright.candidates or gravity.confidence == "guess" and not _agreeing(upright, pose):
        axis, off = nearest_axis(pose, CAMERA_UP)
        reason = f"the pose's {axis}, the nearest to the camera's upright; the depth does not say"
        return axis, axis_direction(pose, axis), "guess", reason
    best = max(upright.candidates, key=lambda candidate: candidate.score * _pose_weight(candidate, pose))
    axis, off = nearest_axis(pose, best.up)
    if off <= (_AXIS_AGREES if gravity.confidence == "sure" else _AXIS_LIKELY):
        return (
            axis,
            axis_direction(pose, axis),
            "sure",
            f"the pose's {axis}, {off:.1f} degrees off what the depth shows",
        )
    axis, off = nearest_axis(pose, gravity.up)
    reason = (
        f"{_gravity_reason(upright)}; the pose's world is not upright: its nearest axis {axis} is {off:.0f} degrees "
        "off (--pose-up would insist on an axis)"
    )
    return None, gravity.up, gravity.confidence, reason


def _agreeing(upright: Upright, pose: NDArray[np.float64]) -> bool:
    """Whether an axis of the pose's world that usually is up agrees with a direction that the depth allows."""
    found = [nearest_axis(pose, candidate.up) for candidate in upright.candidates if candidate.score > 0.05]
    return any(off <= _AXIS_AGREES and axis in _AXIS_WEIGHTS for axis, off in found)


def _pose_weight(candidate: Candidate, pose: NDArray[np.float64]) -> float:
    """How much a pose speaks for a direction being up: by the axis that it is, and by the pose's height."""
    axis, off = nearest_axis(pose, candidate.up)
    if off > _AXIS_AGREES:
        return 1.0
    weight = _AXIS_WEIGHTS.get(axis, _OTHER_AXIS_WEIGHT)
    height = _height_in_pose(pose, axis)
    if candidate.floor.is_seen and abs(candidate.floor.camera_height - height) <= _FLOOR_AGREES:
        weight *= _HEIGHT_WEIGHT
    return weight


def _height_in_pose(pose: NDArray[np.float64], axis: str) -> float:
    """Metres of the camera along an axis of the pose's world."""
    return float(pose["xyz".index(axis[-1]), 3]) * (-1 if axis.startswith("-") else 1)


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
    height = _height_in_pose(pose, axis)
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
