"""The room that many frames share: one vertical, floor and direction of walls, and the place of each frame in it."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.poses import PoseConvention
from ammnet_sparse.camera.geometry.placement import Placement
from ammnet_sparse.camera.geometry.room import Floor, Heading
from ammnet_sparse.camera.geometry.surface import Confidence
from ammnet_sparse.camera.images import CameraImages
from ammnet_sparse.data.volumes.camera import checked_pose, quarter_turn

_LOOKING_LEVEL = math.sin(math.radians(20.0))
"""Horizontal part of the camera's direction below which it looks down, or up."""


@dataclasses.dataclass(frozen=True, eq=False)
class GivenPose:
    """A pose as it was given.

    Attributes:
        matrix: [4, 4] camera to the given world, read with ``convention``; camera axes x right, y down, z forward.
        convention: of the camera axes.
        other: the pose read with the other convention, if neither files nor settings say which one is right.
    """

    matrix: NDArray[np.float64]
    convention: PoseConvention = "opencv"
    other: NDArray[np.float64] | None = None

    @classmethod
    def of_images(cls, images: CameraImages) -> "GivenPose | None":
        """The pose of a frame's images, if they have one."""
        return None if images.pose is None else cls(images.pose, images.convention, images.other_pose)

    def readings(self) -> dict[PoseConvention, NDArray[np.float64]]:
        """The pose by every convention that it may have, the more likely one first."""
        readings = {self.convention: self.matrix}
        if self.other is not None:
            readings["opengl" if self.convention == "opencv" else "opencv"] = self.other
        return readings


@dataclasses.dataclass(frozen=True, eq=False)
class Room:
    """A room in the world of the given poses. The map's world is upright, Z up, floor at 0, X and Y along the walls.

    Attributes:
        map_from_given: [4, 4] float64, rigid, from the world of the given poses to the map's.
        floor: the floor below the middle of all cameras.
        up_confidence: of the vertical: sure, likely or guess.
        up_reason: where the vertical comes from, for people.
        walls_share: share of the upright surface that runs along X and Y; 0 where no walls show a direction.
        convention: of the camera axes of poses that may be read either way; None: as they are.

    Raises:
        ValueError: a matrix that is not a finite rigid transform.
    """

    map_from_given: NDArray[np.float64]
    floor: Floor = dataclasses.field(default_factory=lambda: Floor(0.0, False, 0.0, "sure", "the room is given"))
    up_confidence: Confidence = "sure"
    up_reason: str = "the room is given"
    walls_share: float = 1.0
    convention: PoseConvention | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "map_from_given", checked_pose(self.map_from_given))

    def is_at(self, other: "Room") -> bool:
        """Whether both place every frame alike."""
        is_same = np.array_equal(self.map_from_given, other.map_from_given)
        return is_same and self.convention == other.convention

    def pose_of(self, given: GivenPose) -> NDArray[np.float64]:
        """[4, 4], from a camera to the map's world."""
        readings = given.readings()
        pose = readings.get(self.convention or given.convention, given.matrix)
        return np.asarray(self.map_from_given @ pose, dtype=np.float64)

    def place(self, given: GivenPose) -> Placement:
        """The camera in the room, for ``make_frame``.

        The placement's world is the map's, turned about the vertical by the quarter turns that bring the camera's
        direction nearest to Y, as networks are trained.
        """
        pose = self.pose_of(given)
        turn = quarter_turn(nearest_quarters(pose))
        world_from_given = turn @ self.map_from_given
        pose = turn @ pose
        up, forward = pose[2, :3], pose[1, :3]
        ahead = _horizontal(pose)
        angle = math.degrees(math.atan2(-ahead[0], ahead[1]))
        return Placement(
            pose=pose,
            agreement=1.0,
            floor=dataclasses.replace(self.floor, below=float(pose[2, 3])),
            heading=Heading(forward, self.walls_share > 0, self.walls_share, angle),
            up=up,
            up_confidence=self.up_confidence,
            up_reason=self.up_reason,
            world_from_given=world_from_given,
        )

    def describe(self) -> list[str]:
        """Lines that say how the room was found, and how sure that is."""
        lines = [
            f"up ({self.up_confidence}): {self.up_reason}",
            f"floor ({self.floor.confidence}): {self.floor.reason}",
        ]
        if self.walls_share > 0:
            lines.append(f"room: {self.walls_share:.0%} of the upright surface runs along the map's axes")
        else:
            lines.append("room: no direction of walls found; the map's axes are the nearest of the given poses' world")
        return lines


def nearest_quarters(pose: NDArray[np.float64]) -> int:
    """The quarter turns of the world that bring a camera's horizontal direction nearest to Y: 0, 1, 2 or 3."""
    x, y = _horizontal(pose)
    return [y > abs(x), x >= abs(y), -y > abs(x), True].index(True)


def _horizontal(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """[2] the camera's direction seen from above, of length 1; that of the image's upper edge if it looks down."""
    ahead = pose[:3, 2]
    if math.hypot(ahead[0], ahead[1]) < _LOOKING_LEVEL:
        ahead = pose[:3, 1] * np.sign(ahead[2])
    length = math.hypot(ahead[0], ahead[1])
    return np.asarray(ahead[:2] / length if length else (0.0, 1.0), dtype=np.float64)
