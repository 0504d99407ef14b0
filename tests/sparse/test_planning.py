"""Planned site sets equal those built one by one, and nothing derived from them waits for the device."""

import pytest
import torch
from bench.operation_counter import Operations

from ammnet_sparse.sparse.kernel_maps import (
    WAY_DOWN,
    KernelMap,
    cells_read,
    planned_sites,
    repeated_sites,
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


def test_planning_waits_once_and_what_follows_never() -> None:
    masks = [random_mask(0.05, 0), random_mask(0.3, 1)]
    planned_sites(masks)  # constants of the process
    with Operations() as counted:
        first, second = planned_sites(masks)
        several = repeated_sites(second, 4)
    assert counted.num_waits == 1
    ups = [KernelMap(cells_read(sites, UP_KERNEL, half_shape(SHAPE)), sites, UP_KERNEL) for sites in (first, second)]
    assert len(several) == 4 * len(second)
    for up in ups:
        _ = up.groups, up.table, up.inverse
    again = planned_sites(masks)
    with Operations() as counted:
        for sites in again:
            up = KernelMap(cells_read(sites, UP_KERNEL, half_shape(SHAPE)), sites, UP_KERNEL)
            _ = up.groups, up.table, up.inverse
            _ = repeated_sites(sites, 4), strided_sites(strided_sites(sites, WAY_DOWN[0]), WAY_DOWN[1])
    assert counted.num_waits == 0


def test_repeated_sites_derive_repeated_sites() -> None:
    (sites,) = planned_sites([random_mask(0.1, 0)])
    found = repeated_sites(sites, 3)
    expected = sites_from_mask(random_mask(0.1, 0).repeat(3, 1, 1, 1))
    assert_same(found, expected)
    for kernel in WAY_DOWN:
        found, expected = strided_sites(found, kernel), strided_sites(expected, kernel)
        assert_same(found, expected)
    assert repeated_sites(sites, 1) is sites and repeated_sites(sites, 3) is repeated_sites(sites, 3)
