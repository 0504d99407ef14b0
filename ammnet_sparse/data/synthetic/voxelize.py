"""Filling of the fine voxels of a scene, compiled with numba."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.compiled import compiled
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.data.synthetic.scene import Kind, Scene, SceneLabel
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE, FINE_VOXEL_SIZE

_BOX, _CYLINDER = int(Kind.BOX), int(Kind.CYLINDER)
_EMPTY = int(SceneLabel.EMPTY)


def fill_voxels(scene: Scene, origin: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Classes of the 240x144x240 fine voxels: [X, height, Y] uint8, 0..11, or 255 outside the room.

    A voxel belongs to a shape that reaches within half a voxel of its center, so that what is seen lies on
    labeled voxels and thin shapes stay whole. ``origin`` is the world position of the grid's lower corner.
    """
    labels = np.full(FINE_GRID_SHAPE, IGNORE_LABEL, dtype=np.uint8)
    _fill(scene.kind, scene.center, scene.half, scene.yaw, scene.label, origin, FINE_VOXEL_SIZE, labels)
    return labels


@compiled()
def _holds(kind, half, x, y, z):
    """True where a point in the axes of a shape lies inside it."""
    if kind == _BOX:
        return abs(x) <= half[0] and abs(y) <= half[1] and abs(z) <= half[2]
    radial = (x / half[0]) ** 2 + (y / half[1]) ** 2
    if kind == _CYLINDER:
        return radial <= 1.0 and abs(z) <= half[2]
    return radial + (z / half[2]) ** 2 <= 1.0


@compiled()
def _fill(kind, center, half, yaw, label, origin, size, labels):
    for n in range(kind.shape[0]):
        # The interior must not grow into the walls' far side; everything else reaches half a voxel further.
        grown = half[n] + (0.0 if label[n] == _EMPTY else size / 2)
        c, s = math.cos(yaw[n]), math.sin(yaw[n])
        reach_x, reach_y = abs(c) * grown[0] + abs(s) * grown[1], abs(s) * grown[0] + abs(c) * grown[1]
        first_i = max(0, int(math.floor((center[n, 0] - reach_x - origin[0]) / size)))
        first_j = max(0, int(math.floor((center[n, 1] - reach_y - origin[1]) / size)))
        first_k = max(0, int(math.floor((center[n, 2] - grown[2] - origin[2]) / size)))
        end_i = min(labels.shape[0], int(math.floor((center[n, 0] + reach_x - origin[0]) / size)) + 1)
        end_j = min(labels.shape[2], int(math.floor((center[n, 1] + reach_y - origin[1]) / size)) + 1)
        end_k = min(labels.shape[1], int(math.floor((center[n, 2] + grown[2] - origin[2]) / size)) + 1)
        for i in range(first_i, end_i):
            dx = origin[0] + (i + 0.5) * size - center[n, 0]
            for k in range(first_k, end_k):
                dz = origin[2] + (k + 0.5) * size - center[n, 2]
                for j in range(first_j, end_j):
                    dy = origin[1] + (j + 0.5) * size - center[n, 1]
                    if _holds(kind[n], grown, c * dx + s * dy, c * dy - s * dx, dz):
                        labels[i, k, j] = label[n]
