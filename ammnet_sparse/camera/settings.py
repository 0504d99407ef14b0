"""What is known about a user's camera and its files. A new setting is a field of ``CameraSettings`` and nothing else.

The options of ``ammnet predict`` and ``ammnet live``, the arguments of ``SceneCompleter`` and their checks derive from
these fields.
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ammnet_sparse.camera.files.depth import DEPTH_ENCODINGS, DepthEncoding
from ammnet_sparse.camera.files.intrinsics import Intrinsics, intrinsics_of
from ammnet_sparse.camera.files.label_maps import LABEL_MAP_CLASSES, LabelMapClasses
from ammnet_sparse.camera.files.poses import POSE_CONVENTIONS, PoseConvention
from ammnet_sparse.camera.geometry.given_pose import POSE_AXES
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.files.errors import DataError

TURNS = (0, 90, 180, 270)
"""Degrees clockwise by which images can be rotated."""
FileKind = Literal["color", "depth", "label_map", "pose"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a field of ``CameraSettings`` is given: one of some choices, a positive number, or otherwise intrinsics.

    Attributes:
        meaning: the help of its option.
        of: the kind of files that it describes; without such files it has no effect.
        metavar: stands for its value in the help.
        choices: the values allowed.
        number: what a number counts, such as "meters".
        below: what that number must be below.
    """

    meaning: str
    of: FileKind | None = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    number: str = ""
    below: float = math.inf

    def checked(self, name: str, value: Any) -> Any:
        """The field's value from a given one. Raises DataError, with the field's name, for an impossible one."""
        if not self.choices and not self.number:
            return intrinsics_of(value)
        if self.choices:
            if isinstance(value, np.integer):
                value = int(value)
            # Of equal values only one of the same type is meant: 90.0 and True are no angles.
            is_valid = any(type(value) is type(choice) and value == choice for choice in self.choices)
            expected = f"one of {', '.join(map(str, self.choices))}"
        else:
            limit = min(self.below, sys.float_info.max)
            is_valid = isinstance(value, numbers.Real) and value < limit and not value <= 0
            expected = f"{self.number} above 0" + (f" and below {self.below:g}" if self.below < math.inf else "")
        if not is_valid:
            raise DataError(f"`{name}`: expected {expected}, found {value!r}")
        return value


def _setting(meaning: str, **more: Any) -> dict[str, Setting]:
    """A field's metadata."""
    return {"setting": Setting(meaning, **more)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """What is known about a camera and the files that it writes; all but the last two fields are options.

    Intrinsics are given as (fx, fy, cx, cy) in pixels, these by name, a matrix, or a file (docs/own_camera.md). None
    means the default.

    Attributes:
        tsdf_is_flipped: the network was trained on NYUCAD, with TSDFs in the flipped convention.
        unobserved: what such a TSDF holds in unobserved space (``flip_tsdf``), as the network was trained.

    Raises:
        DataError: intrinsics that cannot be read, or a number or name that makes no sense.
    """

    intrinsics: Intrinsics = dataclasses.field(
        metadata=_setting(
            "fx,fy,cx,cy in pixels, or a file: these or a matrix, or JSON or YAML of Open3D, RealSense, ROS, ...",
            metavar="NUMBERS",
        )
    )
    color_intrinsics: Intrinsics | None = dataclasses.field(
        default=None,
        metadata=_setting(
            "of the color image, where it has other proportions than the depth image, whose --intrinsics then are",
            of="color",
            metavar="NUMBERS",
        ),
    )
    depth_scale: float | None = dataclasses.field(
        default=None,
        metadata=_setting(
            "depth units per meter (default: 1000, millimeters; floats: meters, where that gives a room)",
            of="depth",
            metavar="N",
            number="units per meter",
        ),
    )
    depth_encoding: DepthEncoding = dataclasses.field(
        default="auto",
        metadata=_setting(
            "how depth is stored: rotated is SUN RGB-D's and SSCNet's, plain trusts --depth-scale (default: auto)",
            of="depth",
            choices=DEPTH_ENCODINGS,
        ),
    )
    rotate: int | None = dataclasses.field(
        default=None,
        metadata=_setting(
            "degrees clockwise that make the images upright, intrinsics and pose with them; 0: none (default: EXIF)",
            choices=TURNS,
        ),
    )
    pose_up: str | None = dataclasses.field(
        default=None,
        metadata=_setting(
            "axis of the pose's world that is up, as --pose-up=-y (default: detected)", of="pose", choices=POSE_AXES
        ),
    )
    pose_convention: PoseConvention | None = dataclasses.field(
        default=None,
        metadata=_setting(
            "camera axes of the pose: opencv has y down and z forward, opengl y up and z back, as ARKit, nerfstudio "
            "and Blender (default: by the depth)",
            of="pose",
            choices=POSE_CONVENTIONS,
        ),
    )
    camera_height: float | None = dataclasses.field(
        default=None,
        metadata=_setting(
            "meters above the floor (default: the floor is detected)", metavar="M", number="meters", below=100
        ),
    )
    label_map_classes: LabelMapClasses = dataclasses.field(
        default="nyu13",
        metadata=_setting("classes of label maps (default: nyu13, 0..13)", of="label_map", choices=LABEL_MAP_CLASSES),
    )
    tsdf_is_flipped: bool = False
    unobserved: Unobserved = "free"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is not dataclasses.MISSING:
                object.__setattr__(self, field.name, field.default)
            elif field.name in SETTINGS:
                object.__setattr__(self, field.name, SETTINGS[field.name].checked(field.name, value))


SETTINGS: Mapping[str, Setting] = {
    field.name: field.metadata["setting"] for field in dataclasses.fields(CameraSettings) if field.metadata
}
"""By the names of the fields: the options of the commands and arguments of ``SceneCompleter``."""
