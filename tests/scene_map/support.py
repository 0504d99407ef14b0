"""Frames of walks through generated rooms, and a completer whose network is a rule."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.frames import CameraFrame
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.data.synthetic.raycast import cast_depth
from ammnet_sparse.data.synthetic.walk import make_walk
from ammnet_sparse.data.volumes.camera import NYU_CAMERA
from ammnet_sparse.scene_map.frames import ReadFrame
from ammnet_sparse.scene_map.scene_map import SceneMap

FLOOR, WALL, OBJECTS = (CLASS_NAMES.index(name) for name in ("floor", "wall", "objects"))
TILTED = np.eye(4)
"""A given world that is not upright, from a room's: turned by 37 degrees about no particular axis."""
TILTED[:3, :3] = np.linalg.qr([[-0.86, 0.31, 0.40], [-0.44, -0.86, -0.27], [0.26, -0.41, 0.87]])[0]
TILTED[:3, 3] = 3.0, -2.0, 0.5


def walk_through(seed: int, count: int) -> list[StoredImages]:
    """Frames of depth alone, without noise; the poses are in the room's own world."""
    walk = make_walk(seed, 0, views=count)
    depths = (cast_depth(walk.scene, pose, camera=NYU_CAMERA)[0] for pose in walk.poses)
    return [
        StoredImages(f"{index:03d}", None, depth, pose=pose)
        for index, (depth, pose) in enumerate(zip(depths, walk.poses, strict=True))
    ]


def in_world(frames: list[StoredImages], given_from_room: NDArray[np.float64]) -> list[StoredImages]:
    """The frames with poses in another world."""
    return [dataclasses.replace(frame, pose=given_from_room @ frame.pose) for frame in frames]


def reads_of(frames: list[StoredImages]) -> dict[str, ReadFrame]:
    """How to read the frames, by name."""
    return {frame.name: partial(dataclasses.replace, frame) for frame in frames}


def added(scene_map: SceneMap, frames: list[StoredImages]) -> SceneMap:
    """The map with the frames, finished."""
    for read in reads_of(frames).values():
        scene_map.add_frame(read)
    scene_map.finish()
    return scene_map


def completer_by_rule(weights: Path) -> SceneCompleter:
    """A completer that takes hit voxels for floor, wall above 2 m, and objects; the rest for empty."""
    completer = SceneCompleter(weights, intrinsics=dataclasses.astuple(NYU_CAMERA))
    completer._predict = by_rule  # type: ignore[method-assign]
    return completer


def by_rule(frame: CameraFrame) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """The labels and logits of ``completer_by_rule``."""
    labels = np.where(frame.hit_mask, OBJECTS, 0).astype(np.uint8)
    labels[:, 0] = FLOOR
    labels[:, 25:][frame.hit_mask[:, 25:]] = WALL
    logits = 4.0 * torch.nn.functional.one_hot(torch.from_numpy(labels).long(), len(CLASS_NAMES)).permute(3, 0, 1, 2)
    return labels, logits.float()
