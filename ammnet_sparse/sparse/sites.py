"""Which voxels live at which scale, and which of them a convolution joins.

A *site* is a voxel, or a cell of a coarser grid, that has features. Features are site-major, [N, C], in the
order of the sites' linear indices. A *kernel map* lists, for every tap of a convolution, the rows it reads and
the rows it writes: spconv calls these index pairs. They are built here and nowhere else, once for a pair
of site sets and a kernel, and remembered on the site set that is read; for grids where every cell is a
site they live as long as the process.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Triple = tuple[int, int, int]


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
class SiteSet:
    """Sites of a batch on one grid.

    Attributes:
        batch_size: frames of the batch.
        spatial_shape: cells along (X, height, Y).
        linear: [N] int64, ``((b * X + x) * H + h) * Y + y``, ascending, unique.
        is_full: every cell of every frame is a site.
    """

    batch_size: int
    spatial_shape: Triple
    linear: Tensor
    is_full: bool = False
    _derived: dict[object, object] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.linear.shape[0]

    @property
    def num_cells(self) -> int:
        """Cells of one frame's grid."""
        x, height, y = self.spatial_shape
        return x * height * y

    @functools.cached_property
    def batch_index(self) -> Tensor:
        """[N] int64: the frame each site belongs to."""
        return self.linear // self.num_cells

    @functools.cached_property
    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """([N], [N], [N]) int64: X, height and Y of every site."""
        _, height, y = self.spatial_shape
        cell = self.linear % self.num_cells
        return cell // (height * y), (cell // y) % height, cell % y

    @functools.cached_property
    def row_table(self) -> Tensor:
        """[B * X * H * Y] int64: the row of each cell's site, -1 where it is none."""
        table = torch.full((self.batch_size * self.num_cells,), -1, dtype=torch.int64, device=self.linear.device)
        table[self.linear] = torch.arange(len(self), device=self.linear.device)
        return table

    def rows_of(self, linear: Tensor) -> Tensor:
        """[M] rows of the sites with these linear indices, -1 where there is none."""
        return linear if self.is_full else self.row_table[linear]

    @functools.cached_property
    def bordered_table(self) -> Tensor:
        """Rows as in ``row_table`` on the grid with a border of cells that hold no site, flat."""
        rows = torch.arange(len(self), device=self.linear.device) if self.is_full else self.row_table
        volume = rows.view(self.batch_size, *self.spatial_shape)
        return torch.nn.functional.pad(volume, (_BORDER,) * 6, value=-1).flatten()

    def _origins(self, shape: Triple, stride: Triple, *, is_divided: bool) -> Tensor:
        """[N] index in the bordered grid of ``shape`` of the cell at the coordinates times (or by) the stride."""
        key = ("origins", shape, stride, is_divided)
        found = self._derived.get(key)
        if not isinstance(found, Tensor):
            axes = [
                (axis if step == 1 else axis // step if is_divided else axis * step) + _BORDER
                for axis, step in zip(self.coordinates, stride, strict=True)
            ]
            found = _ravel(self.batch_index, axes, _bordered(shape))
            self._derived[key] = found
        return found

    def _rows_of_residue(self, stride: Triple, residue: Triple) -> Tensor:
        """Rows of the sites whose coordinates leave this residue modulo the stride."""
        key = ("residue", stride, residue)
        found = self._derived.get(key)
        if not isinstance(found, Tensor):
            x, height, y = (
                axis % step == rest for axis, step, rest in zip(self.coordinates, stride, residue, strict=True)
            )
            found = (x & height & y).nonzero().squeeze(1)
            self._derived[key] = found
        return found

    def densify(self, features: Tensor) -> Tensor:
        """[N, C] -> [B, C, X, H, Y], zero where there is no site; channels stay innermost in memory."""
        channels = features.shape[1]
        if not self.is_full:
            volume = features.new_zeros(self.batch_size * self.num_cells, channels)
            features = volume.index_copy(0, self.linear, features)
        return features.view(self.batch_size, *self.spatial_shape, channels).permute(0, 4, 1, 2, 3)

    def gather(self, volume: Tensor) -> Tensor:
        """[B, C, X, H, Y] -> [N, C]: the features of a volume at the sites."""
        flat = volume.permute(0, 2, 3, 4, 1).reshape(-1, volume.shape[1])
        return flat if self.is_full else flat.index_select(0, self.linear)

    def chunks(self, size: int) -> Iterator["SiteSet"]:
        """The sites in consecutive pieces of at most ``size``."""
        if len(self) <= size:
            yield self
            return
        for linear in self.linear.split(size):
            yield SiteSet(self.batch_size, self.spatial_shape, linear)


@functools.lru_cache(maxsize=64)
def full_sites(batch_size: int, spatial_shape: Triple, device: torch.device) -> SiteSet:
    """Every cell of the grid: remembered, so that what is derived from it is built once a run."""
    count = batch_size * spatial_shape[0] * spatial_shape[1] * spatial_shape[2]
    return SiteSet(batch_size, spatial_shape, torch.arange(count, device=device), is_full=True)


def sites_from_mask(mask: Tensor) -> SiteSet:
    """Sites where ``mask`` [B, X, H, Y] bool is set."""
    shape = (mask.shape[1], mask.shape[2], mask.shape[3])
    linear = mask.flatten().nonzero().squeeze(1)
    if linear.shape[0] == mask.numel():
        return full_sites(mask.shape[0], shape, mask.device)
    return SiteSet(mask.shape[0], shape, linear)


@dataclasses.dataclass(frozen=True, eq=False)
class KernelMap:
    """The rows that a kernel joins: features of ``source`` are read, features of ``target`` are written."""

    source: SiteSet
    target: SiteSet
    kernel: Kernel

    @property
    def is_dense(self) -> bool:
        """Every cell is a site on both sides, so that a plain convolution does the same."""
        return self.source.is_full and self.target.is_full

    @functools.cached_property
    def pairs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Per tap, in C order: ([M] int64 source rows, [M] int64 target rows), the target rows ascending."""
        return tuple(self._pairs_of_tap(tap) for tap in self.kernel.taps)

    @functools.cached_property
    def spconv_pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs as spconv's native algorithm takes them: [2, taps, max] int32 padded with -1, [taps] int32."""
        counts = [source.shape[0] for source, _ in self.pairs]
        device = self.source.linear.device
        table = torch.full((2, len(counts), max(counts)), -1, dtype=torch.int32, device=device)
        for tap, (source, target) in enumerate(self.pairs):
            table[0, tap, : counts[tap]] = source
            table[1, tap, : counts[tap]] = target
        return table, torch.tensor(counts, dtype=torch.int32, device=device)

    @property
    def num_pairs(self) -> int:
        """Multiplications of one input with one output channel, over all taps."""
        return sum(source.shape[0] for source, _ in self.pairs)

    def _pairs_of_tap(self, tap: Triple) -> tuple[Tensor, Tensor]:
        rows, target_rows = _rows_read(self.target, self.source, self.kernel, tap)
        found = (rows >= 0).nonzero().squeeze(1)
        return rows.index_select(0, found), found if target_rows is None else target_rows.index_select(0, found)


def kernel_map(source: SiteSet, target: SiteSet, kernel: Kernel) -> KernelMap:
    """The map of ``kernel`` between two site sets, built on first use and then shared."""
    key = ("map", id(target), kernel)
    found = source._derived.get(key)
    if not isinstance(found, KernelMap):
        found = KernelMap(source, target, kernel)
        source._derived[key] = found
    return found


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
    key = ("strided", kernel)
    found = sites._derived.get(key)
    if not isinstance(found, SiteSet):
        found = _build_strided_sites(sites, kernel)
        sites._derived[key] = found
    return found


def _build_strided_sites(sites: SiteSet, kernel: Kernel) -> SiteSet:
    shape = strided_shape(sites.spatial_shape, kernel)
    if sites.is_full:
        return full_sites(sites.batch_size, shape, sites.linear.device)
    reaching = dataclasses.replace(kernel, is_transposed=True)
    containing = Kernel(kernel.stride, kernel.stride, is_transposed=True)
    return _sites_read(sites, shape, (reaching, containing))


def cells_read(sites: SiteSet, kernel: Kernel, shape: Triple) -> SiteSet:
    """Cells of a coarser grid of this ``shape`` that a transposed convolution onto ``sites`` reads, shared."""
    key = ("read", kernel, shape)
    found = sites._derived.get(key)
    if not isinstance(found, SiteSet):
        if sites.is_full:
            found = full_sites(sites.batch_size, shape, sites.linear.device)
        else:
            found = _sites_read(sites, shape, (kernel,))
        sites._derived[key] = found
    return found


def containing_cells(sites: SiteSet, coarse: SiteSet, stride: Triple) -> Tensor:
    """[N] int64: the row in ``coarse`` of the cell that contains each site, shared once built."""
    key = ("containing", id(coarse), stride)
    found = sites._derived.get(key)
    if not isinstance(found, tuple):
        coordinates = [axis // step for axis, step in zip(sites.coordinates, stride, strict=True)]
        linear = _ravel(sites.batch_index, coordinates, coarse.spatial_shape)
        found = (coarse.rows_of(linear), coarse)
        sites._derived[key] = found
    rows: Tensor = found[0]
    return rows


def neighbor_rows(sites: SiteSet) -> Tensor:
    """[N, 27] int64: rows of the 3x3x3 neighbourhood in C order of offsets, -1 for none, shared once built."""
    key = "neighbors"
    found = sites._derived.get(key)
    if not isinstance(found, Tensor):
        kernel = Kernel((3, 3, 3), padding=(1, 1, 1))
        columns = [_rows_read(sites, sites, kernel, tap)[0] for tap in kernel.taps]
        found = torch.stack(columns, dim=1)
        sites._derived[key] = found
    return found


_BORDER = 3
"""Cells added on each side of a grid, so that taps that leave it need no test: the largest dilation."""


def _rows_read(sites: SiteSet, read: SiteSet, kernel: Kernel, tap: Triple) -> tuple[Tensor, Tensor | None]:
    """Rows of ``read`` that a tap reads for ``sites``, -1 for none, and for which of them (None: for all).

    A convolution reads cell ``o * stride - padding + tap * dilation``; a transposed one the cell of which that
    expression is the site, so that each tap serves the sites of one residue modulo the stride.
    """
    cells, target_rows = _bordered_cells(sites, read.spatial_shape, kernel, tap)
    return read.bordered_table.index_select(0, cells), target_rows


def _sites_read(sites: SiteSet, shape: Triple, kernels: Sequence[Kernel]) -> SiteSet:
    """All cells of a grid of this ``shape`` that the kernels read for ``sites``."""
    bordered = _bordered(shape)
    count = sites.batch_size * bordered[0] * bordered[1] * bordered[2]
    mask = torch.zeros(count, dtype=torch.bool, device=sites.linear.device)
    for kernel in kernels:
        for tap in kernel.taps:
            mask[_bordered_cells(sites, shape, kernel, tap)[0]] = True
    volume = mask.view(sites.batch_size, *bordered)
    inner = slice(_BORDER, -_BORDER)
    return sites_from_mask(volume[:, inner, inner, inner])


def _bordered(shape: Triple) -> Triple:
    return shape[0] + 2 * _BORDER, shape[1] + 2 * _BORDER, shape[2] + 2 * _BORDER


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
    _, height, y = _bordered(shape)
    constant = (offset[0] * height + offset[1]) * y + offset[2]
    if not kernel.is_transposed:
        return sites._origins(shape, kernel.stride, is_divided=False) + constant, None
    origins = sites._origins(shape, kernel.stride, is_divided=True)
    if kernel.stride == (1, 1, 1):
        return origins + constant, None
    rows = sites._rows_of_residue(kernel.stride, (residue[0], residue[1], residue[2]))
    return origins.index_select(0, rows) + constant, rows


def _ravel(batch_index: Tensor, axes: list[Tensor], shape: Triple) -> Tensor:
    return ((batch_index * shape[0] + axes[0]) * shape[1] + axes[1]) * shape[2] + axes[2]
