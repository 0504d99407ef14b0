"""The network's inputs from a batch: sites, state channels, label maps, and both conventions of the TSDF."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.ammnet import not_free_mask, plan_sites, pooled_state
from ammnet_sparse.models.image_encoders.label_map import label_map_features
from ammnet_sparse.sparse.sites import SiteSet, full_sites
from tests.models.scenes import GRID, small_config, some_scene

SHAPE = (4, 4, 4)


def empty_scene(batch_size: int = 1) -> Batch:
    """No observed voxel, no mapped pixel; an image of 2 x 3 pixels."""
    num_voxels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    return Batch(
        tsdf=torch.zeros(batch_size, 1, *SHAPE),
        mapping=torch.full((batch_size, num_voxels), -1, dtype=torch.int32),
        label_weight=torch.ones(batch_size, num_voxels, dtype=torch.bool),
        label_map=torch.arange(batch_size * 6).view(batch_size, 2, 3).byte(),
    )


def flip(batch: Batch) -> Batch:
    """The same scene in the flipped convention (DATA: s * max(0.001, 1 - |t|), s = +1 where |t| < 0.001)."""
    tsdf = batch.tsdf
    sign = torch.where(tsdf.abs() < 0.001, 1.0, tsdf.sign())
    return dataclasses.replace(batch, tsdf=sign * (1 - tsdf.abs()).clamp(min=0.001), tsdf_is_flipped=True)


def encoder_sites(batch: Batch, **changes: Any) -> SiteSet:
    return plan_sites(batch, None, small_config(**changes)).encoder


def voxels_of(sites: SiteSet) -> set[tuple[int, ...]]:
    columns = (sites.batch_index, *sites.coordinates)
    return set(zip(*(column.tolist() for column in columns), strict=True))


def test_encoder_sites_are_hit_voxels_and_their_neighbors() -> None:
    batch = some_scene(2)
    found = voxels_of(encoder_sites(batch))
    expected = set()
    for frame, *voxel in batch.hit_mask.view(2, *GRID).nonzero().tolist():
        for offset in itertools.product((-1, 0, 1), repeat=3):
            neighbor = [position + step for position, step in zip(voxel, offset, strict=True)]
            if all(0 <= position < size for position, size in zip(neighbor, GRID, strict=True)):
                expected.add((frame, *neighbor))
    assert found == expected
    assert 0.05 < len(found) / (2 * batch.num_voxels) < 0.5


@pytest.mark.parametrize("is_flipped", [False, True])
def test_the_band_adds_voxels_near_a_surface(is_flipped: bool) -> None:
    batch = empty_scene()
    batch.tsdf[0, 0, 0, 0, :] = torch.tensor([1.0, 0.9985, -0.5, 0.0])
    batch.tsdf[0, 0, 1, 0, :] = torch.tensor([-1.0, -0.002, 0.002, 1.0])
    batch.mapping[0, -1] = 0
    batch = flip(batch) if is_flipped else batch
    near_hit = voxels_of(encoder_sites(batch))
    with_band = voxels_of(encoder_sites(batch, encoder_band=True))
    assert with_band - near_hit == {(0, 0, 0, 1), (0, 0, 0, 2), (0, 1, 0, 1), (0, 1, 0, 2)}


def test_dense_sites_are_every_voxel_even_without_hits() -> None:
    batch = empty_scene(2)
    assert encoder_sites(batch, sites="dense") is full_sites(2, SHAPE, torch.device("cpu"))


@pytest.mark.parametrize("is_flipped", [False, True])
def test_state_channels_of_cells_are_fractions_and_the_mean(is_flipped: bool) -> None:
    batch = empty_scene()
    volume = batch.tsdf[0, 0]
    # The cell at (0, 0, 1): three free voxels, two occluded ones, three unobserved.
    volume[0, 0, 2], volume[0, 0, 3], volume[0, 1, 2] = 0.5, 0.25, 0.75
    volume[1, 0, 3], volume[1, 1, 3] = -0.5, -0.25
    state = pooled_state(flip(batch) if is_flipped else batch)
    assert state.shape == (8, 4)
    expected = torch.zeros(8, 4)
    expected[:, 2] = 1
    expected[1] = torch.tensor([3 / 8, 2 / 8, 3 / 8, 0.75 / 8])
    torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("is_flipped", [False, True])
def test_free_voxels_without_a_hit_are_left_out(is_flipped: bool) -> None:
    batch = empty_scene()
    batch.tsdf[0, 0, 0, 0, :] = torch.tensor([1.0, 1.0, 0.998, -1.0])
    batch.mapping[0, 1] = 2
    mask = not_free_mask(flip(batch) if is_flipped else batch)
    assert mask.shape == (1, 64)
    assert mask[0, :5].tolist() == [False, True, True, True, True]
    assert mask[0, 4:].all()


def test_label_maps_are_one_hot_at_hit_voxels_and_zero_elsewhere() -> None:
    batch = empty_scene(2)
    batch.mapping[0, 0], batch.mapping[1, 0] = 5, 4  # classes 5, and 6 + 4 of the second frame
    sites = encoder_sites(batch)
    features = label_map_features(batch, sites, num_classes=14)
    assert features.shape == (16, 14) and features.dtype == torch.float32
    assert features.nonzero().tolist() == [[0, 5], [8, 10]]
    assert features[0, 5] == features[8, 10] == 1


def test_label_maps_that_do_not_fit_are_refused() -> None:
    batch = empty_scene()
    sites = full_sites(1, SHAPE, torch.device("cpu"))
    batch.mapping[0, 0] = 5
    with pytest.raises(ValueError, match="num_label_map_classes"):
        label_map_features(batch, sites, num_classes=5)
    with pytest.raises(ValueError, match="batch.label_map"):
        label_map_features(dataclasses.replace(batch, label_map=None), sites, num_classes=14)
