"""A walk through a generated room: the poses of a camera along a smooth path, and the truth of the whole room."""

import dataclasses
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import EMPTY_LABEL, FINE_PER_VOXEL, FLOOR_OFFSET, VOXEL_SIZE
from ammnet_sparse.data.synthetic.frame import Noise, SyntheticImages, take_images
from ammnet_sparse.data.synthetic.raycast import camera_pose, cast_depth, fill_voxels
from ammnet_sparse.data.synthetic.rooms import make_room
from ammnet_sparse.data.synthetic.scene import Scene, SceneLabel
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, Camera
from ammnet_sparse.data.volumes.labels import downsample_labels

Rng = np.random.Generator

ROOM_TRIES = 12
LEAST_LENGTH = 3.0
"""Meters: a walk worth taking."""
_STAGE = 4
"""Of the random numbers; those of ``generate_frame`` have the stages 0 to 3."""
_MARGIN = 1.5
"""Voxels around the interior in the truth; not whole, so that no wall is exactly between two voxels."""
_STOPS = 3
"""Turning points of the path, each as far as possible from those before."""
_CLEARANCE = 3
"""Voxels between the camera and whatever stands higher than a knee."""
_KNEE, _HEAD = 0.5, 1.9
"""Meters above the floor between which something is in the way."""
_SMOOTHING = 9
"""Points of the path, a voxel apart, that its corners are averaged over."""
_TURNS = (-50, -25, 0, 25, 50)
"""Degrees by which the camera may turn from view to view."""
_PREVIEW = 16
"""Stride in pixels of trial views."""
_WORTH_SEEING = (1.0, 5.5)
"""Meters before the camera."""
_PATCH = 0.3
"""Meters: the size of what counts as seen or not."""
_SEEN_AGAIN = 0.3
"""Worth of a pixel that shows something seen before."""


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """A room and the views of a person who walks through it.

    Attributes:
        scene: the room; its world has Z up, the floor at 0, and walls along X and Y.
        poses: [N, 4, 4] float64, camera (x right, y down, z forward) to that world.
    """

    scene: Scene
    poses: NDArray[np.float64]
    _seed: tuple[int, int]

    def images(self, view: int, *, noise: Noise) -> SyntheticImages:
        """The images at a pose; they depend only on the walk and the view."""
        sensor, colors, errors = (np.random.default_rng([*self._seed, stage, view]) for stage in (1, 2, 3))
        return take_images(self.scene, self.poses[view], noise=noise, sensor=sensor, colors=colors, errors=errors)


def make_walk(seed: int, index: int, *, views: int) -> Walk:
    """Room ``index`` of this seed and a walk through it; depends only on the arguments.

    The path joins points as far apart as possible, around the furniture. The camera is held at 1.3 to 1.65 m, slightly
    downwards, and turns to where most is to be seen that it has not shown before.
    """
    rng = np.random.default_rng([seed, index, _STAGE])
    along = np.zeros(0)
    for _ in range(ROOM_TRIES):  # the first room with a long walk, or the one with the longest
        room = make_room(rng)
        tried = _path(room)
        lengths = np.linalg.norm(np.diff(tried, axis=0), axis=1)
        if not len(along) or lengths.sum() > along[-1]:
            scene, path, along = room, tried, np.concatenate([[0.0], np.cumsum(lengths)])
        if along[-1] >= LEAST_LENGTH:
            break
    at = np.linspace(0, along[-1], views)
    positions = np.stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)], axis=1)
    return Walk(scene, _look_around(scene, positions, rng), (seed, index))


def room_labels(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The truth of a whole room.

    Returns:
        [X, height, Y] uint8, class of each voxel of 8 cm, 255 outside the walls; and the world position (X, Y, Z) in
        meters of the outer corner of voxel (0, 0, 0).
    """
    interior = int(np.flatnonzero(scene.label == SceneLabel.EMPTY)[0])
    center, half = scene.center[interior], scene.half[interior]
    low = np.append((center - half)[:2] - _MARGIN * VOXEL_SIZE, FLOOR_OFFSET)
    high = center + half + _MARGIN * VOXEL_SIZE
    x, y, height = np.ceil((high - low) / VOXEL_SIZE).astype(int).tolist()
    fine_shape = (x * FINE_PER_VOXEL, height * FINE_PER_VOXEL, y * FINE_PER_VOXEL)
    return downsample_labels(fill_voxels(scene, low, grid_shape=fine_shape)), low


def _path(scene: Scene) -> NDArray[np.float64]:
    """[M, 2] world (X, Y) of a smooth path, points about a voxel apart, starting where the room is entered."""
    labels, origin = room_labels(scene)
    low, high = (int((height - FLOOR_OFFSET) / VOXEL_SIZE) for height in (_KNEE, _HEAD))
    is_free = ~(labels[:, low:high] != EMPTY_LABEL).any(axis=1)
    for _ in range(_CLEARANCE):
        is_free = ~_with_neighbors(~is_free)
    cells = np.argwhere(is_free)
    if not len(cells):
        return np.zeros((1, 2))
    start = cells[np.abs(cells - (-origin[:2] / VOXEL_SIZE)).sum(axis=1).argmin()]
    corners, nearest = [start], _steps_from(start, is_free)
    reached = nearest >= 0
    for _ in range(_STOPS):
        corners.append(np.array(np.unravel_index(np.where(reached, nearest, -1).argmax(), reached.shape)))
        nearest = np.minimum(nearest, _steps_from(corners[-1], is_free))
    legs = [_shortest(a, b, is_free) for a, b in itertools.pairwise(corners)]
    path = (np.concatenate(legs) + 0.5) * VOXEL_SIZE + origin[:2]
    padded = np.pad(path, ((_SMOOTHING // 2, _SMOOTHING // 2), (0, 0)), mode="edge")
    return np.stack([np.convolve(padded[:, axis], np.full(_SMOOTHING, 1 / _SMOOTHING), "valid") for axis in (0, 1)], 1)


def _with_neighbors(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask [X, Y] with the eight neighbors of every cell."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:], dtype=np.bool_)


def _steps_from(cell: NDArray[np.int64], is_free: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[X, Y] steps from a cell over free cells, -1 where they do not lead."""
    steps = np.full(is_free.shape, -1)
    new = np.zeros_like(is_free)
    new[tuple(cell)] = True
    while new.any():
        steps[new] = steps.max() + 1
        new = _with_neighbors(new) & is_free & (steps < 0)
    return steps


def _shortest(start: NDArray[np.int64], end: NDArray[np.int64], is_free: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[M, 2] the cells of a shortest path, both ends included."""
    steps = _steps_from(end, is_free)
    path = [start]
    around = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
    while steps[tuple(path[-1])] > 0:
        near = path[-1] + around  # inside the array, whose outermost cells are never free
        path.append(near[(steps[near[:, 0], near[:, 1]] == steps[tuple(path[-1])] - 1).argmax()])
    return np.array(path)


def _look_around(scene: Scene, positions: NDArray[np.float64], rng: Rng) -> NDArray[np.float64]:
    """[N, 4, 4] poses at the positions [N, 2], each turned to where most is to be seen."""
    height, pitch = rng.uniform(1.3, 1.65), math.radians(rng.uniform(-20, -12))
    poses: list[NDArray[np.float64]] = []
    seen: set[tuple[int, ...]] = set()
    yaw, turns = rng.uniform(0, 2 * math.pi), tuple(range(0, 360, 30))
    for position in positions:
        sway = rng.normal(0, 1, 4) * (0.01, math.radians(2.5), math.radians(1.2), math.radians(4))
        best = -1.0
        for turn in turns:
            heading = yaw + math.radians(turn) + sway[3]
            pose = camera_pose(height + sway[0], yaw=heading, pitch=pitch + sway[1], roll=sway[2])
            pose[:2, 3] = position
            patches = _patches(scene, pose)
            worth = sum(_SEEN_AGAIN if patch in seen else 1.0 for patch in patches)
            if worth > best:
                best, chosen = worth, (heading, pose, patches)
        yaw, turns = chosen[0], _TURNS
        poses.append(chosen[1])
        seen.update(chosen[2])
    return np.stack(poses)


def _patches(scene: Scene, pose: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """The patch of every pixel of a small view that shows something at a good distance."""
    step, camera = _PREVIEW, NYU_CAMERA
    small = Camera(camera.fx / step, camera.fy / step, (camera.cx + 0.5) / step - 0.5, (camera.cy + 0.5) / step - 0.5)
    depth, _ = cast_depth(scene, pose, camera=small, image_shape=(480 // step, 640 // step))
    v, u = np.nonzero((depth >= _WORTH_SEEING[0]) & (depth <= _WORTH_SEEING[1]))
    z = depth[v, u].astype(np.float64)
    points = np.stack([(u - small.cx) * z / small.fx, (v - small.cy) * z / small.fy, z], axis=1)
    world = points @ pose[:3, :3].T + pose[:3, 3]
    return [tuple(patch) for patch in np.floor(world / _PATCH).astype(int).tolist()]
