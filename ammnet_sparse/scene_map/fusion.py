"""The evidence of a completed frame about the voxels of its grid, and the classes that the sum of many means.

Evidence about the voxels of a box is [classes + 2, X, height, Y] int32: the weighted log-probabilities of the classes,
the weights, and the number of frames that say something; sums of all frames.

A voxel that a frame completes counts with the logarithms of its probabilities, weighted by how it was seen; one that
the depth looks through counts for empty. Everything is rounded to integers, so that sums are the same in any order.
"""

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import EMPTY_LABEL, FREE_TSDF
from ammnet_sparse.pictures.outputs import CompletedScene

Evidence = NDArray[np.int32]
WEIGHTS, VIEWS = -2, -1
"""Where evidence has the weights and the number of frames."""

SURFACE_WEIGHT = 1.0
"""Of a voxel that the depth hits."""
BEHIND_WEIGHT = 0.4
"""Of a voxel less than 0.24 m behind a surface."""
OCCLUDED_WEIGHT = 0.2
"""Of a voxel farther behind, which the network guesses."""
FREE_WEIGHT = 0.5
"""Of a voxel that the depth looks through."""
FREE_LOG_ODDS = 4.0
"""Of empty against every class, for such a voxel."""
FREE_FROM = 0.3
"""TSDF from which on a voxel that is not hit is free: nearer to a surface, errors of the depth decide."""
BORDER, BORDER_FACTOR = 3, 0.5
"""Voxels from the sides of the grid within which a completion counts by the factor: the network sees less there."""
LEAST_LOG_PROBABILITY = -6.0
"""A frame's log-probabilities are cut off there: no single frame rules out a class."""
MOST_VIEWS = 4.0
"""Sum of weights from which on more frames do not make the map surer: neighboring frames repeat each other's errors."""

WEIGHT_UNITS, LOG_UNITS = 64, 64
"""Integers per 1 of a weight, and per nat of a log-probability: a sum of both products has 4,096 per nat."""


def evidence_of(scene: CompletedScene) -> Evidence:
    """What a completed frame of a camera says about the voxels of its grid."""
    frame = scene.own
    is_hit = frame.hit_mask
    is_free = (frame.distance >= FREE_FROM) & ~is_hit
    is_behind = frame.reliable_mask & ~is_free
    behind = np.where(frame.distance <= -FREE_TSDF, OCCLUDED_WEIGHT, BEHIND_WEIGHT)
    weights = np.where(is_hit, SURFACE_WEIGHT, behind)
    weights[_border(frame.grid_shape)] *= BORDER_FACTOR
    completed = np.rint(weights[is_behind] * WEIGHT_UNITS).astype(np.int32)
    evidence = np.zeros((scene.frame.info.num_classes + 2, *frame.grid_shape), np.int32)
    logs = np.maximum(scene.log_probabilities(is_behind), LEAST_LOG_PROBABILITY) * LOG_UNITS
    evidence[:WEIGHTS, is_behind] = completed * np.rint(logs).astype(np.int32)
    evidence[EMPTY_LABEL, is_free] = round(FREE_WEIGHT * FREE_LOG_ODDS * WEIGHT_UNITS * LOG_UNITS)
    evidence[WEIGHTS, is_behind] = completed
    evidence[WEIGHTS, is_free] = round(FREE_WEIGHT * WEIGHT_UNITS)
    evidence[VIEWS] = is_behind | is_free
    return evidence


def probabilities(evidence: Evidence) -> NDArray[np.float32]:
    """[classes, X, height, Y] of each class; 0 in all where no frame says anything."""
    sureness = np.minimum(1.0, MOST_VIEWS * WEIGHT_UNITS / np.maximum(evidence[WEIGHTS], 1)).astype(np.float32)
    logs = evidence[:WEIGHTS].astype(np.float32) * (sureness / (WEIGHT_UNITS * LOG_UNITS))
    logs -= logs.max(axis=0)
    np.exp(logs, out=logs)
    logs *= (evidence[VIEWS] > 0) / logs.sum(axis=0)
    return np.asarray(logs, dtype=np.float32)


def _border(shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """[X, height, Y] bool, near the sides of the grid."""
    is_border = np.ones(shape, dtype=np.bool_)
    is_border[BORDER:-BORDER, :, BORDER:-BORDER] = False
    return is_border
