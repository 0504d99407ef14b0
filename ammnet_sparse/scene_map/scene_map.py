"""Many posed frames of one room, completed one by one and fused into one map: ``SceneMap``."""

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.images import CameraImages
from ammnet_sparse.completion import SceneCompleter, stored_arrays
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.scene_map.estimate import RoomEstimate
from ammnet_sparse.scene_map.files import SavedMap, read_map, write_map
from ammnet_sparse.scene_map.frames import MapFrame, ReadFrame, kept_images
from ammnet_sparse.scene_map.fused import FusedFrames
from ammnet_sparse.scene_map.fusion import evidence_of
from ammnet_sparse.scene_map.room import GivenPose, Room
from ammnet_sparse.scene_map.volume import MapVolume

AGAIN_WITH_EACH = 2
"""Frames that are placed and completed again with each new one, while the room has moved."""
_FARTHEST = 100.0
"""Meters from the first frame: a pose farther away is wrong, and would spoil the room of all frames."""


class SceneMap:
    """Completes the posed frames of a room, and fuses them into one map that grows with them.

    Vertical, floor and walls are found once, over all frames. When later frames move them by more than half a voxel,
    the frames before are completed again in a second map, two with each new frame. Until it is done the first one is
    shown, with new frames at its nearest voxels. ``finish`` does the rest: then the map does not depend on the order of
    its frames. ``look_at`` saves completing frames twice that are all there already. The images of ``add`` are kept
    where the system keeps temporary files, to be placed again (1.5 MB for a frame of 640 x 480).

    Args:
        completer: completes the frames; its settings say what is known about the camera.
        room: the room, if it is known; then nothing is searched, placed again or kept.

    Attributes:
        notes: lines about frames that could not be read again and are missing in the map.
    """

    def __init__(self, completer: SceneCompleter, *, room: Room | None = None) -> None:
        self.notes: list[str] = []
        self._completer = completer
        self._frames: list[MapFrame] = []
        self._estimate = RoomEstimate(completer.settings) if room is None else None
        self._fused = None if room is None else FusedFrames(room, completer.info)
        self._next: FusedFrames | None = None
        self._unreadable: FusedFrames | None = None
        self._waiting: list[int] = []
        self._looked_at: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the frames in the map."""
        return tuple(frame.name for frame in self._frames)

    @property
    def given_poses(self) -> dict[str, GivenPose]:
        """The poses of the frames in the map as they were given, by name."""
        return {frame.name: frame.given for frame in self._frames}

    @property
    def num_frames(self) -> int:
        """Frames in the map."""
        return len(self._frames)

    @property
    def num_bytes(self) -> int:
        """Memory of the voxels; frames take almost none."""
        return sum(fused.num_bytes for fused in (self._fused, self._next) if fused is not None)

    @property
    def num_waiting(self) -> int:
        """Frames that are still to be completed again because the room has moved."""
        return len(self._waiting)

    @property
    def room(self) -> Room:
        """The room that the map is aligned with. Raises ValueError before the first frame."""
        return self._known.room

    @functools.cached_property
    def _folder(self) -> "tempfile.TemporaryDirectory[str]":
        """Of the images kept; it is removed with the map."""
        return tempfile.TemporaryDirectory(prefix="ammnet-map-")

    @property
    def _known(self) -> FusedFrames:
        if self._fused is None:
            raise ValueError("the map: expected frames, found none; `add` one first")
        return self._fused

    def add(
        self,
        color: NDArray[np.uint8] | None,
        depth: NDArray[Any],
        pose: ArrayLike,
        *,
        label_map: NDArray[Any] | None = None,
        name: str | None = None,
    ) -> CompletedScene:
        """Adds a frame from arrays; arguments and errors as a call of ``SceneCompleter``, but the pose is needed.

        Returns:
            The frame by itself, in a world that is the map's but for quarter turns.
        """
        name = f"{self.num_frames:06d}" if name is None else name
        return self.add_stored(stored_arrays(color, depth, pose, label_map=label_map, name=name))

    def add_stored(self, stored: StoredImages) -> CompletedScene:
        """Adds a frame that a source of ``ammnet live`` has read; its images are kept as those of ``add``."""
        read = None
        if self._estimate is not None:
            read = kept_images(stored, Path(self._folder.name) / f"{self.num_frames:06d}.npz")
        return self._add(stored, read)

    def add_frame(self, read: ReadFrame) -> CompletedScene:
        """Adds a frame that can be read again, for instance from files. It is called once or more.

        Raises:
            DataError: what ``read`` raises, no pose, one over 100 m from the first frame's, or as
                ``SceneCompleter.complete``. The map is as before; only a frame looked at stays in its room.
        """
        return self._add(read(), read)

    def complete(self, stored: StoredImages) -> CompletedScene:
        """Completes a frame in the room of the map, without adding it; errors as ``add_frame``, ``room``."""
        images, given = self._images_of(stored)
        return self._complete(images, given, stored.name, (self._next or self._known).room)

    def look_at(self, stored: StoredImages) -> None:
        """Finds the room with a frame, too, that is added later: once all were looked at, each is completed only once.

        Raises:
            DataError: as ``add_frame``.
        """
        if self._estimate is not None and stored.name not in self._looked_at:
            self._estimate.add(*self._images_of(stored))
            self._looked_at.add(stored.name)

    def finish(self, progress: Callable[[int], None] | None = None) -> None:
        """Completes again all frames whose place has moved. The map then depends on its frames, not on their order.

        Args:
            progress: called with the number of frames that are left, before each.
        """
        if self._estimate is not None and self._estimate.num_frames:
            self._place(self._estimate.room(), exactly=True)
        while self._next is not None:
            if progress is not None:
                progress(len(self._waiting))
            self._complete_again(1)

    def volume(self) -> MapVolume:
        """The map at this moment.

        Raises:
            ValueError: before the first frame.
            DataError: frames over more than about 100 x 100 m.
        """
        fused = self._known
        poses = np.array([fused.room.pose_of(frame.given) for frame in self._frames]).reshape(-1, 4, 4)
        return fused.volume(poses, tuple(frame.name for frame in self._frames))

    def save(self, path: str | Path) -> None:
        """Writes the map as it can be read now, atomically; ``load`` continues it.

        Raises:
            ValueError: before the first frame.
            OSError: the file cannot be written.
        """
        readings, num_seen = {}, 0
        if self._estimate is not None:
            readings, num_seen = self._estimate.readings, self._estimate.num_frames
        write_map(path, SavedMap(self._known, self._frames, readings, num_seen, tuple(sorted(self._looked_at))))

    @classmethod
    def load(
        cls,
        path: str | Path,
        completer: SceneCompleter,
        *,
        frames: Mapping[str, ReadFrame] | None = None,
    ) -> "SceneMap":
        """A map that was saved, to be continued.

        Args:
            path: written by ``save``.
            completer: as of a new map; its classes must be the map's.
            frames: how to read the map's frames again, by name. If one is missing, none is read: when later frames
                move the room, the earlier part of the map is moved as a whole, every voxel from the nearest one.

        Raises:
            DataError: a file that is missing, damaged, or of other classes.
        """
        saved = read_map(path)
        _check_same(saved.fused.info, completer.info, path)
        scene_map = cls(completer, room=None if saved.readings else saved.fused.room)
        if saved.readings:
            scene_map._estimate = RoomEstimate(completer.settings, readings=saved.readings, num_frames=saved.num_seen)
        scene_map._looked_at = set(saved.looked_at)
        reads = [None if frames is None else frames.get(frame.name) for frame in saved.frames]
        if None in reads:
            reads, scene_map._unreadable = [None] * len(reads), saved.fused
        scene_map._fused = saved.fused if scene_map._unreadable is None else saved.fused.moved_to(saved.fused.room)
        scene_map._frames = [
            dataclasses.replace(frame, read=read) for frame, read in zip(saved.frames, reads, strict=True)
        ]
        return scene_map

    def _images_of(self, stored: StoredImages) -> tuple[CameraImages, GivenPose]:
        images = self._completer.images_of(stored)
        given = GivenPose.of_images(images)
        if given is None:
            said = "expected a pose, which places it in the map, found none; give one (`pose`)"
            raise DataError(f"frame {stored.name}: {said}")
        distance = np.linalg.norm((given.matrix - self._frames[0].given.matrix)[:3, 3]) if self._frames else 0.0
        if distance > _FARTHEST:
            said = f"expected a pose within {_FARTHEST:g} m of the first frame's, found one at {distance:,.0f} m"
            raise DataError(f"frame {stored.name}: {said}; poses are in meters")
        return images, given

    def _add(self, stored: StoredImages, read: ReadFrame | None) -> CompletedScene:
        """Finds the room with a new frame, if it is time, and completes and fuses the frame."""
        images, given = self._images_of(stored)
        before = copy.copy(self._estimate), self._fused, self._next, self._waiting
        try:
            if self._estimate is not None:
                if stored.name not in self._looked_at:
                    self._estimate.add(images, given)
                if self._estimate.is_due:
                    self._place(self._estimate.room(), exactly=False)
            scene = self._complete(images, given, stored.name, (self._next or self._known).room)
        except BaseException:  # Ctrl-C, too
            self._estimate, self._fused, self._next, self._waiting = before
            raise
        evidence = evidence_of(scene)
        for fused in (self._fused, self._next):
            if fused is not None:
                fused.fuse(scene, evidence)
        self._frames.append(MapFrame(stored.name, given, read))
        self._complete_again(AGAIN_WITH_EACH)
        return scene

    def _complete(self, images: CameraImages, given: GivenPose, name: str, room: Room) -> CompletedScene:
        return self._completer.complete_images(images, name=name, placement=room.place(given))

    def _place(self, room: Room, *, exactly: bool) -> None:
        """Begins a second map if the room has moved; one that was begun before is given up.

        Args:
            exactly: otherwise changes of up to half a voxel do not count.
        """
        if self._fused is None or not self._frames:
            self._fused = FusedFrames(room, self._completer.info)
        target = self._next or self._fused
        if room.is_at(target.room) or not (exactly or target.is_off(room)):
            return
        self._next, self._waiting = None, []
        if not room.is_at(self._fused.room):
            before = self._unreadable
            self._next = FusedFrames(room, self._completer.info) if before is None else before.moved_to(room)
            self._waiting = [index for index, frame in enumerate(self._frames) if frame.read is not None]

    def _complete_again(self, count: int) -> None:
        """Completes some of the waiting frames again; the last one makes the second map the first."""
        if self._next is None:
            return
        for index in self._waiting[:count]:
            frame = self._frames[index]
            assert frame.read is not None
            try:
                images = self._completer.images_of(frame.read())
                scene = self._complete(images, frame.given, frame.name, self._next.room)
                self._next.fuse(scene, evidence_of(scene))
            except DataError as error:
                self.notes.append(f"frame {frame.name}: is missing in the map: {error}")
            self._waiting = self._waiting[1:]  # not before: if it is interrupted, the frame still waits
        if not self._waiting:
            self._fused, self._next = self._next, None


def _check_same(saved: SetInfo, info: SetInfo, path: str | Path) -> None:
    """Raises DataError if a map has other classes or voxels than the network."""
    for name in ("class_names", "grid_shape", "voxel_size"):
        expected, found = getattr(info, name), getattr(saved, name)
        if expected != found:
            raise DataError.about(
                path,
                expected=f"a map with the network's {name} {expected}",
                found=str(found),
                advice="use the weights that it was made with",
            )
