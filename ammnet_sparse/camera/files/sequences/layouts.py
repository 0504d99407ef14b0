"""Opening a sequence: its layout is recognized by its files."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ammnet_sparse.camera.files.frame_files import FOLDERS, FrameFiles, find_frames
from ammnet_sparse.camera.files.intrinsics import Intrinsics, read_intrinsics
from ammnet_sparse.camera.files.sequences.record3d import open_record3d
from ammnet_sparse.camera.files.sequences.sequence import PosedFrame, PosedSequence
from ammnet_sparse.camera.files.stored import read_pose, read_stored
from ammnet_sparse.files.errors import DataError, abbreviated

_KINDS = ("color", "depth")
_POSES = (
    "*.pose.txt",
    "groundtruth.txt",
    *FOLDERS["pose"],
    "trajectory.log",
    "*.log",
    "traj*.txt",
    "*poses*.txt",
    "transforms.json",
)
"""Files of one pose each, folders of poses, and trajectories; the first that exists counts."""
_COLOR_BESIDE_DEPTH = ("rgb.txt", "*.color.*", "*.rgb.*", "*.jpg")
_SHARED_INTRINSICS = ("cam_params.json", "*intrinsic*.*")
_INTRINSICS = ("intrinsic/intrinsic_depth.txt", *_SHARED_INTRINSICS, "camera_info.*", "camera.*", "calibration.*")
"""Usual names of files of intrinsics, in a sequence's folder; the shared ones also in the one above it, which holds
several sequences."""
_COLOR_INTRINSICS = ("intrinsic/intrinsic_color.txt",)
_INTRINSICS_TYPES = (".txt", ".json", ".yaml", ".yml", ".toml", ".xml", ".ini", ".npy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """How sequences of one kind are stored.

    Attributes:
        name: for people.
        files: its files in words.
        marks: patterns that all match something; they tell the layout.
        images: the folder of color and depth; None: each has its own, of a usual name.
        depth_scale: units per meter.
        usual: intrinsics that its authors name, for sequences that come without.
    """

    name: str
    files: str
    marks: Sequence[str]
    images: str | None = None
    depth_scale: float | None = None
    usual: str = ""


_LAYOUTS = (
    _Layout(
        name="TUM",
        files="rgb.txt, depth.txt, groundtruth.txt",
        marks=("rgb.txt", "depth.txt"),
        images=".",
        depth_scale=5000.0,
        usual="525,525,319.5,239.5",
    ),
    _Layout(
        name="Replica",
        files="results/frame*.jpg, results/depth*.png, traj.txt, cam_params.json",
        marks=("results/frame*", "results/depth*"),
        images="results",
    ),
    _Layout(
        name="ScanNet",
        files="color/, depth/, pose/, intrinsic/intrinsic_depth.txt",
        marks=("color", "depth", "intrinsic/intrinsic_depth.txt"),
    ),
    _Layout(
        name="7-Scenes",
        files="frame-*.color.png, frame-*.depth.png, frame-*.pose.txt",
        marks=("*.depth.*",),
        images=".",
        usual="585,585,320,240",
    ),
    _Layout(
        name="folders",
        files="color/ (or rgb/, image/), depth/, and a trajectory (*.log, *.txt, transforms.json) or pose/",
        marks=(),
    ),
)
_RECORD3D = "Record3D: a file *.r3d"


def open_sequence(path: Path, *, intrinsics: Intrinsics | None = None, reads_poses: bool = True) -> PosedSequence:
    """The frames of a sequence with their poses; images are read later.

    The layouts are those of 7-Scenes, TUM, ScanNet's export, Replica as SLAM systems export it, Record3D, and folders
    of color and depth images with a folder of poses or any trajectory (``read_trajectory``), such as Open3D's. Frames
    whose pose is missing, not finite, no rotation, or alone far from all others are left out, with a line each.

    Args:
        path: a folder, or a file ``.r3d``.
        intrinsics: used in place of the sequence's own.
        reads_poses: False leaves them out.

    Raises:
        DataError: no such layout, no intrinsics, or no usable frame.
    """
    if path.suffix.lower() == ".r3d":
        return open_record3d(path, intrinsics=intrinsics, reads_poses=reads_poses).checked()
    layout = _layout_of(path)
    color, depth = (_first(path, FOLDERS[kind] if layout.images is None else [layout.images]) for kind in _KINDS)
    if depth is None:
        raise _unknown(path)
    if depth == path and _first(path, _COLOR_BESIDE_DEPTH) is None:
        color = None
    pose = _first(path, _POSES)
    if pose is not None and pose.match(_POSES[0]):
        pose = path
    found, problems = find_frames(color, depth, pose=pose if reads_poses else None, leaves_out_doubles=True)
    frames = []
    for files in found:
        try:
            frames.append(_posed(files))
        except DataError as error:
            problems.append(f"frame {files.name}: {error}")
    color_intrinsics = None
    if intrinsics is None:
        intrinsics = _intrinsics_of(path, layout)
        given = _first(path, _COLOR_INTRINSICS)
        color_intrinsics = None if given is None or color is None else read_intrinsics(str(given))
    return PosedSequence(
        path=path,
        layout=layout.name,
        frames=frames,
        intrinsics=intrinsics,
        color_intrinsics=color_intrinsics,
        depth_scale=layout.depth_scale,
        has_color=color is not None,
        problems=tuple(problems),
    ).checked()


def _posed(files: FrameFiles) -> PosedFrame:
    """A frame of files; its pose is read now."""
    pose, convention = (None, None) if files.pose is None else read_pose(files, files.pose)
    return PosedFrame(files.name, pose, partial(read_stored, dataclasses.replace(files, pose=None)), convention)


def _layout_of(path: Path) -> _Layout:
    """The first layout all of whose marks are there. Raises DataError for none."""
    if not path.exists():
        raise DataError(f"{path}: expected a folder or a file .r3d with a sequence, found nothing; check the path")
    for layout in _LAYOUTS:
        if path.is_dir() and all(any(path.glob(mark)) for mark in layout.marks):
            return layout
    raise _unknown(path)


def _unknown(path: Path) -> DataError:
    """The error that says what was found and which layouts are known."""
    found = "a file"
    if path.is_dir():
        names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in path.iterdir())
        found = abbreviated(names, 5)
    known = "; ".join([*(f"{layout.name}: {layout.files}" for layout in _LAYOUTS), _RECORD3D])
    return DataError(f"{path}: expected a sequence of posed frames, found {found}; known layouts are {known}")


def _first(folder: Path, places: Sequence[str]) -> Path | None:
    """The first of these places in a folder; of several files of one pattern the first by name."""
    return next((one for place in places for one in ([folder] if place == "." else sorted(folder.glob(place)))), None)


def _intrinsics_of(path: Path, layout: _Layout) -> Intrinsics:
    """Those of the sequence's own file. Raises DataError if it has none, or one that cannot be read."""
    for folder, patterns in ((path, _INTRINSICS), (path.absolute().parent, _SHARED_INTRINSICS)):
        for found in (one for pattern in patterns for one in sorted(folder.glob(pattern))):
            if found.is_file() and found.suffix.lower() in _INTRINSICS_TYPES:
                return read_intrinsics(str(found))
    usual = f"; those of {layout.name} are usually {layout.usual}" if layout.usual else ""
    raise DataError(f"{path}: expected a file of intrinsics or `intrinsics`, found neither{usual}")
