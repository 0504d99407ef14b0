"""Training frames from posed RGB-D frames of a room and its labeled mesh.

A voxel on the mesh has the class of the surface in it. One that some frame of the sequence looks through is empty.
All others, inside of things and behind walls, are unknown.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.intrinsics import intrinsics_of
from ammnet_sparse.camera.files.sequences.layouts import open_sequence
from ammnet_sparse.camera.files.sequences.sequence import PosedFrame, PosedSequence
from ammnet_sparse.camera.frames import CameraFrame, make_frame
from ammnet_sparse.camera.images import CameraImages, camera_images
from ammnet_sparse.camera.labeled_mesh import LabeledPoints, read_labeled_mesh, voxel_votes
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.grid import EMPTY_LABEL, GRID_SHAPE, IGNORE_LABEL, VOXEL_SIZE
from ammnet_sparse.data.raw.pickled import Unknown
from ammnet_sparse.data.raw.plan import FoundFrames, PreparedFrame, SetPlan
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.data.volumes.camera import Camera, CameraView, pixels_of, voxels_in_view
from ammnet_sparse.data.volumes.labels import label_weight_of
from ammnet_sparse.files.errors import DataError

_MOST_VIEWS = 64
"""Frames of a sequence, evenly spread, that show which space is free."""
_STRIDE = 4
"""Every so many rows and columns of their depth are kept."""
_CLEAR = VOXEL_SIZE * 3**0.5 / 2
"""Meters from a voxel's center to its corners: so far behind it the surface seen must be."""


@dataclasses.dataclass(frozen=True)
class MeshPlan(SetPlan):
    """A set from a sequence of posed frames and the labeled mesh of its room.

    Attributes:
        source: folder or file of the sequence.
        mesh: PLY file in the world of the poses.
        out: folder of the set, made if missing.
        settings: of the camera, by name; those that are None come from the sequence.
        info: the classes.
        numbers: pairs of a number of the mesh and its class; None: numbers are those of the classes.
        split: name of the list that the frames are written to; those of ``val`` are in ``train`` too, as everywhere.
        unknown: what voxels count as that are neither on the mesh nor seen to be free.
        every: only every so many frames become frames of the set.
    """

    source: Path
    mesh: Path
    out: Path
    settings: tuple[tuple[str, Any], ...] = ()
    info: SetInfo = dataclasses.field(default=NYU, hash=False)
    numbers: tuple[tuple[int, int], ...] | None = None
    split: str = "train"
    unknown: Unknown = "ignore"
    every: int = 1

    def find(self) -> FoundFrames:
        room = _room(self)
        if (self.info.grid_shape, self.info.voxel_size) != (GRID_SHAPE, VOXEL_SIZE):
            raise DataError(
                f"classes: expected a grid of {GRID_SHAPE} voxels of {VOXEL_SIZE} m, which frames of a camera are made "
                f"for, found {self.info.grid_shape} of {self.info.voxel_size} m; leave both out"
            )
        names = ("train", "val") if self.split == "val" else (self.split,)
        return FoundFrames({name: list(room.frames) for name in names}, room.sequence.problems)

    def sources(self, frame_id: str) -> list[Path]:
        return [self.mesh]

    def read(self, frame_id: str) -> PreparedFrame:
        room = _room(self)
        images = room.images(room.frames[frame_id])
        frame = make_frame(images, room.settings, name=frame_id)
        given = frame.placement.world_from_given
        assert given is not None
        label = voxel_votes(room.points, transform=given, origin=frame.origin, num_classes=self.info.num_classes)
        if not ((label > EMPTY_LABEL) & (label < IGNORE_LABEL)).any():
            raise DataError(
                f"frame {frame_id}: expected labeled surface of {self.mesh} in its grid, found none; are mesh and "
                "poses in one world, in meters?"
            )
        _mark_unknown(label, room, frame, images, unknown=self.unknown)
        view = voxels_in_view(CameraView(images.camera, frame.placement.pose, frame.origin))
        label, tsdf = label.reshape(-1), frame.tsdf.reshape(-1)
        mapping = frame.mapping.reshape(-1)
        return PreparedFrame(label, tsdf, label_weight_of(label, tsdf), mapping, image=images.image, view=view)

    @property
    def sequence(self) -> tuple[str, Path]:  # type: ignore[override]
        return _name_in_ids(self.source.resolve().name.removesuffix(".r3d")), self.source

    @property
    def record(self) -> dict[str, Any]:
        return {"from": "mesh", "unknown": self.unknown, "classes": list(self.info.class_names)}

    @property
    def has_images(self) -> bool:  # type: ignore[override]
        return _room(self).sequence.has_color


@dataclasses.dataclass(frozen=True, eq=False)
class _Room:
    """A sequence, its mesh, and the depth of some of its frames.

    Attributes:
        frames: those of the set, by id.
        views: depth, camera to the given world, and intrinsics of frames that show free space.
    """

    sequence: PosedSequence
    settings: CameraSettings
    frames: dict[str, PosedFrame]
    points: LabeledPoints

    def images(self, frame: PosedFrame) -> CameraImages:
        return camera_images(frame.read(), self.settings)

    @functools.cached_property
    def views(self) -> Sequence["_View"]:
        step = max(1, -(-len(self.sequence.frames) // _MOST_VIEWS))
        views = []
        for frame in self.sequence.frames[::step]:
            try:
                views.append(_View.of(self.images(frame)))
            except DataError:  # reported where it is a frame of the set
                continue
        return views


@functools.lru_cache(maxsize=1)
def _room(plan: MeshPlan) -> _Room:
    """What all frames of a plan need, read once in every process. Raises DataError."""
    given = dict(plan.settings)
    intrinsics = None if given.get("intrinsics") is None else intrinsics_of(given["intrinsics"])
    sequence = open_sequence(plan.source, intrinsics=intrinsics)
    if not sequence.has_poses:
        raise DataError(f"{plan.source}: expected frames with poses in the world of the mesh, found none")
    frames = {f"{plan.sequence[0]}_{_name_in_ids(frame.name)}": frame for frame in sequence.frames[:: plan.every]}
    convention = sequence.frames[0].pose_convention or "opencv"
    settings = CameraSettings(**{"pose_convention": convention, **sequence.camera_settings(given)})
    points = read_labeled_mesh(plan.mesh, plan.info, numbers=None if plan.numbers is None else dict(plan.numbers))
    return _Room(sequence, settings, frames, points)


def _name_in_ids(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    depth: NDArray[np.float32]
    pose: NDArray[np.float64]
    camera: Camera

    @classmethod
    def of(cls, images: CameraImages) -> "_View":
        assert images.pose is not None
        return cls(images.depth[::_STRIDE, ::_STRIDE].copy(), images.pose, images.camera)

    def is_free(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[N] whether voxels with these centers [N, 3] in the given world lie before the surface seen."""
        column, row, depth = pixels_of((points - self.pose[:3, 3]) @ self.pose[:3, :3], camera=self.camera)
        with np.errstate(invalid="ignore"):
            column, row = np.rint(column / _STRIDE), np.rint(row / _STRIDE)
            inside = (depth > 0) & (column >= 0) & (row >= 0)
            inside &= (column < self.depth.shape[1]) & (row < self.depth.shape[0])
        found = np.zeros(len(points), dtype=np.bool_)
        seen = self.depth[row[inside].astype(np.int64), column[inside].astype(np.int64)]
        found[inside] = seen > depth[inside] + _CLEAR
        return found


def _mark_unknown(
    label: NDArray[np.uint8], room: _Room, frame: CameraFrame, images: CameraImages, *, unknown: Unknown
) -> None:
    """Sets the voxels without surface that no frame looks through to 255, unless unknown space counts as empty."""
    if unknown == "empty":
        return
    left = np.argwhere(label == EMPTY_LABEL)
    world = frame.origin + (left[:, [0, 2, 1]] + 0.5) * VOXEL_SIZE
    to_given = np.linalg.inv(frame.placement.world_from_given)  # type: ignore[arg-type]
    points = world @ to_given[:3, :3].T + to_given[:3, 3]
    for view in (_View.of(images), *room.views):
        is_hidden = ~view.is_free(points)
        left, points = left[is_hidden], points[is_hidden]
    label[tuple(left.T)] = IGNORE_LABEL
