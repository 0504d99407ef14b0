#!/usr/bin/env python3
"""Scores of the map of a room against the number of frames, on walks through generated rooms.

    python tools/score_map.py --rooms 6 --views 20
    python tools/score_map.py --checkpoint RUN/best.safetensors --noisy

Of each frame those voxels of its grid are scored that are in the camera's view, inside the walls and, as in
`ammnet evaluate`, occupied or well behind a surface (TSDF below -0.5); SC leaves out those that a pixel hits. The truth
is computed at the voxels of each frame. Reported are, pooled over the rooms,

- frames: the completion of each of the first n frames at its own voxels;
- map: the map of these n frames at the very same voxels (where it is unknown, it counts as empty);
- walk: the map of these n frames at the voxels of all frames of the walk;
- loss: how much mIoU the n-th frame costs the voxels of the frames before.

--noisy disturbs the poses that the map is given, by 2 cm and 1 degree (root mean square).
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ammnet_sparse.cli.options import parse_count, parse_positive
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.data.grid import EMPTY_LABEL, GRID_SHAPE, IGNORE_LABEL, UNMAPPED, VOXEL_SIZE
from ammnet_sparse.data.synthetic.raycast import fill_voxels
from ammnet_sparse.data.synthetic.scene import Scene
from ammnet_sparse.data.synthetic.walk import Walk, make_walk
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, CameraView, voxels_in_view
from ammnet_sparse.data.volumes.labels import downsample_labels, label_weight_of
from ammnet_sparse.evaluation.metrics import CompletionMetrics, VoxelCounts
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.scene_map.scene_map import SceneMap
from ammnet_sparse.scene_map.volume import MapVolume

SHOWN = (1, 2, 4, 8, 12, 16, 20)
"""Numbers of frames in the table."""
POSE_NOISE = (0.02, 1.0)
"""Meters and degrees."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredVoxels:
    """The scored voxels of a frame.

    Attributes:
        room: [N, 3] float64, their centers in the room's world, meters.
        truth: [N] uint8.
        labels: [N] uint8, the completion of the frame alone.
        is_hit: [N] bool, hit by a pixel.
    """

    room: NDArray[np.float64]
    truth: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    is_hit: NDArray[np.bool_]

    @classmethod
    def of(cls, completed: CompletedScene, scene: Scene, pose: NDArray[np.float64]) -> "ScoredVoxels":
        """Those of a completed frame of a scene, whose true pose is [4, 4] camera to the scene's world."""
        frame = completed.own
        room_from_frame = pose @ np.linalg.inv(frame.placement.pose)
        fine = fill_voxels(_in_world(scene, np.linalg.inv(room_from_frame)), frame.origin)
        truth = downsample_labels(fine)
        index = np.moveaxis(np.indices(GRID_SHAPE), 0, -1)[..., [0, 2, 1]]
        room = _moved(room_from_frame, (index + 0.5) * VOXEL_SIZE + frame.origin)
        view = CameraView(NYU_CAMERA, frame.placement.pose, frame.origin)
        is_scored = (truth != IGNORE_LABEL) & (label_weight_of(truth, frame.tsdf) > 0)
        is_scored &= voxels_in_view(view).reshape(GRID_SHAPE) > 0
        arrays = (room, truth, completed.labels, frame.mapping != UNMAPPED)
        return cls(*(array[is_scored] for array in arrays))

    def counts(self, labels: NDArray[np.uint8]) -> VoxelCounts:
        """Counts of labels [N] at these voxels."""
        return VoxelCounts.of(*map(torch.from_numpy, (labels, self.truth, self.is_hit)), frames=1)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    camera = (NYU_CAMERA.fx, NYU_CAMERA.fy, NYU_CAMERA.cx, NYU_CAMERA.cy)
    completer = SceneCompleter(options.checkpoint, intrinsics=camera, depth_scale=1)
    none = CompletionMetrics().counts
    alone = [none] * options.views
    mapped = [[none] * options.views for _ in range(options.views + 1)]
    rooms = range(options.first, options.first + options.rooms)
    for room in ProgressBar(rooms, total=len(rooms), title="mapping", unit="room"):
        walk = make_walk(options.seed, room, views=options.views)
        voxels, volumes = _map_of(walk, completer, noisy=options.noisy, seed=room)
        alone = [total + one.counts(one.labels) for total, one in zip(alone, voxels, strict=True)]
        for count, volume in enumerate(volumes):
            found = zip(mapped[count], voxels, _labels_in(volume, voxels), strict=True)
            mapped[count] = [total + one.counts(labels) for total, one, labels in found]
    rows = _rows(alone, mapped)
    poses = "noisy" if options.noisy else "given"
    print(f"{options.checkpoint}, {len(rooms)} rooms of {options.views} frames, {poses} poses; SC IoU / SSC mIoU")
    for row in rows:
        if row["frames"] in SHOWN or row is rows[-1]:
            print("  ".join(f"{name} {_shown(value)}" for name, value in row.items()))
    print(f"a further frame costs at most {max(row['loss'] for row in rows):.2f} points of mIoU")
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")
    return 0


def _map_of(
    walk: Walk, completer: SceneCompleter, *, noisy: bool, seed: int
) -> tuple[list[ScoredVoxels], list[MapVolume]]:
    """The scored voxels of every frame; and the map after every frame, and finished."""
    rng = np.random.default_rng(seed)
    room_map = SceneMap(completer)
    voxels, volumes = [], []
    for view, pose in enumerate(walk.poses):
        images = walk.images(view, noise="kinect")
        given = _disturbed(pose, rng) if noisy else pose
        completed = room_map.add(images.image, images.depth, given, label_map=images.label_map)
        voxels.append(ScoredVoxels.of(completed, walk.scene, pose))
        volumes.append(room_map.volume())
    room_map.finish()
    return voxels, [*volumes, room_map.volume()]


def _labels_in(volume: MapVolume, voxels: Sequence[ScoredVoxels]) -> list[NDArray[np.uint8]]:
    """The map's classes at voxels of frames; empty where it is unknown."""
    labels = np.pad(np.where(volume.is_known, volume.labels, np.uint8(EMPTY_LABEL)), 1, constant_values=EMPTY_LABEL)
    found = []
    for one in voxels:
        position = (_moved(volume.map_from_given, one.room) - volume.origin) / volume.info.voxel_size
        index = np.clip(np.floor(position[:, [0, 2, 1]]).astype(int) + 1, 0, np.array(labels.shape) - 1)
        found.append(labels[tuple(index.T)])
    return found


def _rows(alone: Sequence[VoxelCounts], mapped: Sequence[Sequence[VoxelCounts]]) -> list[dict[str, Any]]:
    """A row for every number of frames, and one for the finished map."""
    rows = []
    for index, after in enumerate(mapped):
        count, before = min(index + 1, len(alone)), min(index, len(alone) - 1)
        loss = _scores(mapped[index - 1][:before])[1] - _scores(after[:before])[1] if before else 0.0
        one = {"alone": _scores(alone[:count]), "map": _scores(after[:count]), "walk": _scores(after)}
        rows.append({"frames": count, **one, "loss": loss})
    return rows


def _scores(counts: Sequence[VoxelCounts]) -> tuple[float, float]:
    """SC IoU and SSC mIoU in percent of all counts together."""
    scores = sum(counts[1:], start=counts[0]).scores()
    return 100 * scores.sc_iou, 100 * scores.ssc_miou


def _shown(value: float | tuple[float, float]) -> str:
    return " / ".join(f"{one:.1f}" for one in value) if isinstance(value, tuple) else f"{value:.3g}"


def _disturbed(pose: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A pose [4, 4] with errors of ``POSE_NOISE``, turned about its camera."""
    offset, turn = (rng.normal(0, size / math.sqrt(3), 3) for size in (POSE_NOISE[0], math.radians(POSE_NOISE[1])))
    angle = np.linalg.norm(turn)
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    disturbed = pose.copy()
    disturbed[:3, :3] = pose[:3, :3] @ (np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)
    disturbed[:3, 3] += offset
    return disturbed


def _moved(matrix: NDArray[np.floating[Any]], points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Points [..., 3] moved by a matrix [4, 4]."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3], dtype=np.float64)


def _in_world(scene: Scene, world: NDArray[np.float64]) -> Scene:
    """A scene in another upright world; ``world`` is [4, 4] from its own."""
    turn = math.atan2(world[1, 0], world[0, 0])
    return dataclasses.replace(scene, center=_moved(world, scene.center), yaw=scene.yaw + turn)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", default="nyu_rgb_w64", help="file of weights, or name of shipped ones (default: %(default)s)")
    add("--rooms", type=parse_positive, default=6, metavar="N", help="number of rooms (default: %(default)s)")
    add("--first", type=parse_count, default=0, metavar="N", help="index of the first room (default: %(default)s)")
    add("--views", type=parse_positive, default=20, metavar="N", help="frames of a room (default: %(default)s)")
    add("--seed", type=parse_count, default=28, metavar="N", help="seed of the rooms (default: %(default)s)")
    add("--noisy", action="store_true", help="disturb the poses by 2 cm and 1 degree")
    add("--json", type=Path, metavar="FILE", help="write the scores for every number of frames")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
