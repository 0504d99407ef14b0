"""Which voxels are sites at which scale, and the geometry of the kernels between scales.

A *site* is a voxel, or a cell of a coarser grid, that has features. Features are site-major, [N, C], in the
order of the sites' linear indices. Everything derived from a site set (tables, neighbors, the sites of coarser grids,
pairs of rows) is built on first use and cached on the set; for grids where every cell is a site it lives as
long as the process.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]
"""Numbers along (X, height, Y)."""
_Built = TypeVar("_Built")
AXIS_Y, AXIS_HEIGHT, AXIS_X = 2, 1, 0


@dataclasses.dataclass(frozen=True, eq=False)
class SiteSet:
    """Sites of a batch on one grid.

    Attributes:
        batch_size: frames of the batch.
        spatial_shape: cells along (X, height, Y).
        linear: [N] int64, ``((b * X + x) * H + h) * Y + y``, ascending, unique.
        is_full: every cell of every frame is a site.
        single: the sites of which these are copies, one after another (``repeated``); None for others.
    """

    batch_size: int
    spatial_shape: Triple
    linear: Tensor
    is_full: bool = False
    single: "SiteSet | None" = None
    _derived: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.linear.shape[0]

    def cached(self, key: Hashable, build: Callable[[], _Built]) -> _Built:
        """The result of ``build``, built once for this set and ``key``.

        The result must not refer to this set, nor to one that refers to it: in a cycle a batch's tensors would
        outlive the batch until garbage collection. Nor may a full set refer to one that is not full: what a
        full set caches is never freed.
        """
        if key not in self._derived:
            # Not inference tensors, which autograd refuses: full sets outlive a prediction in inference mode.
            with torch.inference_mode(False):
                self._derived[key] = build()
        found: _Built = self._derived[key]
        return found

    def store(self, key: Hashable, value: object) -> None:
        """Caches ``value`` where ``cached`` would build it, under the same conditions."""
        self._derived.setdefault(key, value)

    @property
    def num_cells(self) -> int:
        """Cells of one frame's grid."""
        x, height, y = self.spatial_shape
        return x * height * y

    @property
    def every_cell(self) -> "SiteSet":
        """Every cell of the grid; values that depend only on the cell are computed once per process."""
        return self if self.is_full else full_sites(self.batch_size, self.spatial_shape, self.linear.device)

    def of_cells(self, key: Hashable, build: Callable[["SiteSet"], Tensor]) -> Tensor:
        """[N, ...]: the values of ``build`` for each cell, taken at the sites; cached on both."""
        every = self.every_cell
        cells = every.cached(key, lambda: build(every))
        return cells if self.is_full else self.cached(key, lambda: cells.index_select(0, self.linear))

    @property
    def batch_index(self) -> Tensor:
        """[N] int64: the frame each site belongs to."""
        return self.of_cells("batch index", lambda every: every.linear // every.num_cells)

    @property
    def coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        """([N], [N], [N]) int64: X, height and Y of every site."""
        return self.cached("coordinates", self._build_coordinates)

    def _build_coordinates(self) -> tuple[Tensor, Tensor, Tensor]:
        _, height, y = self.spatial_shape
        cell = self.linear % self.num_cells
        return cell // (height * y), (cell // y) % height, cell % y

    def rows_of(self, linear: Tensor) -> Tensor:
        """[M] rows of the sites with these linear indices, -1 for none."""
        return linear if self.is_full else self.row_table[linear]

    @property
    def row_table(self) -> Tensor:
        """[B * X * H * Y] int32 (int64 if full): the row of each cell's site, -1 for cells that are not sites."""
        return self.linear if self.is_full else self.cached("row table", self._build_row_table)

    def _build_row_table(self) -> Tensor:
        table = torch.full((self.batch_size * self.num_cells,), -1, dtype=torch.int32, device=self.linear.device)
        return table.scatter_(0, self.linear, torch.arange(len(self), dtype=torch.int32, device=self.linear.device))

    @property
    def mask(self) -> Tensor:
        """[B, X, H, Y] bool: which cells are sites."""
        return (self.row_table >= 0).view(self.batch_size, *self.spatial_shape)

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
        # For a single frame reshaping gives a channels-first view, which recipes cannot replace.
        return flat.contiguous() if self.is_full else flat.index_select(0, self.linear)

    def repeated(self, times: int) -> "SiteSet":
        """These frames ``times`` times, one copy after another."""
        if times == 1:
            return self
        batch_size = self.batch_size * times
        if self.is_full:
            return full_sites(batch_size, self.spatial_shape, self.linear.device)
        cells = self.batch_size * self.num_cells
        return SiteSet(batch_size, self.spatial_shape, repeated_rows(self.linear, times, cells), single=self)


def repeated_rows(rows: Tensor, times: int, num_rows: int) -> Tensor:
    """[N, ...] integers -> [times * N, ...]: the same rows of ``times`` copies of a set of ``num_rows`` rows.

    Those below 0, for none, stay below 0, if ``rows`` are int32.
    """
    begin = torch.arange(0, times * num_rows, num_rows, dtype=rows.dtype, device=rows.device)
    repeated = rows + begin.view(-1, *[1] * rows.ndim)
    if rows.dtype == torch.int32:
        repeated.masked_fill_(rows < 0, -1)
    return repeated.flatten(0, 1)


@functools.cache
def full_sites(batch_size: int, spatial_shape: Triple, device: torch.device) -> SiteSet:
    """Every cell of the grid; cached, so that everything derived from it is built once.

    Never freed, as CUDA graphs read what it caches.
    """
    count = batch_size * spatial_shape[0] * spatial_shape[1] * spatial_shape[2]
    with torch.inference_mode(False):
        linear = torch.arange(count, device=device)
    return SiteSet(batch_size, spatial_shape, linear, is_full=True)


def sites_from_mask(mask: Tensor) -> SiteSet:
    """Sites where ``mask`` [B, X, H, Y] bool is set; waits for the device."""
    return sites_from_masks([mask])[0][0]


def sites_from_masks(
    masks: Sequence[Tensor], *, counts: Sequence[Tensor] = ()
) -> tuple[list[SiteSet], list[list[int]]]:
    """Site sets of many masks, and other numbers that the host needs, in one wait for the device.

    Args:
        masks: each [B, X, H, Y] bool, of any grids.
        counts: integer tensors of any shape.

    Returns:
        The sites of each mask, with their row tables; the values of each of ``counts``, flat.
    """
    flags = torch.cat([mask.flatten() for mask in masks])
    sizes = [mask.numel() for mask in masks]
    last, start = _segment_bounds(tuple(sizes), flags.device)
    ends = flags.cumsum(0, dtype=torch.int32)  # sites up to and including a cell
    found = torch.cat([ends.index_select(0, last), *(values.flatten() for values in counts)]).tolist()
    totals, rest = found[: len(masks)], iter(found[len(masks) :])
    if flags.device.type == "cpu":  # there the search takes longer
        positions = torch.nonzero_static(flags, size=totals[-1]).squeeze(1)
    else:
        numbers = torch.arange(1, totals[-1] + 1, dtype=torch.int32, device=flags.device)
        positions = torch.searchsorted(ends, numbers)
    begins = [0, *totals[:-1]]
    linear = positions.split([end - begin for begin, end in zip(begins, totals, strict=True)])
    rows = ends.split(sizes)
    torch._foreach_sub_(linear, start)
    torch._foreach_sub_(rows, [begin + 1 for begin in begins])
    ends.masked_fill_(~flags, -1)
    sites = []
    for mask, own, table in zip(masks, linear, rows, strict=True):
        shape = (mask.shape[1], mask.shape[2], mask.shape[3])
        if len(own) == mask.numel():
            sites.append(full_sites(mask.shape[0], shape, mask.device))
        else:
            sites.append(SiteSet(mask.shape[0], shape, own))
            sites[-1].store("row table", table)
    return sites, [[next(rest) for _ in range(values.numel())] for values in counts]


@functools.lru_cache(maxsize=64)
def _segment_bounds(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """For concatenated tensors of these sizes: [n] the indices of their last elements, and those of their first."""
    ends = tuple(itertools.accumulate(sizes))
    with torch.inference_mode(False):
        last = torch.tensor(ends, device=device) - 1
    return last, (0, *ends[:-1])


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


def filters_of(weight: Tensor, kernel: Kernel) -> Tensor:
    """A torch-shaped weight as [out, kX, kH, kY, in], a view."""
    return weight.permute((1, 2, 3, 4, 0) if kernel.is_transposed else (0, 2, 3, 4, 1))


def weight_of(filters: Tensor, kernel: Kernel) -> Tensor:
    """[out, kX, kH, kY, in] as a torch-shaped weight, a view."""
    return filters.permute((4, 0, 1, 2, 3) if kernel.is_transposed else (0, 4, 1, 2, 3))


NEIGHBORHOOD = Kernel((3, 3, 3), padding=(1, 1, 1))
"""The 3x3x3 neighborhood of a voxel."""
UP_KERNEL = Kernel((3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), is_transposed=True)
"""Doubles every axis (output padding 1)."""


def axis_kernel(axis: int, *, stride: int = 1, dilation: int = 1) -> Kernel:
    """Three taps along one axis that keep its cells, or every ``stride``-th of them."""

    def along(value: int, elsewhere: int) -> Triple:
        x, height, y = (value if position == axis else elsewhere for position in range(3))
        return x, height, y

    return Kernel(along(3, 1), stride=along(stride, 1), padding=along(dilation, 0), dilation=along(dilation, 1))


def half_shape(shape: Triple) -> Triple:
    """The grid at half the resolution."""
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def strided_shape(shape: Triple, kernel: Kernel) -> Triple:
    """Output grid of a strided convolution."""
    x, height, y = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            shape, kernel.padding, kernel.dilation, kernel.size, kernel.stride, strict=True
        )
    )
    return x, height, y


def all_residues(kernel: Kernel) -> list[Triple]:
    """Coordinates modulo the stride of a transposed kernel, in C order; a single one for other kernels."""
    if not kernel.is_transposed:
        return [(0, 0, 0)]
    x, height, y = kernel.stride
    return list(itertools.product(range(x), range(height), range(y)))


def shifts_of_residue(kernel: Kernel, residue: Triple, shape: Triple) -> list[int | None]:
    """Offset from the origin in a grid of ``shape`` per tap; None for taps that the residue does not use."""
    found: list[int | None] = []
    for tap in kernel.taps:
        offset = []
        for axis in range(3):
            shift = tap[axis] * kernel.dilation[axis] - kernel.padding[axis]
            if kernel.is_transposed:
                rest = residue[axis] - shift
                offset.append(rest // kernel.stride[axis] if rest % kernel.stride[axis] == 0 else None)
            else:
                offset.append(shift)
        x, height, y = offset
        if x is None or height is None or y is None:
            found.append(None)
        else:
            found.append((x * shape[1] + height) * shape[2] + y)
    return found


@functools.lru_cache(maxsize=64)
def taps_of_residues(kernel: Kernel) -> list[list[int]]:
    """For each residue in C order the taps that it uses."""
    return [
        [tap for tap, shift in enumerate(shifts_of_residue(kernel, residue, (1, 1, 1))) if shift is not None]
        for residue in all_residues(kernel)
    ]


def dilated(mask: Tensor) -> Tensor:
    """[B, X, H, Y] bool -> whether a cell or one of its 26 neighbors is set."""
    return _any_within(mask, _offsets(NEIGHBORHOOD), (1, 1, 1), (mask.shape[1], mask.shape[2], mask.shape[3]))


def strided_mask(mask: Tensor, kernel: Kernel) -> Tensor:
    """[B, X, H, Y] bool mask of a grid -> mask of the cells of ``strided_sites``."""
    shape = strided_shape((mask.shape[1], mask.shape[2], mask.shape[3]), kernel)
    reached = _offsets(kernel)
    contained = [list(range(stride)) for stride in kernel.stride]
    joined = [sorted({*first, *second}) for first, second in zip(reached, contained, strict=True)]
    num_unlike = sum(first != second for first, second in zip(reached, contained, strict=True))
    if num_unlike <= 1 or joined == reached:  # the reached or contained cells form a box
        return _any_within(mask, joined, kernel.stride, shape)
    return _any_within(mask, reached, kernel.stride, shape) | _any_within(mask, contained, kernel.stride, shape)


def read_mask(mask: Tensor, kernel: Kernel, shape: Triple) -> Tensor:
    """[B, X, H, Y] bool mask of a grid -> mask of the cells of ``cells_read`` on the coarser grid of ``shape``."""
    return _any_within(mask, _offsets(kernel), kernel.stride, shape)


def _offsets(kernel: Kernel) -> list[list[int]]:
    """Per axis, the offsets that the taps add to a cell times the stride."""
    return [
        [tap * dilation - padding for tap in range(size)]
        for size, padding, dilation in zip(kernel.size, kernel.padding, kernel.dilation, strict=True)
    ]


def _any_within(mask: Tensor, offsets: Sequence[Sequence[int]], stride: Triple, shape: Triple) -> Tensor:
    """[B, X, H, Y] bool: whether ``mask`` is set at a cell times the stride plus any of the offsets, axis by axis."""
    for axis, (steps, step, size) in enumerate(zip(offsets, stride, shape, strict=True), start=1):
        if list(steps) == [0] and step == 1:
            continue
        before, after = max(0, -steps[0]), max(0, (size - 1) * step + steps[-1] + 1 - mask.shape[axis])
        padded = F.pad(mask, (0, 0) * (3 - axis) + (before, after)) if before or after else mask
        slices = [padded.narrow(axis, before + offset, (size - 1) * step + 1) for offset in steps]
        if step > 1:
            slices = [part[(slice(None),) * axis + (slice(None, None, step),)] for part in slices]
        mask = functools.reduce(torch.logical_or, slices)
    return mask


def residue_counts(mask: Tensor, stride: Triple) -> Tensor:
    """[B, X, H, Y] bool -> [residues] int64: sites by the residues of their coordinates modulo the stride, C order."""
    counts = mask.sum(0)
    padding = [(-size) % step for size, step in zip(counts.shape, stride, strict=True)]
    if any(padding):
        counts = F.pad(counts, (0, padding[2], 0, padding[1], 0, padding[0]))
    x, height, y = counts.shape
    split = counts.view(x // stride[0], stride[0], height // stride[1], stride[1], y // stride[2], stride[2])
    return split.sum((0, 2, 4)).flatten()
