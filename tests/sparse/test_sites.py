"""Site sets and kernel maps against naive enumeration, and their caches."""

import itertools

import pytest
import torch
from torch import Tensor

from ammnet_sparse.sparse.convolutions import UP_KERNEL
from ammnet_sparse.sparse.kernel_maps import (
    Kernel,
    KernelMap,
    cells_read,
    containing_cells,
    neighbor_rows,
    pieces_by_residue,
    strided_shape,
    strided_sites,
)
from ammnet_sparse.sparse.sites import SiteSet, sites_from_mask

SHAPE = (6, 4, 6)
Voxel = tuple[int, ...]


def random_sites(density: float = 0.2, *, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> SiteSet:
    generator = torch.Generator().manual_seed(seed)
    return sites_from_mask(torch.rand(2, *shape, generator=generator) < density)


def voxels_of(sites: SiteSet) -> list[Voxel]:
    """(frame, X, height, Y) of every site, by arithmetic of its own."""
    found = []
    for linear in sites.linear.tolist():
        frame, cell = divmod(linear, sites.spatial_shape[0] * sites.spatial_shape[1] * sites.spatial_shape[2])
        x, rest = divmod(cell, sites.spatial_shape[1] * sites.spatial_shape[2])
        found.append((frame, x, *divmod(rest, sites.spatial_shape[2])))
    return found


def pairs_of(kernel_map: KernelMap) -> list[tuple[Tensor, Tensor]]:
    """Per tap, in C order: [M] source rows and [M] target rows, the latter ascending."""
    pairs = []
    for rows in kernel_map.table.unbind(1):
        target = (rows >= 0).nonzero().squeeze(1)
        pairs.append((rows[target].long(), target))
    return pairs


def test_sites_of_a_mask_have_ascending_indices_and_coordinates() -> None:
    mask = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.2
    sites = sites_from_mask(mask)
    assert (sites.batch_size, sites.spatial_shape, sites.is_full) == (2, SHAPE, False)
    assert len(sites) == int(mask.sum()) and sites.num_cells == 144
    expected = [tuple(row) for row in mask.nonzero().tolist()]
    assert voxels_of(sites) == expected
    assert (
        list(zip(sites.batch_index.tolist(), *(axis.tolist() for axis in sites.coordinates), strict=True)) == expected
    )


@pytest.mark.parametrize("density", [0.2, 1.1])
def test_densify_and_gather_are_inverse(density: float) -> None:
    sites = random_sites(density)
    features = torch.randn(len(sites), 3)
    volume = sites.densify(features)
    assert volume.shape == (2, 3, *SHAPE)
    for row, (frame, x, height, y) in enumerate(voxels_of(sites)):
        assert torch.equal(volume[frame, :, x, height, y], features[row])
    assert int((volume != 0).sum()) == features.numel()
    assert torch.equal(sites.gather(volume), features)
    assert torch.equal(sites.rows_of(sites.linear), torch.arange(len(sites)))


KERNELS = [
    Kernel((3, 3, 3), padding=(1, 1, 1)),
    Kernel((1, 1, 3), padding=(0, 0, 2), dilation=(1, 1, 2)),
    Kernel((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)),
    Kernel((1, 1, 3), stride=(1, 1, 3), padding=(0, 0, 1)),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("density", [0.2, 1.1])
def test_pairs_are_those_of_the_definition(kernel: Kernel, density: float) -> None:
    """Tap t of output o reads cell o * stride - padding + t * dilation."""
    source = random_sites(density)
    target = strided_sites(source, kernel)
    assert target.spatial_shape == strided_shape(SHAPE, kernel)
    row_of = {voxel: row for row, voxel in enumerate(voxels_of(source))}
    kernel_map = KernelMap(source, target, kernel)
    for tap, (source_rows, target_rows) in zip(kernel.taps, pairs_of(kernel_map), strict=True):
        expected = []
        for row, (frame, *cell) in enumerate(voxels_of(target)):
            read = (
                position * kernel.stride[axis] - kernel.padding[axis] + tap[axis] * kernel.dilation[axis]
                for axis, position in enumerate(cell)
            )
            voxel = (frame, *read)
            if voxel in row_of:
                expected.append((row_of[voxel], row))
        assert list(zip(source_rows.tolist(), target_rows.tolist(), strict=True)) == expected
    assert kernel_map.num_pairs == sum(len(rows) for rows, _ in pairs_of(kernel_map))


def test_pairs_of_a_transposed_kernel_are_those_of_the_definition() -> None:
    """Tap t of coarse cell c writes voxel 2 c - 1 + t."""
    target = random_sites(shape=(12, 8, 12))
    source = cells_read(target, UP_KERNEL, SHAPE)
    row_of = {voxel: row for row, voxel in enumerate(voxels_of(target))}
    for tap, pairs in zip(UP_KERNEL.taps, pairs_of(KernelMap(source, target, UP_KERNEL)), strict=True):
        expected = set()
        for row, (frame, *cell) in enumerate(voxels_of(source)):
            voxel = (frame, *(2 * position - 1 + step for position, step in zip(cell, tap, strict=True)))
            if voxel in row_of:
                expected.add((row, row_of[voxel]))
        assert set(zip(*(rows.tolist() for rows in pairs), strict=True)) == expected


def test_neighbors_are_rows_in_c_order_of_offsets() -> None:
    sites = random_sites()
    row_of = {voxel: row for row, voxel in enumerate(voxels_of(sites))}
    expected = [
        [
            row_of.get((frame, x + step[0], height + step[1], y + step[2]), -1)
            for step in itertools.product((-1, 0, 1), repeat=3)
        ]
        for frame, x, height, y in voxels_of(sites)
    ]
    found = neighbor_rows(sites)
    assert found.tolist() == expected
    assert torch.equal(found[:, 13], torch.arange(len(sites)))
    assert neighbor_rows(sites) is found


def test_containing_cells_are_those_of_the_window() -> None:
    sites = random_sites()
    coarse = strided_sites(sites, Kernel((1, 2, 3), stride=(1, 2, 3)))
    rows = containing_cells(sites, coarse, (1, 2, 3))
    cells = voxels_of(coarse)
    assert [cells[row] for row in rows.tolist()] == [(b, x, h // 2, y // 3) for b, x, h, y in voxels_of(sites)]


def test_pieces_have_one_residue_each_and_their_rows_are_found_again() -> None:
    sites = sites_from_mask(torch.rand(2, 5, 4, 7, generator=torch.Generator().manual_seed(3)) < 0.6)
    pieces, position = pieces_by_residue(sites, (2, 2, 2), size=6)
    for piece in pieces:
        assert 1 <= len(piece) <= 6
        residues = {tuple(int(axis[row]) % 2 for axis in piece.coordinates) for row in range(len(piece))}
        assert len(residues) == 1
        groups = KernelMap(SiteSet(2, (3, 2, 4), torch.arange(0, 48, 2)), piece, UP_KERNEL).groups
        assert groups.position is None and groups.table.shape[0] == len(piece) and len(groups.groups) == 1
    assert torch.equal(torch.cat([piece.linear for piece in pieces])[position], sites.linear)
