"""Planned site sets equal those built one by one."""

import pytest
import torch

from ammnet_sparse.sparse import spconv_engine
from ammnet_sparse.sparse.kernel_maps import (
    WAY_DOWN,
    KernelMap,
    cells_read,
    containing_cells,
    planned_sites,
    repeated_sites,
    strided_sites,
)
from ammnet_sparse.sparse.sites import (
    AXIS_X,
    NEIGHBORHOOD,
    UP_KERNEL,
    Kernel,
    SiteSet,
    axis_kernel,
    full_sites,
    half_shape,
    sites_from_mask,
)

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


def maps_of(sites: SiteSet) -> list[KernelMap]:
    """Those that a strided block needs."""
    y_sites = strided_sites(sites, WAY_DOWN[0])
    height_sites = strided_sites(y_sites, WAY_DOWN[1])
    every = full_sites(sites.batch_size, half_shape(SHAPE), sites.linear.device)
    return [
        KernelMap(sites, sites, NEIGHBORHOOD),
        KernelMap(sites, y_sites, WAY_DOWN[0]),
        KernelMap(y_sites, height_sites, WAY_DOWN[1]),
        KernelMap(height_sites, every, axis_kernel(AXIS_X, stride=2)),
        KernelMap(sites, every, Kernel((2, 2, 2), stride=(2, 2, 2))),
        KernelMap(every, sites, UP_KERNEL),
    ]


def test_tables_of_repeated_sites_are_those_of_one_copy_repeated() -> None:
    sites = sites_from_mask(random_mask(0.1, 0))
    repeated = repeated_sites(sites, 3)
    plain = SiteSet(repeated.batch_size, SHAPE, repeated.linear)
    for found, expected in zip(maps_of(repeated), maps_of(plain), strict=True):
        assert found.single is not None and expected.single is None
        assert torch.equal(found.source.linear, expected.source.linear)
        assert torch.equal(found.table, expected.table) and torch.equal(found.inverse, expected.inverse)
        if not found.kernel.is_transposed:
            cells = [containing_cells(one.source, one.target, one.kernel.stride) for one in (found, expected)]
            assert torch.equal(*cells)
        masked = spconv_engine.masked_pairs(found)
        bits = 2 ** torch.arange(found.table.shape[1])
        assert torch.equal(masked.pairs, found.table.t())
        assert torch.equal(masked.mask.squeeze(1), ((found.table >= 0) * bits).sum(1)[masked.order.long()])
        assert torch.equal(masked.order.long().sort().values, torch.arange(len(found.target)))
