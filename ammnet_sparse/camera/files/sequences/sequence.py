"""The frames of a moving camera with their poses: which of them are usable, and which are worth taking."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.poses import Pose, PoseConvention
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.files.errors import DataError

MIN_TURN = 15.0
"""Degrees of rotation after which a frame is taken however little the camera has moved."""
_LARGEST_STEP, _LARGEST_TURN = 1.0, 60.0
"""Meters and degrees between neighboring frames that a camera may move, if the sequence's other steps are small."""
_UNUSUAL = 10.0
"""Larger steps are allowed up to this multiple of the sequence's median step."""
_FEW = 10
"""So many frames and fewer that are away from all others are left out."""
_LOOKED_AT = 5
"""So many frames, evenly spread, say which size images have."""


@dataclasses.dataclass(frozen=True, eq=False)
class PosedFrame:
    """A frame whose images are read when they are needed.

    Attributes:
        name: of the frame, for people and files.
        pose: [4, 4] camera to world, or None.
        read_images: reads the images; raises DataError.
        pose_convention: the pose's camera axes, where its file says so.
    """

    name: str
    pose: Pose | None
    read_images: Callable[[], StoredImages]
    pose_convention: PoseConvention | None = None

    def read(self) -> StoredImages:
        """The images with the pose. Raises DataError for images that cannot be read."""
        images = self.read_images()
        return dataclasses.replace(images, name=self.name, pose=self.pose, pose_convention=self.pose_convention)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PosedSequence:
    """The usable frames of a sequence, in order.

    Attributes:
        path: of the folder or file.
        layout: name of the layout that was recognized.
        frames: all have a pose, or none has.
        intrinsics: of the depth image, or of both images.
        color_intrinsics: of the color image, if it has its own.
        depth_scale: units of the depth image per meter, if the layout defines it.
        has_color: whether the frames have color images.
        problems: a line for each frame or file that was left out.
        notes: a line for each jump of the poses after which they stay where they are.
    """

    path: Path
    layout: str
    frames: Sequence[PosedFrame]
    intrinsics: Intrinsics
    color_intrinsics: Intrinsics | None = None
    depth_scale: float | None = None
    has_color: bool = True
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_poses(self) -> bool:
        """Whether the frames have poses."""
        return any(frame.pose is not None for frame in self.frames)

    def camera_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of ``CameraSettings``: those given that are not None, and for the others what the sequence says."""
        own = {
            "intrinsics": self.intrinsics,
            "color_intrinsics": self.color_intrinsics,
            "depth_scale": self.depth_scale,
        }
        return own | {name: value for name, value in given.items() if value is not None}

    def checked(self) -> "PosedSequence":
        """Without frames that lack a pose others have, and without jumps; images must all have one size.

        Raises:
            DataError: no frame is left.
        """
        frames, problems, notes = list(self.frames), list(self.problems), list(self.notes)
        if self.has_poses:
            problems += [f"frame {frame.name}: expected a pose, found none" for frame in frames if frame.pose is None]
            frames, lonely, jumps = _without_jumps([frame for frame in frames if frame.pose is not None])
            problems, notes = problems + lonely, notes + jumps
        if not frames:
            said = f"; {problems[0]}" if problems else ""
            raise DataError(f"{self.path}: expected frames ({self.layout}), found none that can be used{said}")
        sizes = _Sizes(frames)
        frames = [dataclasses.replace(frame, read_images=sizes.checking(frame)) for frame in frames]
        return dataclasses.replace(self, frames=tuple(frames), problems=tuple(problems), notes=tuple(notes))

    def taken(self, *, every: int = 1, min_motion: float | None = None) -> list[PosedFrame]:
        """Every ``every``-th frame; of these, each that is so many meters or ``MIN_TURN`` degrees from the last taken.

        Frames without poses are not chosen by motion.
        """
        frames = list(self.frames[::every])
        if min_motion is None or not self.has_poses:
            return frames
        taken = frames[:1]
        for frame in frames[1:]:
            if has_moved(_pose_of(frame), _pose_of(taken[-1]), min_motion=min_motion):
                taken.append(frame)
        return taken


class _Sizes:
    """The sizes of color, depth and label map that most of a few frames have, which the others must have too."""

    def __init__(self, frames: Sequence[PosedFrame]) -> None:
        self._looked_at = frames[:: -(-len(frames) // _LOOKED_AT)]

    @functools.cached_property
    def _usual(self) -> tuple[tuple[int, ...] | None, ...]:
        counts: collections.Counter[tuple[tuple[int, ...] | None, ...]] = collections.Counter()
        for frame in self._looked_at:
            with contextlib.suppress(DataError):  # raised again where the frame itself is read
                counts[_sizes_of(frame.read_images())] += 1
        return max(counts, key=counts.__getitem__, default=())

    def checking(self, frame: PosedFrame) -> Callable[[], StoredImages]:
        """The reader of the frame, with the check."""
        read, name = frame.read_images, frame.name

        def read_checked() -> StoredImages:
            images = read()
            sizes = _sizes_of(images)
            self._usual = self._usual or sizes
            if sizes != self._usual:
                raise DataError(f"frame {name}: expected images of {_said(self._usual)}, found {_said(sizes)}")
            return images

        return read_checked


def _sizes_of(images: StoredImages) -> tuple[tuple[int, ...] | None, ...]:
    """Rows and columns of color, depth and label map."""
    arrays = (images.color, images.depth, images.label_map)
    return tuple(None if array is None else array.shape[:2] for array in arrays)


def _said(sizes: Sequence[tuple[int, ...] | None]) -> str:
    """Sizes in words: those of color, depth and label map."""
    return " and ".join(f"{size[1]}x{size[0]}" for size in sizes if size is not None)


def _pose_of(frame: PosedFrame) -> Pose:
    assert frame.pose is not None
    return frame.pose


def has_moved(pose: Pose, other: Pose, *, min_motion: float) -> bool:
    """Whether a camera is so many meters or ``MIN_TURN`` degrees from another place."""
    meters, degrees = _motion(pose, other[None])
    return bool(meters[0] >= min_motion or degrees[0] >= MIN_TURN)


def _motion(pose: Pose, others: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Meters and degrees between a pose and others [N, 4, 4]; [N] each."""
    meters = np.linalg.norm(others[:, :3, 3] - pose[:3, 3], axis=1)
    cosine = (np.einsum("nij,ij->n", others[:, :3, :3], pose[:3, :3]) - 1) / 2
    return meters, np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _distance(pose: Pose, others: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] as ``_motion`` in one number: 1 is the largest step or turn of a camera."""
    meters, degrees = _motion(pose, others)
    return np.maximum(meters / _LARGEST_STEP, degrees / _LARGEST_TURN)


class PoseGroups:
    """Poses one after another: each continues the group whose last pose it is near to, or begins a new one."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        """Places of the poses, in the order of ``add``."""
        self._last: list[Pose] = []
        self._previous: Pose | None = None
        self._steps: list[float] = []

    def add(self, pose: Pose, *, limit: float | None = None) -> list[int]:
        """The group of the next pose. ``limit`` is the largest step; None: by the steps so far."""
        if self._previous is not None:
            self._steps.append(float(_distance(pose, self._previous[None])[0]))
        self._previous = pose
        distances = _distance(pose, np.stack(self._last)) if self.groups else np.array([math.inf])
        nearest = int(distances.argmin())
        if distances[nearest] > (step_limit(self._steps) if limit is None else limit):
            nearest = len(self.groups)
            self.groups.append([])
            self._last.append(pose)
        self.groups[nearest].append(len(self._steps))
        self._last[nearest] = pose
        return self.groups[nearest]

    def is_lonely(self, group: list[int]) -> bool:
        """Whether a group is of few poses that are away from all others."""
        return len(group) <= _FEW and len(group) < max(map(len, self.groups))


def step_limit(steps: Sequence[float]) -> float:
    """The largest step that a camera may make whose steps these are, in units of ``_distance``."""
    return max(1.0, _UNUSUAL * float(np.median(steps)) if steps else 0.0)


def describe_jump(pose: Pose, before: Pose) -> str:
    """How far a pose is from the one before it, in words."""
    meters, degrees = (float(one[0]) for one in _motion(before, pose[None]))
    return f"the pose jumps by {meters:.1f} m and {degrees:.0f} degrees"


def _without_jumps(frames: Sequence[PosedFrame]) -> tuple[list[PosedFrame], list[str], list[str]]:
    """The frames without the few whose poses are away from all others; a line for each of these, and for each jump."""
    poses = [_pose_of(frame) for frame in frames]
    limit = step_limit([float(_distance(a, b[None])[0]) for a, b in itertools.pairwise(poses)])
    found = PoseGroups()
    for pose in poses:
        found.add(pose, limit=limit)
    kept: list[int] = []
    lonely: list[str] = []
    jumps: list[str] = []
    for group in found.groups:
        names = " to ".join(dict.fromkeys(frames[index].name for index in (group[0], group[-1])))
        said = f"frame {names}: {describe_jump(poses[group[0]], poses[max(0, group[0] - 1)])}"
        if found.is_lonely(group):
            lonely.append(f"{said}, away from all others" if group[0] else f"frame {names}: is away from all others")
            continue
        if kept:
            jumps.append(f"{said} and stays there; the frames are used")
        kept += group
    return [frames[index] for index in sorted(kept)], lonely, jumps
