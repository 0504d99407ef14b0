"""Paths of a camera through a generated room, and a completer whose network is a rule."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.frames import CameraFrame
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.data.synthetic.raycast import camera_pose, cast_depth
from ammnet_sparse.data.synthetic.rooms import make_room
from ammnet_sparse.data.synthetic.scene import Scene, SceneLabel
from ammnet_sparse.data.volumes.camera import NYU_CAMERA

FLOOR, WALL, OBJECTS = (CLASS_NAMES.index(name) for name in ("floor", "wall", "objects"))
TILTED = np.array([[0.0, 0.6, 0.8, 3.0], [1, 0, 0, -2], [0, 0.8, -0.6, 0.5], [0, 0, 0, 1]])
"""A given world that is not upright, from the room's."""


def path_through(seed: int, count: int, *, pitch: float = -15.0) -> tuple[Scene, list[StoredImages]]:
    """Frames of a camera that goes around the middle of a room and looks outwards; poses in the room's own world."""
    rng = np.random.default_rng(seed)
    scene = make_room(rng)
    interior = int(np.flatnonzero(scene.label == SceneLabel.EMPTY)[0])
    frames = []
    for index in range(count):
        angle = 2 * math.pi * index / count
        pose = camera_pose(
            rng.uniform(1.3, 1.6),
            yaw=angle - math.pi / 2,
            pitch=math.radians(pitch + rng.normal(0, 4)),
            roll=math.radians(rng.normal(0, 3)),
        )
        pose[:2, 3] = scene.center[interior, :2] - 0.3 * scene.half[interior, :2] * (math.cos(angle), math.sin(angle))
        depth, _ = cast_depth(scene, pose, camera=NYU_CAMERA)
        frames.append(StoredImages(f"{index:03d}", None, depth, pose=pose))
    return scene, frames


def in_world(frames: list[StoredImages], given_from_room: NDArray[np.float64]) -> list[StoredImages]:
    """The frames with poses in another world."""
    return [dataclasses.replace(frame, pose=given_from_room @ frame.pose) for frame in frames]


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
