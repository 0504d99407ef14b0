"""Flips at test time: the mean of a predictor's scores over mirrored and exchanged horizontal axes of the grid.

What is turned are the coordinates of the data, as in augmentation (``data.augment_3d``); the pixel that hit a voxel
goes with it, so the 2D input stays as it is. A network trained without that augmentation gains nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ammnet_sparse.data.batch import Batch

NumFlips = Literal[4, 8]
_X_AXIS, _Y_AXIS = -3, -1


class Orientation(NamedTuple):
    """Which axes are flipped, and whether X and Y are exchanged after that."""

    flips_x: bool = False
    flips_y: bool = False
    exchanges: bool = False

    def turn(self, volume: Tensor) -> Tensor:
        """[..., X, H, Y], or [..., Y, H, X] where the axes are exchanged."""
        axes = [axis for axis, is_flipped in ((_X_AXIS, self.flips_x), (_Y_AXIS, self.flips_y)) if is_flipped]
        volume = volume.flip(axes) if axes else volume
        return volume.transpose(_X_AXIS, _Y_AXIS) if self.exchanges else volume

    def turn_back(self, volume: Tensor) -> Tensor:
        """The inverse of ``turn``."""
        volume = volume.transpose(_X_AXIS, _Y_AXIS) if self.exchanges else volume
        return self._replace(exchanges=False).turn(volume)

    def turn_batch(self, batch: Batch) -> Batch:
        """The batch with its voxels turned. Raises ValueError where unlike X and Y would be exchanged."""
        x, _, y = batch.grid_shape
        if self.exchanges and x != y:
            raise ValueError(
                f"flips: expected as many voxels along X as along Y to exchange them, found a grid of "
                f"{batch.grid_shape}; use 4 flips"
            )

        def turn_flat(values: Tensor) -> Tensor:
            return self.turn(values.reshape(-1, *batch.grid_shape)).reshape(values.shape)

        return dataclasses.replace(
            batch,
            tsdf=self.turn(batch.tsdf).contiguous(),
            mapping=turn_flat(batch.mapping),
            label_weight=turn_flat(batch.label_weight),
            label=None if batch.label is None else turn_flat(batch.label),
            depth_hit=None if batch.depth_hit is None else turn_flat(batch.depth_hit),
        )


def orientations(count: NumFlips) -> list[Orientation]:
    """4: none, X, Y, both flipped; 8: each of them with and without X and Y exchanged."""
    signs = (False, True)
    return [Orientation(x, y, exchange) for exchange in signs[: count // 4] for x in signs for y in signs]


def mean_over_flips(score: Callable[[Batch], Tensor], batch: Batch, *, count: NumFlips) -> Tensor:
    """The mean of a predictor's scores over the orientations of a batch, each turned back to that of the batch.

    Args:
        score: from a batch to scores [B, C, X, H, Y] that can be averaged, such as probabilities.
        batch: frames, on any device; with 8 flips as many voxels along X as along Y.

    Returns:
        [B, C, X, H, Y].

    Raises:
        ValueError: unlike X and Y with 8 flips.
    """
    total: Tensor | None = None
    turns = orientations(count)
    for orientation in turns:
        scores = orientation.turn_back(score(orientation.turn_batch(batch)))
        total = scores.clone() if total is None else total.add_(scores)
    assert total is not None
    return total / len(turns)


def labels_over_flips(score: Callable[[Batch], Tensor], batch: Batch, *, count: NumFlips) -> Tensor:
    """[B, X, H, Y] uint8: the class with the largest mean; arguments and errors as ``mean_over_flips``."""
    return mean_over_flips(score, batch, count=count).argmax(dim=1).to(torch.uint8)
