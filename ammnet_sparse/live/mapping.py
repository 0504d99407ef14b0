"""The map of a room that grows with a stream, and is looked at in other threads meanwhile."""

import dataclasses
import threading
from collections.abc import Callable

from ammnet_sparse.camera.files.poses import Pose
from ammnet_sparse.camera.files.sequences.sequence import has_moved
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.page import Scene
from ammnet_sparse.pictures.palettes import Palette, painted
from ammnet_sparse.pictures.room_files import room_scene
from ammnet_sparse.scene_map.scene_map import SceneMap
from ammnet_sparse.scene_map.volume import MapVolume


class LiveMap:
    """The map of the frames of a stream.

    Args:
        completer: completes the frames.
        min_motion: meters that the camera must have moved (or turned by 15 degrees) since the last frame in the map,
            for a frame to be added. A camera at rest would fill the disk with frames that say the same.
        palette: colors of the classes in ``scene``.
    """

    def __init__(self, completer: SceneCompleter, *, min_motion: float, palette: Palette = "set") -> None:
        self._map = SceneMap(completer)
        self._min_motion = min_motion
        self._palette = palette
        self._last: Pose | None = None
        self._lock = threading.Lock()

    @property
    def num_frames(self) -> int:
        """Frames in the map."""
        return self._map.num_frames

    def frame_of(self, stored: StoredImages) -> StoredImages:
        """Nothing is prepared: the place of a frame depends on those before."""
        return stored

    def complete_frame(self, stored: StoredImages) -> CompletedScene:
        """Completes a frame, and adds it to the map if the camera has moved. Errors as ``SceneMap.add``."""
        with self._lock:
            if self._is_at_rest(stored.pose):
                return self._map.complete(stored)
            scene = self._map.add_stored(stored)
            self._last = stored.pose
            return scene

    def _is_at_rest(self, pose: Pose | None) -> bool:
        if pose is None or self._last is None:
            return False
        return not has_moved(pose, self._last, min_motion=self._min_motion)

    def scene(self) -> Scene:
        """The room as a scene of the page; waits for the frame that is being completed."""
        with self._lock:
            volume = self._map.volume()
        return room_scene(dataclasses.replace(volume, info=painted(volume.info, self._palette)))

    def finish(self, progress: Callable[[int], None]) -> None:
        """As ``SceneMap.finish``."""
        with self._lock:
            self._map.finish(progress)

    def volume(self) -> MapVolume:
        """The map as it is."""
        with self._lock:
            return self._map.volume()
