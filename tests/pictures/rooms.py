"""Maps of a box room for tests."""

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.scene_map.volume import UNKNOWN_LABEL, MapVolume

ORIGIN = (-1.2, 0.5, -0.05)
CEILING, FLOOR, WALL, TABLE = (CLASS_NAMES.index(name) for name in ("ceiling", "floor", "wall", "table"))


def box_labels(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """[X, height, Y]: floor, ceiling, walls, and a table to the right of the far half; unknown outside of the walls."""
    labels = np.full(shape, UNKNOWN_LABEL, dtype=np.uint8)
    labels[1:-1, :, 1:-1] = WALL
    labels[2:-2, :, 2:-2] = 0
    labels[2:-2, 0, 2:-2] = FLOOR
    labels[2:-2, -1, 2:-2] = CEILING
    x, height, y = shape
    labels[x // 2 : -4, 1 : height // 3, y // 2 : -4] = TABLE
    return labels


def map_volume(labels: NDArray[np.uint8], *, num_frames: int = 3, info: SetInfo = NYU) -> MapVolume:
    """A map of these labels, 255 unknown; its cameras go straight ahead through the middle, 1.2 m above the floor."""
    is_known = labels != UNKNOWN_LABEL
    probabilities = np.zeros((info.num_classes, *labels.shape), dtype=np.float16)
    np.put_along_axis(probabilities, np.where(is_known, labels, 0)[None], is_known.astype(np.float16)[None], axis=0)
    poses = np.tile(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]), (num_frames, 1, 1))
    size = info.voxel_size * np.array(labels.shape)
    poses[:, 0, 3] = ORIGIN[0] + size[0] / 2
    poses[:, 1, 3] = ORIGIN[1] + size[2] * np.linspace(0.3, 0.5, num_frames)
    poses[:, 2, 3] = 1.2
    return MapVolume(
        probabilities=probabilities,
        num_views=is_known.astype(np.uint16),
        origin=np.array(ORIGIN),
        poses=poses,
        names=tuple(f"{index:04d}" for index in range(num_frames)),
        map_from_given=np.eye(4),
        info=info,
    )
