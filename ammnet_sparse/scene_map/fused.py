"""Frames fused in one room, and the volume that can be read.

Voxels are in blocks that are made where something is seen; an update touches only the blocks under its frame.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import FLOOR_OFFSET
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.scene_map.fusion import VIEWS, Evidence, probabilities
from ammnet_sparse.scene_map.room import Room
from ammnet_sparse.scene_map.volume import MapVolume

EDGE = 16
"""Voxels along X and Y of a block; it is as high as a frame's grid."""
Position = tuple[int, int]
"""Of a block along X and Y: voxels ``EDGE * position`` and on."""
MOST_VOXELS = 2**26
"""Of a volume: 100 x 100 m, of which 12 probabilities take 1.6 GB."""


class FusedFrames:
    """The sum of what frames say about a room.

    Args:
        room: whose world the voxels are aligned with.
        info: classes and grid of the frames.

    Attributes:
        shape: of a block's evidence.
        blocks: the evidence of the blocks by position.
    """

    def __init__(self, room: Room, info: SetInfo) -> None:
        self.room, self.info = room, info
        self.shape = (info.num_classes + 2, EDGE, info.grid_shape[1], EDGE)
        self.blocks: dict[Position, Evidence] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks."""
        return sum(block.nbytes for block in self.blocks.values())

    def fuse(self, scene: CompletedScene, evidence: Evidence) -> None:
        """Adds a frame's evidence, exactly if it was placed in this room, else at the nearest voxels."""
        assert scene.world_from_given is not None
        between = self.room.map_from_given @ np.linalg.inv(scene.world_from_given)
        quarters = round(math.degrees(math.atan2(between[1, 0], between[0, 0])) / 90.0)
        size = self.info.voxel_size
        half = np.array(self.info.grid_shape) / 2
        middle = scene.origin + size * half[[0, 2, 1]]
        placed = np.rot90(evidence, quarters, axes=(1, 3))
        corner = (between[:3, :3] @ middle + between[:3, 3])[:2] / size - np.array(placed.shape)[[1, 3]] / 2
        x, y = np.rint(corner).astype(int).tolist()
        self.add((x, y), placed)

    def add(self, corner: tuple[int, int], evidence: Evidence) -> None:
        """Adds the evidence of a box whose first voxel along X and Y is ``corner``."""
        (x, y), length, width = corner, evidence.shape[1], evidence.shape[3]
        for i in range(x // EDGE, (x + length - 1) // EDGE + 1):
            for j in range(y // EDGE, (y + width - 1) // EDGE + 1):
                to_x, from_x = _overlap(EDGE * i - x, length)
                to_y, from_y = _overlap(EDGE * j - y, width)
                part = evidence[:, from_x, :, from_y]
                if part[VIEWS].any():
                    self.blocks.setdefault((i, j), np.zeros(self.shape, np.int32))[:, to_x, :, to_y] += part

    def box(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """First and last voxel (X, height, Y) of the smallest box around everything known; None of an empty map."""
        corners = []
        for (x, y), block in self.blocks.items():
            known = np.argwhere(block[VIEWS])
            if len(known):
                start = np.array([EDGE * x, 0, EDGE * y])
                corners += [known.min(axis=0) + start, known.max(axis=0) + start]
        return (np.min(corners, axis=0), np.max(corners, axis=0)) if corners else None

    def is_off(self, room: Room) -> bool:
        """Whether any known voxel would be more than half a voxel away in another room."""
        box = self.box()
        if box is None or self.room.convention != room.convention:
            return True
        voxels = np.stack(np.meshgrid(*np.stack(box, axis=1), indexing="ij"), axis=-1).reshape(-1, 3)
        corners = self._world(voxels)
        between = room.map_from_given @ np.linalg.inv(self.room.map_from_given)
        moved = corners @ between[:3, :3].T + between[:3, 3] - corners
        return bool(np.linalg.norm(moved, axis=1).max() > self.info.voxel_size / 2)

    def moved_to(self, room: Room) -> "FusedFrames":
        """The same evidence in another room, every voxel from the nearest one."""
        moved = FusedFrames(room, self.info)
        between = self.room.map_from_given @ np.linalg.inv(room.map_from_given)
        back = np.linalg.inv(between)
        size, box = self.info.voxel_size, self.shape[1:]
        corners = np.stack(np.meshgrid(*((0, length) for length in box), indexing="ij"), axis=-1).reshape(-1, 3)
        targets: set[tuple[int, int]] = set()
        for x, y in self.blocks:
            points = self._world(corners + np.array([EDGE * x, 0, EDGE * y]) - 0.5) @ back[:3, :3].T + back[:3, 3]
            low, high = (np.floor(one[:2] / size / EDGE).astype(int) for one in (points.min(0), points.max(0)))
            targets |= {(i, j) for i in range(low[0], high[0] + 1) for j in range(low[1], high[1] + 1)}
        for x, y in sorted(targets):
            voxels = np.indices(box).reshape(3, -1).T + np.array([EDGE * x, 0, EDGE * y])
            points = self._world(voxels) @ between[:3, :3].T + between[:3, 3]
            source = np.floor((points - [0, 0, FLOOR_OFFSET]) / size).astype(np.int64)[:, [0, 2, 1]]
            moved.add((EDGE * x, EDGE * y), self._picked(source))
        return moved

    def _world(self, voxels: NDArray[np.generic]) -> NDArray[np.float64]:
        """[N, 3] world (X, Y, Z) of the centers of voxels [N, 3] (X, height, Y)."""
        centers = (np.asarray(voxels, dtype=np.float64) + 0.5) * self.info.voxel_size
        return centers[:, [0, 2, 1]] + np.array([0.0, 0.0, FLOOR_OFFSET])

    def _picked(self, source: NDArray[np.int64]) -> Evidence:
        """A block of the evidence at the voxels [EDGE * height * EDGE, 3] (X, height, Y); none outside the map."""
        picked = np.zeros((self.shape[0], len(source)), np.int32)
        is_inside = (source[:, 1] >= 0) & (source[:, 1] < self.shape[2])
        position = source[:, [0, 2]] // EDGE
        for x, y in np.unique(position, axis=0).tolist():
            if (x, y) in self.blocks:
                chosen = np.flatnonzero(is_inside & (position == (x, y)).all(axis=1))
                inside = source[chosen] - [EDGE * x, 0, EDGE * y]
                picked[:, chosen] = self.blocks[x, y][:, *inside.T]
        return picked.reshape(self.shape)

    def volume(self, poses: NDArray[np.float64], names: tuple[str, ...]) -> MapVolume:
        """What is known, as arrays.

        Args:
            poses: [N, 4, 4], of the frames, camera to the map's world.
            names: of these frames.

        Raises:
            DataError: frames so far apart that the arrays would have over ``MOST_VOXELS``.
        """
        box = self.box()
        first, last = box if box is not None else (np.zeros(3, np.int64), np.full(3, -1))
        shape = tuple((last - first + 1).tolist())
        if math.prod(shape) > MOST_VOXELS:
            length, width = (size * self.info.voxel_size for size in (shape[0], shape[2]))
            raise DataError(
                f"the map: expected frames of one floor of a house, found frames over {length:.0f} x {width:.0f} m; "
                "leave out those whose poses jump"
            )
        found = np.zeros((self.info.num_classes, *shape), dtype=np.float16)
        views = np.zeros(shape, dtype=np.uint16)
        first_x, lowest, first_y = first.tolist()
        heights = slice(lowest, lowest + shape[1])
        for (i, j), block in self.blocks.items():
            x, to_x = _overlap(EDGE * i - first_x, shape[0])
            y, to_y = _overlap(EDGE * j - first_y, shape[2])
            found[:, to_x, :, to_y] = probabilities(block)[:, x, heights, y]
            views[to_x, :, to_y] = np.minimum(block[VIEWS, x, heights, y], np.iinfo(np.uint16).max)
        origin = first[[0, 2, 1]] * self.info.voxel_size + np.array([0.0, 0.0, FLOOR_OFFSET])
        return MapVolume(
            probabilities=found,
            num_views=views,
            origin=origin,
            poses=poses,
            names=names,
            map_from_given=self.room.map_from_given,
            info=self.info,
        )


def _overlap(start: int, length: int) -> tuple[slice, slice]:
    """Which voxels of a block, and which of a box, are those that both have along one axis.

    Args:
        start: first voxel of the block, counted from the first of the box.
        length: of the box.
    """
    low = max(0, start)
    high = max(low, min(length, start + EDGE))
    return slice(low - start, high - start), slice(low, high)
