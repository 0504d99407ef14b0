"""Flips at test time: the mean of a predictor's scores over symmetries of the grid (``data/symmetry.py``).

The voxels of the data are moved, as in augmentation (``data.augment_3d``); the pixel that hit a voxel moves with it,
so the 2D input is unchanged. A network trained without that augmentation gains nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.symmetry import Symmetry

NumFlips = Literal[4, 8]


def symmetries(count: NumFlips) -> list[Symmetry]:
    """4: none, X, Y, both flipped; 8: each of them with and without X and Y exchanged."""
    signs = (False, True)
    return [Symmetry(x, y, exchange) for exchange in signs[: count // 4] for x in signs for y in signs]


def move_batch(batch: Batch, symmetry: Symmetry) -> Batch:
    """The batch with its voxels moved. Raises ValueError if X and Y of different size would be exchanged."""
    symmetry.check_grid(batch.grid_shape, source="flips", advice="use 4 flips")
    volumes = {name: getattr(batch, name) for name in ("tsdf", "mapping", "label_weight", "label", "depth_hit")}
    moved: dict[str, Any] = {
        name: symmetry.apply(values.reshape(-1, *batch.grid_shape)).contiguous().view(values.shape)
        for name, values in volumes.items()
        if values is not None
    }
    return dataclasses.replace(batch, **moved)


def mean_over_flips(score: Callable[[Batch], Tensor], batch: Batch, *, count: NumFlips) -> Tensor:
    """The mean of a predictor's scores over symmetries of a batch, each moved back to the voxels of the batch.

    Args:
        score: from a batch to scores [B, C, X, H, Y] that can be averaged, such as probabilities.
        batch: frames, on any device; with 8 flips as many voxels along X as along Y.

    Returns:
        [B, C, X, H, Y].

    Raises:
        ValueError: X and Y of different size with 8 flips.
    """
    total: Tensor | None = None
    for symmetry in symmetries(count):
        scores = symmetry.invert(score(move_batch(batch, symmetry)))
        total = scores.clone() if total is None else total.add_(scores)
    assert total is not None
    return total / count


def predicted_labels(
    network: Callable[..., Any], batch: Batch, *, voxels: Literal["scored", "not_free", "all"], flips: NumFlips | None
) -> Tensor:
    """[B, X, H, Y] uint8: the likeliest class; with ``flips`` of the mean probabilities, and errors as there.

    Args:
        network: called with a batch and ``voxels``; returns a ``Prediction``.
    """
    if flips is None:
        labels: Tensor = network(batch, voxels=voxels).labels
        return labels
    mean = mean_over_flips(lambda turned: network(turned, voxels=voxels).probabilities, batch, count=flips)
    return mean.argmax(dim=1).to(torch.uint8)
