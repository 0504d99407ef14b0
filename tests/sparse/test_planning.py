"""Planned site sets equal those built one by one."""

import pytest
import torch

from ammnet_sparse.sparse.kernel_maps import (
    WAY_DOWN,
    cells_read,
    planned_sites,
    strided_sites,
)
from ammnet_sparse.sparse.sites import UP_KERNEL, SiteSet, half_shape, sites_from_mask

SHAPE = (12, 24, 12)


def random_mask(density: float, seed: int) -> torch.Tensor:
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(seed)) < density


def assert_same(found: SiteSet, expected: SiteSet) -> None:
    assert torch.equal(found.linear, expected.linear) and found.spatial_shape == expected.spatial_shape
    assert torch.equal(found.row_table, expected._build_row_table() if not expected.is_full else expected.linear)
    assert found.is_full == expected.is_full


@pytest.mark.parametrize("densities", [(0.05, 0.3), (0.0, 0.3), (1.1, 0.01), (0.2,)])
def test_planned_sites_are_those_built_one_by_one(densities: tuple[float, ...]) -> None:
    masks = [random_mask(density, seed) for seed, density in enumerate(densities)]
    for mask, found in zip(masks, planned_sites(masks), strict=True):
        expected = sites_from_mask(mask)
        assert_same(found, expected)
        half = half_shape(SHAPE)
        assert_same(cells_read(found, UP_KERNEL, half), cells_read(expected, UP_KERNEL, half))
        for kernel in WAY_DOWN:
            found, expected = strided_sites(found, kernel), strided_sites(expected, kernel)
            assert_same(found, expected)
