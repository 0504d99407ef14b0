"""The map of a room that grows with a stream, and is looked at in other threads meanwhile."""

import dataclasses
import threading

from ammnet_sparse.camera.files.poses import Pose
from ammnet_sparse.camera.files.sequences.sequence import PoseGroups, describe_jump, has_moved
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.page import Scene
from ammnet_sparse.pictures.palettes import Palette, painted
from ammnet_sparse.pictures.room_files import room_scene
from ammnet_sparse.scene_map.scene_map import SceneMap


class LiveMap:
    """The map of the frames of a stream.

    Args:
        completer: completes the frames.
        min_motion: meters that the camera must have moved (or turned by 15 degrees) since the last frame in the map,
            for a frame to be added. A camera at rest would fill the disk with frames that say the same.
        palette: colors of the classes in ``scene``.

    Attributes:
        map: once the stream has ended.
    """

    def __init__(self, completer: SceneCompleter, *, min_motion: float, palette: Palette = "set") -> None:
        self.map = SceneMap(completer)
        self._min_motion = min_motion
        self._palette = palette
        self._last: Pose | None = None
        self._poses = PoseGroups()
        self._lock = threading.Lock()

    def frame_of(self, stored: StoredImages) -> StoredImages:
        """Nothing is prepared: the place of a frame depends on those before."""
        return stored

    def complete_frame(self, stored: StoredImages) -> CompletedScene:
        """Completes a frame, and adds it to the map if the camera has moved.

        Raises:
            DataError: as ``SceneMap.add``, or one of few poses that are away from all others (``PoseGroups``).
        """
        with self._lock:
            pose = stored.pose
            if pose is None:
                return self.map.add_stored(stored)  # raises the error
            group = self._poses.add(pose)
            if self._last is not None:
                if self._poses.is_lonely(group):
                    raise DataError(f"{describe_jump(pose, self._last)}, away from all others")
                if not has_moved(pose, self._last, min_motion=self._min_motion):
                    return self.map.complete(stored)
            scene = self.map.add_stored(stored)
            self._last = pose
            return scene

    def scene(self) -> Scene:
        """The room as a scene of the page; waits for the frame that is being completed."""
        with self._lock:
            volume = self.map.volume()
        return room_scene(dataclasses.replace(volume, info=painted(volume.info, self._palette)))
