"""Labels of voxels from SSCNet's raw labels of fine voxels, and the label weight.

Arrays of voxels have the axes (X, height, Y). The *fine* grid has voxels of 0.02 m, four along each edge of a voxel of
the grid.
"""

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import FINE_PER_VOXEL, GRID_SHAPE, IGNORE_LABEL, NUM_CLASSES, VOXEL_SIZE

FINE_VOXEL_SIZE = VOXEL_SIZE / FINE_PER_VOXEL
FINE_GRID_SHAPE = (GRID_SHAPE[0] * FINE_PER_VOXEL, GRID_SHAPE[1] * FINE_PER_VOXEL, GRID_SHAPE[2] * FINE_PER_VOXEL)

RAW_TO_CLASS = np.array(
    [
        *(0, 1, 2, 3, 4, 11, 5, 6, 7, 8, 8, 10, 10, 10, 11, 11, 9, 8, 11),
        *(11, 11, 11, 11, 11, 11, 11, 11, 10, 10, 11, 8, 10, 11, 9, 11, 11, 11),
    ],
    dtype=np.uint8,
)
"""[37] class of every raw label of SSCNet."""
NUM_RAW_LABELS = len(RAW_TO_CLASS)


def classes_from_raw(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes 0..11 of raw labels 0..36; 255 stays. Any shape, uint8.

    Raises:
        ValueError: a label that is neither 0..36 nor 255.
    """
    table = np.full(256, NUM_CLASSES, dtype=np.uint8)
    table[:NUM_RAW_LABELS] = RAW_TO_CLASS
    table[IGNORE_LABEL] = IGNORE_LABEL
    classes = table[labels]
    if (classes == NUM_CLASSES).any():
        unknown = np.unique(labels[classes == NUM_CLASSES])
        raise ValueError(
            f"labels: expected raw labels 0..{NUM_RAW_LABELS - 1} or {IGNORE_LABEL}, found {unknown[:8].tolist()}"
        )
    return classes


def downsample_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes of voxels from those of their 4x4x4 fine voxels.

    With n0 empty and n255 ignored fine voxels: where ``n0 + n255 > 0.95 * 64`` the most frequent of all 64 values,
    ties to the smallest; elsewhere the most frequent of 1..11, ties to the smallest.

    Args:
        labels: [4 X, 4 height, 4 Y] uint8, classes 0..11 or 255 (``classes_from_raw`` comes first).

    Returns:
        [X, height, Y] uint8.

    Raises:
        ValueError: axes that are not multiples of 4, another type, or unknown classes.
    """
    if labels.ndim != 3 or any(size % FINE_PER_VOXEL for size in labels.shape) or labels.dtype != np.uint8:
        raise ValueError(
            f"labels: expected uint8 with three axes that are multiples of {FINE_PER_VOXEL}, "
            f"found {labels.dtype} {labels.shape}"
        )
    if ((labels >= NUM_CLASSES) & (labels != IGNORE_LABEL)).any():
        raise ValueError(
            f"labels: expected classes 0..{NUM_CLASSES - 1} or {IGNORE_LABEL}; raw labels go through classes_from_raw"
        )
    fine, (x, height, y) = FINE_PER_VOXEL, (size // FINE_PER_VOXEL for size in labels.shape)
    blocks = labels.reshape(x, fine, height, fine, y, fine).transpose(0, 2, 4, 1, 3, 5).reshape(-1, fine**3)
    columns = np.minimum(blocks, NUM_CLASSES)  # the last one counts ignored voxels
    num_columns = NUM_CLASSES + 1
    places = np.arange(len(blocks), dtype=np.int64)[:, None] * num_columns + columns
    counts = np.bincount(places.reshape(-1), minlength=len(blocks) * num_columns).reshape(-1, num_columns)
    is_empty = counts[:, 0] + counts[:, NUM_CLASSES] > 0.95 * fine**3
    winner = np.where(is_empty, counts.argmax(axis=1), 1 + counts[:, 1:NUM_CLASSES].argmax(axis=1))
    classes = np.where(winner == NUM_CLASSES, IGNORE_LABEL, winner)
    return classes.astype(np.uint8).reshape(x, height, y)


def label_weight_of(label: NDArray[np.integer], tsdf: NDArray[np.floating]) -> NDArray[np.uint8]:
    """1 for voxels of loss and evaluation: occupied ones, and those well behind a surface (tsdf < -0.5).

    Args:
        label: class 0..11 or 255, any shape.
        tsdf: not flipped, float32 (of a float16 file the mask differs in places), the same shape.
    """
    return (((label > 0) & (label < IGNORE_LABEL)) | (tsdf < -0.5)).astype(np.uint8)
