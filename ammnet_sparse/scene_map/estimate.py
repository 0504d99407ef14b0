"""Vertical, floor and walls of a room, found over all of its frames at once.

The surface of all frames, in the world of their poses, is looked at as if one camera had seen it, in the middle of all
cameras. So the searches for a single frame (``camera/geometry``) serve the room. Results are rounded to steps that are
small against a voxel: they then depend on which frames there are, not on their order, and mostly stay where they are.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.poses import PoseConvention
from ammnet_sparse.camera.geometry.given_pose import floor_with_pose, heading_with_pose, pose_by_depth, upright_axis
from ammnet_sparse.camera.geometry.room import Floor, find_floor, find_heading
from ammnet_sparse.camera.geometry.surface import Surface, Vector, angle_between, surface_from_depth
from ammnet_sparse.camera.geometry.vertical import Vertical, find_vertical
from ammnet_sparse.camera.images import CameraImages
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.scene_map.cells import SurfaceCells
from ammnet_sparse.scene_map.room import GivenPose, Room

_STRIDE = 2
"""Pixels of the depth image from one that is looked at to the next."""
_FARTHEST = 6.0
"""Meters of depth that are used."""
_FAR_CAMERA = 3.0
"""Times the cameras' median distance from their middle, beyond ``_FARTHEST``: surface farther away does not find the
room, because a wrong pose far below would take the floor along."""
_SLOPE_STEP, _LEVEL_STEP = 1 / 256, 0.02
"""Steps of rotations (radians, 0.2 degrees) and of the floor's level (meters)."""
_MORE_FRAMES = 1.6
"""The room is found again when the number of frames has grown by this factor."""
_FEWER_CELLS = 0.9
"""Share of cells below which one reading of the poses lays the frames better upon each other than the other."""
_THICKNESSES = (0.06, 0.04, 0.03)
"""Meters on either side of the floor's plane that belong to it, round by round of its fit."""
_AXIS_OFF, _SAME_VERTICAL = 1.5, 15.0
"""Degrees from an axis of the given world to the vertical of all frames' surface from which on the latter is taken, and
up to which both mean the same direction. One frame's surface is not as exact (``upright_axis``)."""
_LEVEL_ANGLE = math.cos(math.radians(12.0))
_UNITS = 10_000


class RoomEstimate:
    """Everything about a room that its frames have shown so far; a frame takes only 72 bytes, once the cells are full.

    Args:
        settings: what is known: ``pose_up`` and ``camera_height``.
        readings: of frames before, to be continued.
        num_frames: of these.
    """

    def __init__(
        self, settings: CameraSettings, *, readings: dict[PoseConvention, "Reading"] | None = None, num_frames: int = 0
    ) -> None:
        self._settings = settings
        self.readings = readings or {}
        self.num_frames = num_frames
        self._next = num_frames + 1

    @property
    def is_due(self) -> bool:
        """Whether so many frames have come that the room should be found again."""
        return self.num_frames >= self._next

    def add(self, images: CameraImages, given: GivenPose) -> None:
        """Adds the surface that a frame shows.

        Raises:
            DataError: a pose that is too far from its world's origin; then nothing has changed.
        """
        depth, camera = images.depth[::_STRIDE, ::_STRIDE], images.camera
        camera = Camera(*(value / _STRIDE for value in dataclasses.astuple(camera)))
        surface = surface_from_depth(depth, camera=camera)
        surface = surface.select(surface.points[:, 2] < _FARTHEST)
        self.readings = self.readings | {
            convention: self.readings.get(convention, Reading()).with_frame(surface, pose)
            for convention, pose in given.readings().items()
        }
        self.num_frames += 1

    def room(self) -> Room:
        """The room as all frames so far show it. Raises ValueError before the first frame."""
        if not self.num_frames:
            raise ValueError("the room: expected frames, found none")
        self._next = max(self.num_frames + 1, math.ceil(_MORE_FRAMES * self.num_frames))
        readings = {name: one for name, one in self.readings.items() if one.num_frames == self.num_frames}
        # Where files and settings do not agree on the convention, each frame is read by its own.
        (own, first), *others = (readings or self.readings).items()
        if not others:
            return _room_of(_Found.of(first), self._settings, None, "")
        return self._better(own, first, *others[0])

    def _better(self, own: PoseConvention, first: "Reading", other: PoseConvention, second: "Reading") -> Room:
        """The room by the convention of camera axes that the frames agree with."""
        share = second.num_cells / max(1, first.num_cells)
        if share < _FEWER_CELLS:
            note = f"; the frames fit each other better with poses as {other}"
            return _room_of(_Found.of(second), self._settings, other, note)
        found, note = _Found.of(first), ""
        if share <= 1 / _FEWER_CELLS:
            turned, up = second.mean_camera(), self._settings.pose_up
            pose, note = pose_by_depth(found.vertical, found.pose, turned, convention=own, pose_up=up)
            if pose is turned:
                return _room_of(_Found.of(second), self._settings, other, note)
        return _room_of(found, self._settings, own, note)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """The surface and the cameras of all frames, their poses read in one way.

    Attributes:
        cells: the surface.
        cameras: [N, 9] int64, position, direction towards the image's upper edge, and direction of view, in 1/10,000.
    """

    cells: SurfaceCells = dataclasses.field(default_factory=SurfaceCells)
    cameras: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((0, 9), dtype=np.int64))

    def with_frame(self, surface: Surface, pose: NDArray[np.float64]) -> "Reading":
        """This reading and one more frame, whose surface is in camera coordinates. Errors as ``with_samples``."""
        points = surface.points @ pose[:3, :3].T + pose[:3, 3]
        cells = self.cells.with_samples(points, surface.normals @ pose[:3, :3].T, depth=surface.points[:, 2])
        camera = np.concatenate([pose[:3, 3], -pose[:3, 1], pose[:3, 2]])
        return Reading(cells, np.vstack([self.cameras, np.rint(camera * _UNITS).astype(np.int64)]))

    @property
    def num_frames(self) -> int:
        """Frames added."""
        return len(self.cameras)

    @property
    def num_cells(self) -> int:
        """Cells of surface seen, those thinned out included."""
        return len(self.cells) << self.cells.halvings

    def mean_camera(self) -> NDArray[np.float64]:
        """[4, 4] a camera in the middle of all, as upright as they are on average, to the given world.

        Its position is the median: a few wrong poses do not move it out of the room.
        """
        up, ahead = self.cameras[:, 3:].sum(axis=0).reshape(2, 3) / (_UNITS * self.num_frames)
        up = _unit(up, otherwise=np.array([0.0, 0.0, 1.0]))
        across = np.eye(3)[np.abs(up).argmin()]
        ahead = _unit(ahead - (ahead @ up) * up, otherwise=_unit(across - (across @ up) * up, otherwise=across))
        pose = np.eye(4)
        pose[:3, :3] = np.stack([np.cross(ahead, up), -up, ahead], axis=1)
        pose[:3, 3] = np.median(self.cameras[:, :3], axis=0) / _UNITS
        return pose


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """What one reading of the poses shows: the surface as the mean camera sees it, and the vertical in it."""

    surface: Surface
    pose: NDArray[np.float64]
    vertical: Vertical

    @classmethod
    def of(cls, reading: Reading) -> "_Found":
        pose, given = reading.mean_camera(), reading.cells.surface()
        positions = reading.cameras[:, :3] / _UNITS
        distances = np.linalg.norm(positions - pose[:3, 3], axis=1)
        reach = _FARTHEST + _FAR_CAMERA * float(np.median(distances))
        given = given.select(np.linalg.norm(given.points - pose[:3, 3], axis=1) < reach)
        surface = Surface((given.points - pose[:3, 3]) @ pose[:3, :3], given.normals @ pose[:3, :3], given.areas)
        return cls(surface, pose, find_vertical(surface))


def _room_of(found: _Found, settings: CameraSettings, convention: PoseConvention | None, note: str) -> Room:
    """The room, rounded to steps."""
    surface, pose = found.surface, found.pose
    axis, up, confidence, reason = upright_axis(found.vertical, pose, settings.pose_up)
    off = angle_between(up, found.vertical.up)
    if axis is not None and settings.pose_up is None and _AXIS_OFF < off < _SAME_VERTICAL:
        axis, up = None, found.vertical.up
        confidence, reason = found.vertical.confidence, f"{found.vertical.reason}; {off:.1f} degrees off {reason}"
    floor = find_floor(surface, up)
    given_up = _rounded_direction(pose[:3, :3] @ up)
    up = pose[:3, :3].T @ given_up
    if settings.camera_height is not None:
        height = settings.camera_height
        floor = Floor(height, False, 0.0, "sure", f"the cameras are {height:.2f} m above it, as given")
    elif floor.is_seen:
        floor = dataclasses.replace(floor, below=_floor_below(surface, up, floor.below))
    elif axis is not None:
        floor = floor_with_pose(floor, surface, up, pose, axis)
    heading = find_heading(surface, up)
    if axis is not None:
        heading = heading_with_pose(heading, pose, up)
    rotation = _rounded_rotation(given_up, pose[:3, :3] @ heading.forward if heading.is_room_axis else None)
    map_from_given = np.eye(4)
    map_from_given[:3, :3] = rotation
    level = float(given_up @ pose[:3, 3]) - floor.below
    map_from_given[2, 3] = -round(level / _LEVEL_STEP) * _LEVEL_STEP
    share = heading.room_share if heading.is_room_axis else 0.0
    return Room(map_from_given, floor, confidence, reason + note, share, convention)


def _floor_below(surface: Surface, up: Vector, below: float) -> float:
    """Meters from the mean camera down to the floor seen."""
    for thickness in _THICKNESSES:
        is_floor = np.abs(surface.points @ up + below) < thickness
        is_floor &= surface.normals @ up > _LEVEL_ANGLE
        if is_floor.any():
            below = -float((surface.points[is_floor] @ up).mean())
    return below


def _rounded_direction(direction: Vector) -> Vector:
    """A direction of length 1 whose slopes against the nearest axis are whole steps."""
    main = int(np.abs(direction).argmax())
    slopes = np.rint(direction / abs(direction[main]) / _SLOPE_STEP) * _SLOPE_STEP
    return np.asarray(slopes / np.linalg.norm(slopes), dtype=np.float64)


def _rounded_rotation(up: Vector, forward: Vector | None) -> NDArray[np.float64]:
    """[3, 3] from the given world to the map's, whose X is near an axis of the given world.

    Args:
        up: [3] the vertical in the given world.
        forward: [3] a direction of walls there, perpendicular to it; None: the axes are as near as can be.
    """
    axis = np.eye(3)[(int(np.abs(up).argmax()) + 1) % 3]
    x = _unit(axis - (axis @ up) * up, otherwise=axis)
    y = np.cross(up, x)
    angle = 0.0
    if forward is not None:
        angle = math.atan2(forward @ y, forward @ x)
        angle = (angle + math.pi / 4) % (math.pi / 2) - math.pi / 4  # all four walls are one direction
        angle = round(angle / _SLOPE_STEP) * _SLOPE_STEP
    x, y = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return np.stack([x, y, up])


def _unit(vector: Vector, *, otherwise: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0.05 else otherwise
