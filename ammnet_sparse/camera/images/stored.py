"""The images of a user's frame as its camera stored them, and rotating them upright."""

import dataclasses
import math
import numbers
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.depth import DEPTH_ENCODINGS, DepthEncoding
from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.label_maps import LABEL_MAP_CLASSES, LabelMapClasses
from ammnet_sparse.camera.geometry.given_pose import POSE_AXES
from ammnet_sparse.camera.geometry.placement import Placement
from ammnet_sparse.camera.images.resizing import owner_of_intrinsics
from ammnet_sparse.camera.images.turning import (
    TURNS,
    View,
    belongs_to_turned,
    lies_like,
    turned_camera,
    turned_image,
    turned_pose,
)
from ammnet_sparse.camera.own_frames import OwnFrame, make_own_frame
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.files.errors import DataError

# Above the floor; more are centimeters.
_HIGHEST_CAMERA = 100


@dataclasses.dataclass(frozen=True)
class CameraSettings:
    """What is known about a camera and the files it writes.

    Attributes:
        intrinsics: of the depth or the color image; with ``color_intrinsics`` of the depth image.
        color_intrinsics: of the color image, if its proportions differ from the depth image's.
        depth_scale: units of the depth image per meter; None: detected (``depth.read_depth_with_notes``).
        depth_encoding: how the depth image's numbers are stored.
        rotate: degrees clockwise by which color, depth, label map, intrinsics and pose are rotated as stored;
            None: as EXIF says.
        label_map_classes: the class list of label maps.
        pose_up, camera_height: as ``place_camera``.
        tsdf_is_flipped, unobserved: as ``make_own_frame``.

    Raises:
        DataError: a number or name that makes no sense.
    """

    intrinsics: Intrinsics
    color_intrinsics: Intrinsics | None = None
    depth_scale: float | None = None
    depth_encoding: DepthEncoding = "auto"
    rotate: int | None = None
    label_map_classes: LabelMapClasses = "nyu13"
    pose_up: str | None = None
    camera_height: float | None = None
    tsdf_is_flipped: bool = False
    unobserved: Unobserved = "free"

    def __post_init__(self) -> None:
        for name, number, expected, limit in (
            ("depth_scale", self.depth_scale, "units per meter above 0", math.inf),
            ("camera_height", self.camera_height, f"meters above 0 and below {_HIGHEST_CAMERA}", _HIGHEST_CAMERA),
        ):
            if number is not None and not (isinstance(number, numbers.Real) and 0 < number < limit):
                raise DataError(f"{name}: expected {expected}, found {number!r}")
        for name, value, allowed in (
            ("depth_encoding", self.depth_encoding, DEPTH_ENCODINGS),
            ("label_map_classes", self.label_map_classes, LABEL_MAP_CLASSES),
            ("pose_up", self.pose_up, (None, *POSE_AXES)),
            ("unobserved", self.unobserved, get_args(Unobserved)),
        ):
            if value not in allowed:
                expected = ", ".join(choice for choice in allowed if choice is not None)
                raise DataError(f"{name}: expected one of {expected}, found {value!r}")
        if self.rotate is not None and not (isinstance(self.rotate, int) and self.rotate in TURNS):
            raise DataError(f"rotate: expected one of {', '.join(map(str, TURNS))} degrees, found {self.rotate!r}")

    @classmethod
    def of_camera(cls, camera: Camera) -> "CameraSettings":
        """Of intrinsics alone."""
        return cls(Intrinsics(camera))


@dataclasses.dataclass(frozen=True, eq=False)
class StoredFrame:
    """The images of a frame as they are stored.

    Attributes:
        color: [rows, columns, 3] uint8 RGB, or None.
        depth: [rows, columns] float32 in meters.
        label_map: [rows, columns] uint8, or None.
        pose: [4, 4] camera to world, or None.
        exif_turn: degrees clockwise by which EXIF turns the color image: 0, 90, 180 or 270.
    """

    color: NDArray[np.uint8] | None
    depth: NDArray[np.float32]
    label_map: NDArray[np.uint8] | None = None
    pose: NDArray[np.float64] | None = None
    exif_turn: int = 0


class UprightFrame(NamedTuple):
    """The images of a frame, upright.

    Attributes:
        view: the images and their camera.
        pose: [4, 4] of that camera to the world, or None.
        notes: what was found out about the images, for people.
        is_told_upright: the user or EXIF gave the orientation.
    """

    view: View
    pose: NDArray[np.float64] | None
    notes: tuple[str, ...]
    is_told_upright: bool

    def placed(self, settings: CameraSettings, *, name: str, previous: Placement | None = None) -> OwnFrame:
        """The frame with its camera placed in the scene (``make_own_frame``)."""
        return make_own_frame(
            self.view.to_network_images(),
            name=name,
            pose=self.pose,
            pose_up=None if self.pose is None else settings.pose_up,
            camera_height=settings.camera_height,
            previous=previous,
            is_told_upright=self.is_told_upright,
            tsdf_is_flipped=settings.tsdf_is_flipped,
            unobserved=settings.unobserved,
            notes=self.notes,
        )


def upright_frame(stored: StoredFrame, settings: CameraSettings) -> UprightFrame:
    """Rotates the images of a frame, with camera and pose, as the settings say, or else EXIF.

    Raises:
        DataError: images that contradict each other or the intrinsics.
    """
    color, depth, label_map = stored.color, stored.depth, stored.label_map
    if color is None:  # a stand-in of the size of what shows the same
        color = np.zeros((*(depth if label_map is None else label_map).shape, 3), dtype=np.uint8)
    intrinsics = settings.intrinsics.fitting([depth.shape, color.shape])
    color_intrinsics = settings.color_intrinsics
    if stored.color is None and label_map is None:  # nothing of the color camera is there
        color_intrinsics = None
    if color_intrinsics is not None:
        color_intrinsics = color_intrinsics.fitting([color.shape])
    images = _Images(color, depth, label_map, intrinsics, color_intrinsics, stored.pose)
    degrees = stored.exif_turn if settings.rotate is None else settings.rotate
    view, pose = images.turned(degrees, is_told=settings.rotate is not None)
    if stored.color is None:
        view = dataclasses.replace(view, color=None)
    notes = list(intrinsics.notes)
    if settings.rotate is None and stored.exif_turn:
        notes.append(
            f"color: EXIF turns it by {stored.exif_turn} degrees clockwise, and everything stored in the same "
            "orientation with it (--rotate 0 leaves the images as they are stored)"
        )
    return UprightFrame(view, pose, tuple(notes), settings.rotate is not None or stored.exif_turn != 0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Images:
    """The images with what belongs to them, a stand-in in place of a missing color image."""

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    label_map: NDArray[np.uint8] | None
    intrinsics: Intrinsics
    color_intrinsics: Intrinsics | None
    pose: NDArray[np.float64] | None

    def turned(self, degrees: int, *, is_told: bool) -> tuple[View, NDArray[np.float64] | None]:
        """View and pose after rotating the color image and everything with its orientation.

        With EXIF, depth or label map may be upright already, as their proportions show; if the user gives the rotation,
        everything is rotated. Intrinsics of the upright images stay as they are, and so does the pose.
        """
        if degrees == 0:
            return self._view(), self.pose
        depth_turns = degrees if is_told or lies_like(self.depth.shape, self.color.shape) else 0
        label_map = self.label_map
        if label_map is not None and (is_told or lies_like(label_map.shape, self.color.shape)):
            label_map = turned_image(label_map, degrees)
        shapes: list[tuple[int, ...]] = [self.depth.shape]
        if self.color_intrinsics is None:
            shapes.append(self.color.shape if depth_turns else self.color.shape[1::-1])
        is_upright_camera = not depth_turns or belongs_to_turned(
            self.intrinsics.camera, shapes, known=self.intrinsics.size
        )
        view = View(
            turned_image(self.color, degrees),
            turned_image(self.depth, depth_turns),
            self.intrinsics.camera,
            self._turned_color_camera(degrees),
            label_map,
            self.intrinsics.size,
        )
        if is_upright_camera:
            return view, self.pose
        # With intrinsics of its own the color image is another camera's, and these belong to the depth image.
        color_shape = self.color.shape if self.color_intrinsics is None else self.depth.shape
        camera, size = turned_camera(
            self.intrinsics.camera, degrees, color_shape, self.depth.shape, known=self.intrinsics.size
        )
        view = dataclasses.replace(view, camera=camera, intrinsics_size=size)
        return view, None if self.pose is None else turned_pose(self.pose, degrees)

    def _view(self) -> View:
        return View(
            self.color,
            self.depth,
            self.intrinsics.camera,
            self._color_camera(),
            self.label_map,
            self.intrinsics.size,
        )

    def _color_camera(self) -> Camera | None:
        """The color image's own intrinsics in its pixels."""
        if self.color_intrinsics is None:
            return None
        shape = self.color.shape[:2]
        return owner_of_intrinsics(self.color_intrinsics.camera, shape, shape, known=self.color_intrinsics.size)[1]

    def _turned_color_camera(self, degrees: int) -> Camera | None:
        if self.color_intrinsics is None:
            return None
        camera, size = self.color_intrinsics.camera, self.color_intrinsics.size
        if belongs_to_turned(camera, [self.color.shape], known=size):
            return owner_of_intrinsics(camera, self.color.shape[1::-1], self.color.shape[1::-1], known=size)[1]
        return turned_camera(camera, degrees, self.color.shape, self.color.shape, known=size)[0]
