#!/usr/bin/env python3
"""Measures a map of one floor of a generated house: time of an update beside images and network, and memory.

    python tools/bench_map.py --frames 1000

The rooms of the house stand side by side; a camera walks through one after the other. Frames are of depth without
noise. In place of TSDF and network, a frame's voxels are those of the first frame of its room, at its own place. Times
are CPU time of one thread: of ``SceneMap.add_frame`` without reading, images and completion, also of frames that are
completed again, whose number is given.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ammnet_sparse import SceneCompleter, SceneMap
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.frames import aligned_origin
from ammnet_sparse.camera.geometry.placement import Placement
from ammnet_sparse.camera.images import CameraImages
from ammnet_sparse.data.synthetic.raycast import cast_depth
from ammnet_sparse.data.synthetic.walk import make_walk
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.progress import ProgressBar

SPACING = 6.5
"""Meters from the middle of a room to that of the next; generated rooms are smaller."""
SHAPE, CAMERA = (240, 320), Camera(260.0, 260.0, 159.5, 119.5)


class Stopwatch:
    """Counts the CPU time and the calls of functions that it wraps."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.process_time() - start
                self.calls += 1

        return timed


def house(frames: int, rooms: int) -> list[Callable[[], StoredImages]]:
    """Reads of the frames of a walk through the rooms, which stand in rows of three."""
    reads: list[Callable[[], StoredImages]] = []
    for room in range(rooms):
        count = frames * (room + 1) // rooms - frames * room // rooms
        walk = make_walk(0, room, views=count)
        offset = SPACING * np.array([room % 3, room // 3, 0.0])
        for view, pose in enumerate(walk.poses):
            placed = pose.copy()
            placed[:3, 3] += offset
            reads.append(functools.partial(_read, walk.scene, pose, placed, f"{room}-{view:04d}"))
    return reads


def _read(scene: Any, pose: NDArray[np.float64], placed: NDArray[np.float64], name: str) -> StoredImages:
    return StoredImages(name, None, cast_depth(scene, pose, camera=CAMERA, image_shape=SHAPE)[0], pose=placed)


class StandIn:
    """Completes the first frame of each room, and gives its voxels to all others of the room."""

    def __init__(self, completer: SceneCompleter) -> None:
        self._complete = completer.complete_images
        self._first: dict[str, CompletedScene] = {}

    def __call__(self, images: CameraImages, *, name: str, placement: Placement) -> CompletedScene:
        room = name.split("-")[0]
        if room not in self._first:
            self._first[room] = self._complete(images, name=name, placement=placement)
        scene = self._first[room]
        origin = aligned_origin(placement.pose)
        frame = dataclasses.replace(scene.own, frame_id=name, placement=placement, origin=origin)
        return dataclasses.replace(scene, frame=frame)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=1000, help="default: 1000")
    parser.add_argument("--rooms", type=int, default=6, help="default: 6")
    options = parser.parse_args()
    torch.set_num_threads(1)
    completer = SceneCompleter("nyu_depth_w64", intrinsics=dataclasses.astuple(CAMERA), pose_convention="opencv")
    others, network, all_of = Stopwatch(), Stopwatch(), Stopwatch()
    completer.images_of = others.of(completer.images_of)  # type: ignore[method-assign]
    completer.complete_images = network.of(StandIn(completer))  # type: ignore[method-assign]
    scene_map = SceneMap(completer)
    add_frame, reads = all_of.of(scene_map.add_frame), house(options.frames, options.rooms)
    for read in ProgressBar(reads, title="map", unit="frame"):
        add_frame(others.of(read))
    again, waiting = network.calls - len(reads), scene_map.num_waiting
    milliseconds = 1000 * (all_of.seconds - others.seconds - network.seconds) / len(reads)
    memory = scene_map.num_bytes / 2**20
    start = time.process_time()
    shape = scene_map.volume().labels.shape
    seconds = time.process_time() - start
    before = network.calls
    scene_map.finish()
    size = " x ".join(map(str, shape))
    print(f"{len(reads)} frames, {size} voxels: {milliseconds:.1f} ms per frame, {memory:.0f} MiB")
    print(f"completed again: {again} frames ({waiting} still waiting), {network.calls - before} more by finish()")
    print(f"a volume of the map: {seconds:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
