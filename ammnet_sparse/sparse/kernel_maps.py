"""Which sites a convolution joins.

A *kernel map* lists, for every tap of a convolution, the rows it reads and the rows it writes: spconv calls these
index pairs. They are built here and nowhere else, once for a pair of site sets and a kernel.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ammnet_sparse.sparse.sites import (
    BORDER,
    SiteSet,
    Triple,
    bordered_shape,
    bordered_table,
    full_sites,
    ravel,
    sites_from_bordered,
)

_Built = TypeVar("_Built")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Geometry of a convolution or pooling: taps, stride, padding and dilation along (X, height, Y)."""

    size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    is_transposed: bool = False

    @property
    def taps(self) -> Iterator[Triple]:
        """Tap positions in C order, the order of a convolution weight's last three axes."""
        x, height, y = self.size
        return itertools.product(range(x), range(height), range(y))


@dataclasses.dataclass(frozen=True, eq=False)
class KernelMap:
    """The rows that a kernel joins: features of ``source`` are read, features of ``target`` are written.

    The pairs are built on first use and shared by all maps of this kernel between the same two site sets.
    """

    source: SiteSet
    target: SiteSet
    kernel: Kernel

    @property
    def is_dense(self) -> bool:
        """Every cell is a site on both sides, so that a plain convolution does the same."""
        return self.source.is_full and self.target.is_full

    @property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Per tap, in C order: ([M] int64 source rows, [M] int64 target rows), the target rows ascending."""
        return self._shared("pairs", self._build_pairs)

    @property
    def spconv_pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs as spconv's native algorithm takes them: [2, taps, max] int32 padded with -1, [taps] int32.

        The counts are on the host: spconv reads them there, and would wait for the device in every convolution.
        """
        return self._shared("spconv pairs", self._build_spconv_pairs)

    @property
    def num_pairs(self) -> int:
        """Multiplications of one input with one output channel, over all taps."""
        return sum(source.shape[0] for source, _ in self.pairs)

    def _shared(self, name: str, build: Callable[[], _Built]) -> _Built:
        owner, other = self._owner_and_other()
        key = (name, id(other), self.source is owner, self.kernel)
        # The other set is kept beside the pairs, or its id could come to mean another set.
        built, _ = owner.remembered(key, lambda: (build(), None if other is owner else other))
        return built

    def _owner_and_other(self) -> tuple[SiteSet, SiteSet]:
        """The set that remembers the pairs, and the other one.

        It is the finer one, as fine sets refer to coarser ones already; but no full set may hold on to one of a batch.
        """
        owner, other = self.source, self.target
        if owner.num_cells < other.num_cells:
            owner, other = other, owner
        return (other, owner) if owner.is_full and not other.is_full else (owner, other)

    def _build_pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(self._pairs_of_tap(tap) for tap in self.kernel.taps)

    def _build_spconv_pairs(self) -> tuple[Tensor, Tensor]:
        # The host waits for the device twice a map here, instead of once a tap.
        rows = torch.stack([self._row_of_every_target(tap) for tap in self.kernel.taps])
        is_pair = rows >= 0
        pairs_of_tap = is_pair.sum(1, dtype=torch.int32)
        counts = pairs_of_tap.cpu()
        tap, target = is_pair.nonzero().unbind(1)
        begin = pairs_of_tap.cumsum(0) - pairs_of_tap
        position = torch.arange(len(tap), device=rows.device) - begin[tap]
        table = torch.full((2, len(counts), int(counts.max())), -1, dtype=torch.int32, device=rows.device)
        table[0, tap, position] = rows[tap, target].int()  # a mask would make the host wait once more
        table[1, tap, position] = target.int()
        return table, counts

    def _row_of_every_target(self, tap: Triple) -> Tensor:
        """[N_target] source rows that a tap reads, -1 for none."""
        rows, target_rows = _rows_read(self.target, self.source, self.kernel, tap)
        if target_rows is None:
            return rows
        return rows.new_full((len(self.target),), -1).index_copy_(0, target_rows, rows)

    def _pairs_of_tap(self, tap: Triple) -> tuple[Tensor, Tensor]:
        rows, target_rows = _rows_read(self.target, self.source, self.kernel, tap)
        found = (rows >= 0).nonzero().squeeze(1)
        return rows.index_select(0, found), found if target_rows is None else target_rows.index_select(0, found)


def strided_shape(shape: Triple, kernel: Kernel) -> Triple:
    """Output grid of a strided convolution."""
    x, height, y = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            shape, kernel.padding, kernel.dilation, kernel.size, kernel.stride, strict=True
        )
    )
    return x, height, y


def strided_sites(sites: SiteSet, kernel: Kernel) -> SiteSet:
    """Cells of the strided grid that contain a site or that the kernel reaches from one, shared once built."""
    shape = strided_shape(sites.spatial_shape, kernel)
    if sites.is_full:
        return full_sites(sites.batch_size, shape, sites.linear.device)
    reaching = dataclasses.replace(kernel, is_transposed=True)
    containing = Kernel(kernel.stride, kernel.stride, is_transposed=True)
    return sites.remembered(("strided", kernel), lambda: _sites_read(sites, shape, (reaching, containing)))


def cells_read(sites: SiteSet, kernel: Kernel, shape: Triple) -> SiteSet:
    """Cells of a coarser grid of this ``shape`` that a transposed convolution onto ``sites`` reads, shared."""
    if sites.is_full:
        return full_sites(sites.batch_size, shape, sites.linear.device)
    return sites.remembered(("read", kernel, shape), lambda: _sites_read(sites, shape, (kernel,)))


def containing_cells(sites: SiteSet, coarse: SiteSet, stride: Triple) -> Tensor:
    """[N] int64: the row in ``coarse`` of the cell that contains each site, shared once built."""

    def build() -> tuple[Tensor, SiteSet]:
        coordinates = [axis // step for axis, step in zip(sites.coordinates, stride, strict=True)]
        return coarse.rows_of(ravel(sites.batch_index, coordinates, coarse.spatial_shape)), coarse

    rows, _ = sites.remembered(("containing", id(coarse), stride), build)
    return rows


def neighbor_rows(sites: SiteSet) -> Tensor:
    """[N, 27] int64: rows of the 3x3x3 neighbourhood in C order of offsets, -1 for none, shared once built."""
    kernel = Kernel((3, 3, 3), padding=(1, 1, 1))

    def build() -> Tensor:
        return torch.stack([_rows_read(sites, sites, kernel, tap)[0] for tap in kernel.taps], dim=1)

    return sites.remembered("neighbors", build)


def _rows_read(sites: SiteSet, read: SiteSet, kernel: Kernel, tap: Triple) -> tuple[Tensor, Tensor | None]:
    """Rows of ``read`` that a tap reads for ``sites``, -1 for none, and for which of them (None: for all).

    A convolution reads cell ``o * stride - padding + tap * dilation``; a transposed one the cell of which that
    expression is the site, so that each tap serves the sites of one residue modulo the stride.
    """
    cells, target_rows = _bordered_cells(sites, read.spatial_shape, kernel, tap)
    return bordered_table(read).index_select(0, cells), target_rows


def _sites_read(sites: SiteSet, shape: Triple, kernels: Sequence[Kernel]) -> SiteSet:
    """All cells of a grid of this ``shape`` that the kernels read for ``sites``."""
    x, height, y = bordered_shape(shape)
    is_read = torch.zeros(sites.batch_size * x * height * y, dtype=torch.bool, device=sites.linear.device)
    for kernel in kernels:
        for tap in kernel.taps:
            is_read[_bordered_cells(sites, shape, kernel, tap)[0]] = True
    return sites_from_bordered(is_read, sites.batch_size, shape)


def _bordered_cells(sites: SiteSet, shape: Triple, kernel: Kernel, tap: Triple) -> tuple[Tensor, Tensor | None]:
    """Linear indices in a bordered grid of ``shape`` that a tap reads, and the rows of the sites it serves."""
    residue, offset = [], []
    for axis in range(3):
        shift = tap[axis] * kernel.dilation[axis] - kernel.padding[axis]
        if kernel.is_transposed:
            residue.append(shift % kernel.stride[axis])
            offset.append((residue[axis] - shift) // kernel.stride[axis])
        else:
            offset.append(shift)
    _, height, y = bordered_shape(shape)
    constant = (offset[0] * height + offset[1]) * y + offset[2]
    origins = _origins(sites, shape, kernel.stride, is_divided=kernel.is_transposed)
    if not kernel.is_transposed or kernel.stride == (1, 1, 1):
        return origins + constant, None
    rows = _rows_of_residue(sites, kernel.stride, (residue[0], residue[1], residue[2]))
    return origins.index_select(0, rows) + constant, rows


def _origins(sites: SiteSet, shape: Triple, stride: Triple, *, is_divided: bool) -> Tensor:
    """[N] index in the bordered grid of ``shape`` of the cell at the sites' coordinates times (or by) the stride."""

    def build() -> Tensor:
        axes = [
            (axis if step == 1 else axis // step if is_divided else axis * step) + BORDER
            for axis, step in zip(sites.coordinates, stride, strict=True)
        ]
        return ravel(sites.batch_index, axes, bordered_shape(shape))

    return sites.remembered(("origins", shape, stride, is_divided), build)


def _rows_of_residue(sites: SiteSet, stride: Triple, residue: Triple) -> Tensor:
    """Rows of the sites whose coordinates leave this residue modulo the stride."""

    def build() -> Tensor:
        x, height, y = (
            axis % step == rest for axis, step, rest in zip(sites.coordinates, stride, residue, strict=True)
        )
        return (x & height & y).nonzero().squeeze(1)

    return sites.remembered(("residue", stride, residue), build)
