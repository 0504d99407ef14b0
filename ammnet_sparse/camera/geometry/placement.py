"""Where a user's camera stands in the project's world: Z up, floor at 0, camera at X = Y = 0, Y along the room.

What the user knows (a pose, the camera's height) is combined with what the depth shows; every choice is reported.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.poses import PoseConvention
from ammnet_sparse.camera.geometry.given_pose import floor_with_pose, heading_with_pose, pose_by_depth, upright_axis
from ammnet_sparse.camera.geometry.room import Floor, Heading, find_floor, find_heading, level_to_floor, world_pose
from ammnet_sparse.camera.geometry.surface import Confidence, Surface, Vector, angle_between, surface_from_depth
from ammnet_sparse.camera.geometry.tracking import kept_up, smoothed_floor, smoothed_heading, smoothed_up
from ammnet_sparse.camera.geometry.vertical import (
    Candidate,
    Vertical,
    describe_direction,
    find_vertical,
    upright_turn,
)
from ammnet_sparse.data.volumes.camera import Camera

_SAME_VERTICAL = 4.0
"""Largest angle in degrees at which the vertical kept and this frame's count as the same."""
_RANK: dict[Confidence, int] = {"guess": 0, "likely": 1, "sure": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """The camera in the project's world.

    Attributes:
        pose: [4, 4] float64, camera to world.
        agreement: share of the surface parallel or perpendicular to the vertical found in the depth (``Vertical``).
        floor: the floor, which gives the camera's height.
        heading: the direction of the world's Y.
        up: [3] float64, the vertical that was used, in camera coordinates.
        up_confidence: sure, likely or guess.
        up_reason: where it comes from, for people.
        world_from_given: [4, 4] from the given pose's world to the project's; None without a pose.
        alternative: the next best vertical, if there is a close one; None if the vertical was given or kept.
        is_continued: vertical, floor and room are those of the frame before, corrected by this one's depth.
        contradicts_depth: the vertical was given, and the depth shows another one.
    """

    pose: NDArray[np.float64]
    agreement: float
    floor: Floor
    heading: Heading
    up: Vector
    up_confidence: Confidence
    up_reason: str
    world_from_given: NDArray[np.float64] | None = None
    alternative: Candidate | None = None
    is_continued: bool = False
    contradicts_depth: bool = False

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
            may_be = self.floor.may_be
            seen = "" if may_be is None else f"; `camera_height={may_be:.2f}` if that level surface is the floor"
            lines.append(f"advice: the floor is a guess; give `camera_height` in meters if you know it{seen}")
        return [*lines, *self._advice_on_up()]

    def _advice_on_up(self) -> list[str]:
        """What to do if the vertical is uncertain, or if the images lie on their side."""
        lines = []
        turn = upright_turn(self.up)
        if self.contradicts_depth:
            return ["advice: the depth shows another vertical than `pose_up` gives; check which axis is up"]
        if self.up_confidence == "guess":
            lines.append("advice: the vertical is a guess; give a `pose` with an upright world if you have one")
        if self.up_confidence != "sure" and self.alternative is not None:
            other = describe_direction(self.alternative.up)
            other_turn = upright_turn(self.alternative.up)
            how = f" (`rotate={other_turn}` would turn it upright)" if other_turn else ""
            if self.alternative.up[2] < -0.8:
                how = " (a `pose` of 1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1 with `pose_up='-z'` says so)"
            upright = (
                "`rotate=0` says that the images are upright" if not turn else f"`rotate={turn}` turns them upright"
            )
            lines.append(f"advice: the vertical could also be {other}{how}; {upright}")
        elif turn:
            lines.append(f"advice: the images are not upright; `rotate={turn}` turns them")
        return lines


def place_camera(
    depth: NDArray[np.floating],
    *,
    camera: Camera,
    pose: NDArray[np.float64] | None = None,
    convention: PoseConvention = "opencv",
    other_pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    camera_height: float | None = None,
    previous: Placement | None = None,
    is_told_upright: bool = False,
) -> Placement:
    """Finds the vertical, the floor and the room's direction of a view.

    A given pose is used as far as the depth agrees: an axis of its world within 4 degrees of
    the vertical found is the vertical, its height 0 within 0.1 m of the floor seen is the floor, its horizontal axes
    within 3 degrees of the walls are the room's. Worlds that start at the camera's first frame are not upright:
    then only the depth is used.

    Args:
        depth: [rows, columns] float, meters, 0 where missing.
        camera: intrinsics of the depth image.
        pose: [4, 4] camera to some world, camera axes x right, y down, z forward; or None.
        convention: the camera axes of the pose as it was given.
        other_pose: the pose read with the other convention of camera axes; used if only that fits the depth.
        pose_up: which axis of that world is up, of ``POSE_AXES``; None: detected. Without a pose it has no effect.
        camera_height: meters above the floor, if known; then the floor is not searched.
        previous: placement of the previous frame of the same camera, without a pose: vertical, floor and room are
            kept and smoothed as long as the depth agrees, and found again if it does not.
        is_told_upright: the images are known to be upright.
    """
    surface = surface_from_depth(depth, camera=camera)
    told = None
    if camera_height is not None:
        told = Floor(camera_height, False, 0.0, "sure", f"the camera is {camera_height:.2f} m above it, as given")
    up = None
    if previous is not None and pose is None:
        up = kept_up(previous.up, surface, confidence=previous.up_confidence, agreement=previous.agreement)
    if previous is None or up is None:
        vertical = find_vertical(surface, is_told=is_told_upright)
        note = ""
        if pose is not None and other_pose is not None:
            pose, note = pose_by_depth(vertical, pose, other_pose, convention=convention, pose_up=pose_up)
        placed = _found(vertical, depth, surface, camera=camera, pose=pose, pose_up=pose_up, told=told)
        return dataclasses.replace(placed, up_reason=placed.up_reason + note)
    placed = _continued(previous, up, depth, surface, camera=camera, told=told)
    if previous.up_confidence != "sure":
        vertical = find_vertical(surface, is_told=is_told_upright)
        if _RANK[vertical.confidence] > _RANK[previous.up_confidence]:  # surer than the frames before
            if angle_between(vertical.up, placed.up) > _SAME_VERTICAL:
                return _found(vertical, depth, surface, camera=camera, told=told)
            placed = dataclasses.replace(
                placed,
                agreement=vertical.agreement,
                up_confidence=vertical.confidence,
                up_reason=f"{placed.up_reason}; {vertical.reason}",
            )
    return dataclasses.replace(placed, floor=_capped(placed.floor, placed.up_confidence))


def _found(
    vertical: Vertical,
    depth: NDArray[np.floating],
    surface: Surface,
    *,
    camera: Camera,
    pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    told: Floor | None,
) -> Placement:
    """The placement that the depth of this frame shows, and a given pose."""
    axis: str | None = None
    up, confidence, reason = vertical.up, vertical.confidence, vertical.reason
    if pose is not None:
        axis, up, confidence, reason = upright_axis(vertical, pose, pose_up)
    up, floor = _find_floor(depth, up, surface, camera=camera, may_tilt=axis is None, told=told)
    heading = find_heading(surface, up)
    if pose is not None and axis is not None:
        heading = heading_with_pose(heading, pose, up)
        if told is None:
            floor = floor_with_pose(floor, surface, up, pose, axis)
    placed = world_pose(up, forward=heading.forward, height=floor.below)
    return Placement(
        pose=placed,
        agreement=vertical.agreement,
        floor=_capped(floor, confidence),
        heading=heading,
        up=up,
        up_confidence=confidence,
        up_reason=reason,
        world_from_given=None if pose is None else placed @ np.linalg.inv(pose),
        alternative=vertical.alternative if axis is None else None,
        contradicts_depth=pose is not None and pose_up is not None and confidence != "sure",
    )


def _continued(
    previous: Placement,
    kept: Vector,
    depth: NDArray[np.floating],
    surface: Surface,
    *,
    camera: Camera,
    told: Floor | None,
) -> Placement:
    """The placement of the previous frame, corrected with this frame's depth."""
    seen, floor = _find_floor(depth, kept, surface, camera=camera, may_tilt=True, told=told)
    up = smoothed_up(previous.up, seen)
    floor = smoothed_floor(previous.floor, floor, surface, kept)
    heading = smoothed_heading(previous.heading, find_heading(surface, up), up)
    return dataclasses.replace(
        previous,
        pose=world_pose(up, forward=heading.forward, height=floor.below),
        floor=floor,
        heading=heading,
        up=up,
        up_reason=f"kept from the frame before; this one's is {angle_between(seen, previous.up):.1f} degrees off it",
        world_from_given=None,
        alternative=None,
        is_continued=True,
        contradicts_depth=False,
    )


def _capped(floor: Floor, confidence: Confidence) -> Floor:
    """The floor; one that is seen is at most as certain as the vertical."""
    if floor.is_seen and _RANK[floor.confidence] > _RANK[confidence]:
        return dataclasses.replace(floor, confidence=confidence)
    return floor


def _find_floor(
    depth: NDArray[np.floating],
    up: Vector,
    surface: Surface,
    *,
    camera: Camera,
    may_tilt: bool,
    told: Floor | None,
) -> tuple[Vector, Floor]:
    """The vertical and the floor: the floor given, or else the one found in the depth."""
    if told is not None:
        return up, told
    floor = find_floor(surface, up)
    if floor.is_seen:
        up, height = level_to_floor(depth, up, camera=camera, below=floor.below, may_tilt=may_tilt)
        floor = dataclasses.replace(floor, below=height)
    return up, floor
