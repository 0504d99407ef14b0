"""Flips at test time: each orientation once, turned back rightly, and nothing changed where nothing can."""

import dataclasses

import pytest
import torch
from torch import Tensor

from ammnet_sparse.data.augmentation import move_voxels
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.symmetry import Symmetry
from ammnet_sparse.evaluation.flips import NumFlips, mean_over_flips, move_batch, symmetries
from tests.data.frames import random_frame

GRID = (4, 3, 4)


def some_batch(*, grid_shape: tuple[int, int, int] = GRID) -> Batch:
    return Batch.collate([Batch.from_frame(random_frame(seed, grid_shape=grid_shape)) for seed in (1, 2)])


def one_hot_of_mapping(batch: Batch) -> Tensor:
    """A predictor that looks at each voxel alone, so that turning must not matter."""
    hit = batch.hit_mask.view(-1, 1, *batch.grid_shape).float()
    return torch.cat([batch.tsdf, hit, 1 - hit], dim=1)


@pytest.mark.parametrize("count", [4, 8])
def test_predictor_that_looks_at_voxels_alone_is_unchanged(count: NumFlips) -> None:
    batch = some_batch()
    torch.testing.assert_close(mean_over_flips(one_hot_of_mapping, batch, count=count), one_hot_of_mapping(batch))


def test_every_orientation_comes_once_and_is_undone() -> None:
    volume = torch.arange(2 * 4 * 3 * 4).view(2, 1, 4, 3, 4)
    for count in (4, 8):
        moved = {tuple(symmetry.apply(volume).flatten().tolist()) for symmetry in symmetries(count)}
        assert len(moved) == count
    for symmetry in symmetries(8):
        assert torch.equal(symmetry.invert(symmetry.apply(volume)), volume)
        # Heights stay.
        heights = torch.arange(3)[None, None, None, :, None].expand(2, 1, 4, 3, 4)
        assert torch.equal(symmetry.apply(heights), heights)


@pytest.mark.parametrize("symmetry", symmetries(8))
def test_batches_move_as_augmentation_moves_frames(symmetry: Symmetry) -> None:
    frame = random_frame(3, grid_shape=GRID, has_label_map=True)
    moved = move_batch(Batch.from_frame(frame), symmetry)
    expected = Batch.from_frame(move_voxels(frame, symmetry))
    for field in dataclasses.fields(Batch):
        found, wanted = getattr(moved, field.name), getattr(expected, field.name)
        assert torch.equal(found, wanted) if isinstance(wanted, Tensor) else found == wanted, field.name


def test_unlike_axes_cannot_be_exchanged() -> None:
    batch = some_batch(grid_shape=(4, 3, 5))
    mean = mean_over_flips(lambda turned: turned.tsdf, batch, count=4)
    torch.testing.assert_close(mean, batch.tsdf)
    with pytest.raises(ValueError, match="4 x 3 x 5"):
        mean_over_flips(lambda turned: turned.tsdf, batch, count=8)
