"""The sites that a convolution connects, and the plan of a batch's site sets.

A *kernel map* is a table [targets, taps] of the rows that the taps of a convolution read. Everything that computing a
convolution needs follows from it. It is built only here, once per pair of site sets and kernel.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.sparse.sites import (
    AXIS_HEIGHT,
    AXIS_Y,
    NEIGHBORHOOD,
    UP_KERNEL,
    Kernel,
    SiteSet,
    Triple,
    all_residues,
    axis_kernel,
    full_sites,
    half_shape,
    read_mask,
    repeated_rows,
    residue_counts,
    shifts_of_residue,
    sites_from_mask,
    sites_from_masks,
    strided_mask,
    strided_shape,
    taps_of_residues,
)

_Built = TypeVar("_Built")
_BORDER = 3
"""Border cells on each side of a grid, so that taps need no bounds test: the largest dilation."""

WAY_DOWN = (axis_kernel(AXIS_Y, stride=2), axis_kernel(AXIS_HEIGHT, stride=2))
"""From a block's sites to its intermediate ones; after the third convolution every cell is a site."""


@dataclasses.dataclass(frozen=True)
class TargetGroups:
    """The targets of a transposed kernel grouped by their coordinates modulo the stride.

    Each tap is used by one group only, so a group's targets read few taps.

    Attributes:
        position: [N] int64: the position of each target in the order of the groups; None if there is only one group.
        table: [N, most taps of a group] int32: in that order, the source rows that the taps of a target's group read,
            -1 for none; columns beyond the group's number of taps are unused.
        tap_order: [taps] int64: all taps, those of the first group first.
        groups: (first target, end of the targets, first tap, end of the taps) of each group in those orders.
    """

    position: Tensor | None
    table: Tensor
    tap_order: Tensor
    groups: tuple[tuple[int, int, int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class KernelMap:
    """The rows that a kernel connects: features of ``source`` are read, features of ``target`` are written.

    Tables are built on first use and shared by all maps of this kernel between the same two site sets.
    """

    source: SiteSet
    target: SiteSet
    kernel: Kernel

    @property
    def is_dense(self) -> bool:
        """Whether every cell is a site on both sides, so that a plain convolution gives the same result."""
        return self.source.is_full and self.target.is_full

    @property
    def table(self) -> Tensor:
        """[N_target, taps] int32: the source row that each tap reads for each target, -1 for none; taps in C order."""
        return self.shared("table", self._build_table)

    @property
    def inverse(self) -> Tensor:
        """[N_source, taps] int32: the target row for which each tap reads each source, -1 for none."""
        return self.shared("inverse", self._build_inverse)

    @property
    def groups(self) -> TargetGroups:
        """The targets of a transposed kernel by residue; waits for the device unless the sites were planned."""
        return self.shared("groups", lambda: _target_groups(self.target, self.source, self.kernel))

    @property
    def num_pairs(self) -> int:
        """Multiplications of one input with one output channel, over all taps."""
        return int((self.table >= 0).sum())

    def shared(self, name: str, build: Callable[[], _Built]) -> _Built:
        """The result of ``build``, built once for this kernel between these site sets, and cached on one of them."""
        owner, other = self._owner_and_other()
        key = (name, id(other), self.source is owner, self.kernel)
        # The other set is kept with the table, so that its id cannot be reused for another set.
        built, _ = owner.cached(key, lambda: (build(), None if other is owner else other))
        return built

    def _owner_and_other(self) -> tuple[SiteSet, SiteSet]:
        """The set that caches the table, and the other one.

        It is the finer one, as fine sets refer to coarser ones; but a full set must not keep one of a batch alive.
        """
        owner, other = self.source, self.target
        if owner.num_cells < other.num_cells:
            owner, other = other, owner
        return (other, owner) if owner.is_full and not other.is_full else (owner, other)

    @property
    def single(self) -> "KernelMap | None":
        """The map between the sites of which source and target are copies; None if they are not copies."""
        owner = self.source if self.source.single is not None else self.target
        if owner.single is None:
            return None
        times = owner.batch_size // owner.single.batch_size
        source, target = (_single(sites, times) for sites in (self.source, self.target))
        return None if source is None or target is None else KernelMap(source, target, self.kernel)

    def _build_table(self) -> Tensor:
        if (single := self.single) is not None:
            return _repeated(single.table, self.source, single.source)
        return _table(self.target, self.source, self.kernel)

    def _build_inverse(self) -> Tensor:
        if (single := self.single) is not None:
            return _repeated(single.inverse, self.target, single.target)
        kernel = self.kernel
        is_mirrored = all(
            stride == 1 and 2 * padding == dilation * (size - 1)
            for size, stride, padding, dilation in zip(
                kernel.size, kernel.stride, kernel.padding, kernel.dilation, strict=True
            )
        )
        if is_mirrored and self.source is self.target:
            return self.table.flip(1)
        return _table(self.source, self.target, dataclasses.replace(kernel, is_transposed=not kernel.is_transposed))


def strided_sites(sites: SiteSet, kernel: Kernel) -> SiteSet:
    """Cells of the strided grid that contain a site or that the kernel reaches from one, shared once built."""
    if sites.is_full:
        shape = strided_shape(sites.spatial_shape, kernel)
        return full_sites(sites.batch_size, shape, sites.linear.device)
    return sites.cached(("strided", kernel), lambda: sites_from_mask(strided_mask(sites.mask, kernel)))


def cells_read(sites: SiteSet, kernel: Kernel, shape: Triple) -> SiteSet:
    """Cells of a coarser grid of this ``shape`` that a transposed convolution onto ``sites`` reads, shared."""
    if sites.is_full:
        return full_sites(sites.batch_size, shape, sites.linear.device)
    return sites.cached(("read", kernel, shape), lambda: sites_from_mask(read_mask(sites.mask, kernel, shape)))


def containing_cells(sites: SiteSet, coarse: SiteSet, stride: Triple) -> Tensor:
    """[N] int32, or int64 if ``coarse`` is full: the row of the cell that contains each site, shared once built."""

    def cells(every: SiteSet) -> Tensor:
        coordinates = [axis // step for axis, step in zip(every.coordinates, stride, strict=True)]
        return _ravel(every.batch_index, coordinates, coarse.spatial_shape)

    def build() -> tuple[Tensor, SiteSet | None]:
        if sites.single is not None and (single := _single(coarse, sites.batch_size // sites.single.batch_size)):
            rows = containing_cells(sites.single, single, stride)
            return _repeated(rows, coarse, single), None if coarse is sites else coarse
        cell = sites.of_cells(("containing cell", coarse.spatial_shape, stride), cells)
        return coarse.rows_of(cell), None if coarse is sites else coarse

    key = ("containing", id(coarse), stride)
    if sites.is_full and not coarse.is_full:
        return build()[0]
    rows, _ = sites.cached(key, build)
    return rows


def neighbor_rows(sites: SiteSet) -> Tensor:
    """[N, 27] int32: rows of the 3x3x3 neighborhood in C order of offsets, -1 for none, shared once built."""
    return KernelMap(sites, sites, NEIGHBORHOOD).table


def planned_sites(masks: Sequence[Tensor]) -> list[SiteSet]:
    """Sites of masks at full resolution and the sites that the network derives from them, in one wait for the device.

    The cells at the coarser scales and the numbers of sites by residue follow from dense masks. Planned sets are cached
    where ``strided_sites``, ``cells_read`` and ``KernelMap.groups`` would otherwise build them on first use.

    Args:
        masks: each [B, X, H, Y] bool, of one shape.
    """
    frames = masks[0].shape[0]
    together = torch.cat(list(masks)) if len(masks) > 1 else masks[0]
    shape = (together.shape[1], together.shape[2], together.shape[3])
    steps: list[tuple[int, Hashable, Tensor]] = []  # the level it is derived from, its key there, masks of all
    reached, parent = together, -1
    for kernel in WAY_DOWN:
        reached = strided_mask(reached, kernel)
        steps.append((parent, ("strided", kernel), reached))
        parent = len(steps) - 1
    half = half_shape(shape)
    read = read_mask(together, UP_KERNEL, half)
    steps.append((-1, ("read", UP_KERNEL, half), read))
    levels = [together, *(mask for _, _, mask in steps)]
    parts = [part for level in levels for part in level.split(frames)]
    numbers = [residue_counts(part, UP_KERNEL.stride) for part in (*together.split(frames), *read.split(frames))]
    sites, counts = sites_from_masks(parts, counts=numbers)
    num = len(masks)
    for index in range(num):
        for level, (parent, key, _) in enumerate(steps, start=1):
            owner = sites[(parent + 1) * num + index]
            if not owner.is_full:
                owner.store(key, sites[level * num + index])
        sites[index].store(("residue counts", UP_KERNEL.stride), counts[index])
        sites[index - num].store(("residue counts", UP_KERNEL.stride), counts[num + index])
    return sites[:num]


def repeated_sites(sites: SiteSet, times: int) -> SiteSet:
    """The scenes of ``sites`` ``times`` times, one copy after another.

    The sets that strided blocks derive from it are repetitions of those derived from ``sites``, and so are tables.
    """
    repeated = sites.repeated(times)
    single, multiple = sites, repeated
    for kernel in WAY_DOWN:
        if multiple.is_full:
            break
        single = strided_sites(single, kernel)
        multiple.store(("strided", kernel), single.repeated(times))
        multiple = strided_sites(multiple, kernel)
    return repeated


def _single(sites: SiteSet, times: int) -> SiteSet | None:
    """The sites of which ``sites`` are ``times`` copies; None if they are not."""
    if sites.is_full and sites.batch_size % times == 0:
        return full_sites(sites.batch_size // times, sites.spatial_shape, sites.linear.device)
    return sites.single if sites.single is not None and sites.batch_size == times * sites.single.batch_size else None


def _repeated(rows: Tensor, sites: SiteSet, single: SiteSet) -> Tensor:
    """A table of rows of ``single`` as one of ``sites``, which are copies of it."""
    return repeated_rows(rows, sites.batch_size // single.batch_size, len(single))


def _table(sites: SiteSet, read: SiteSet, kernel: Kernel) -> Tensor:
    """[N, taps] int32: rows of ``read`` that the taps read for ``sites``, -1 for none.

    For site o a convolution reads cell ``o * stride - padding + tap * dilation``. A transposed convolution reads the
    cell o for which that expression is the site, so each tap is used by the sites of one residue modulo the stride.
    """
    origins = _origins(sites, read.spatial_shape, kernel)
    # For taps that a residue does not use the sum is far below 0, and cell 0 is in the border.
    constants = _tap_constants(kernel, _bordered_shape(read.spatial_shape), sites.linear.device)
    if constants.shape[0] == 1:
        cells = origins[:, None] + constants
    else:
        cells = constants.index_select(0, _residues(sites, kernel.stride)).add_(origins[:, None]).clamp_(min=0)
    return _bordered_table(read).index_select(0, cells.flatten()).view(cells.shape)


def pieces_by_residue(sites: SiteSet, stride: Triple, *, size: int) -> tuple[list[SiteSet], Tensor]:
    """The sites in pieces of at most ``size`` that have the same coordinates modulo the stride.

    A transposed convolution onto such a piece is a single product of few taps.

    Returns:
        The pieces; [N] int64: the row of each site in the concatenation of the pieces.
    """
    counts = _residue_counts(sites, stride)
    order, position = _residue_order(sites, stride)
    parts, first = sites.linear.index_select(0, order), 0
    pieces = []
    for residue, count in enumerate(counts):
        for linear in parts[first : first + count].split(size) if count else ():
            piece = SiteSet(sites.batch_size, sites.spatial_shape, linear)
            piece.store(("residue counts", stride), [len(piece) * (other == residue) for other in range(len(counts))])
            pieces.append(piece)
        first += count
    return pieces, position


def _target_groups(target: SiteSet, source: SiteSet, kernel: Kernel) -> TargetGroups:
    device = target.linear.device
    counts, taps = _residue_counts(target, kernel.stride), taps_of_residues(kernel)
    residues, origins = _residues(target, kernel.stride), _origins(target, source.spatial_shape, kernel)
    position = None
    if max(counts) < len(target):
        order, position = _residue_order(target, kernel.stride)
        residues, origins = residues.index_select(0, order), origins.index_select(0, order)
    most = max(len(served) for count, served in zip(counts, taps, strict=True) if count or not len(target))
    constants = _grouped_constants(kernel, _bordered_shape(source.spatial_shape), most, device)
    cells = constants.index_select(0, residues).add_(origins[:, None])
    table = _bordered_table(source).index_select(0, cells.flatten()).view(cells.shape)
    groups, first, first_tap = [], 0, 0
    for count_of_residue, served in zip(counts, taps, strict=True):
        end, end_tap = first + count_of_residue, first_tap + len(served)
        if end > first:
            groups.append((first, end, first_tap, end_tap))
        first, first_tap = end, end_tap
    tap_order = constant(tuple(itertools.chain.from_iterable(taps)), device)
    return TargetGroups(position, table, tap_order, tuple(groups))


def _residue_counts(sites: SiteSet, stride: Triple) -> list[int]:
    """Sites by ``_residues``; waits for the device unless the sites were planned."""

    def count() -> list[int]:
        numbers = constant(tuple(range(math.prod(stride))), sites.linear.device)
        found: list[int] = (_residues(sites, stride)[:, None] == numbers).sum(0).tolist()
        return found

    return sites.cached(("residue counts", stride), count)


def _residue_order(sites: SiteSet, stride: Triple) -> tuple[Tensor, Tensor]:
    """[N] int64 each: the sites in the order of ``_residues``, and the position of each site in that order."""
    order = _residues(sites, stride).to(torch.uint8).argsort(stable=True)
    position = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return order, position


def _origins(sites: SiteSet, shape: Triple, kernel: Kernel) -> Tensor:
    """[N] int64: index in the bordered grid of ``shape`` of the cell at the sites' coordinates times the stride.

    Of a transposed kernel: divided by the stride, rounded down.
    """

    def build(every: SiteSet) -> Tensor:
        axes = [
            (axis if step == 1 else axis // step if kernel.is_transposed else axis * step) + _BORDER
            for axis, step in zip(every.coordinates, kernel.stride, strict=True)
        ]
        return _ravel(every.batch_index, axes, _bordered_shape(shape))

    return sites.of_cells(("origins", shape, kernel.stride, kernel.is_transposed), build)


def _residues(sites: SiteSet, stride: Triple) -> Tensor:
    """[N] int64: the coordinates modulo the stride, as one number in C order."""

    def build(every: SiteSet) -> Tensor:
        x, height, y = (axis % step for axis, step in zip(every.coordinates, stride, strict=True))
        return (x * stride[1] + height) * stride[2] + y

    return sites.of_cells(("residues", stride), build)


_FAR = -(2**40)


@functools.lru_cache(maxsize=256)
def _tap_constants(kernel: Kernel, shape: Triple, device: torch.device) -> Tensor:
    """[residues, taps] int64 of ``shifts_of_residue``, far below 0 for None; one row if residues do not matter."""
    rows = [shifts_of_residue(kernel, residue, shape) for residue in all_residues(kernel)]
    with torch.inference_mode(False):
        return torch.tensor([[_FAR if shift is None else shift for shift in row] for row in rows], device=device)


@functools.lru_cache(maxsize=64)
def _grouped_constants(kernel: Kernel, shape: Triple, width: int, device: torch.device) -> Tensor:
    """[residues, width] int64: the shifts of each residue's own taps, padded with the first or cut to the width."""
    rows = [shifts_of_residue(kernel, residue, shape) for residue in all_residues(kernel)]
    served = [[shift for shift in row if shift is not None] or [0] for row in rows]
    with torch.inference_mode(False):
        return torch.tensor([(row + row[:1] * (width - len(row)))[:width] for row in served], device=device)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[int, ...], device: torch.device, *, dtype: torch.dtype = torch.int64) -> Tensor:
    """[n] on the device; copied once, because a copy makes the host wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _bordered_shape(shape: Triple) -> Triple:
    """A grid's extents with the border."""
    return shape[0] + 2 * _BORDER, shape[1] + 2 * _BORDER, shape[2] + 2 * _BORDER


def _bordered_table(sites: SiteSet) -> Tensor:
    """Rows as in ``SiteSet.row_table``, int32, on the grid with an empty border, flat."""

    def build() -> Tensor:
        volume = sites.row_table.view(sites.batch_size, *sites.spatial_shape).int()
        return F.pad(volume, (_BORDER,) * 6, value=-1).flatten()

    return sites.cached("bordered table", build)


def _ravel(batch_index: Tensor, axes: list[Tensor], shape: Triple) -> Tensor:
    """[N] linear indices in a grid of this ``shape`` of frames [N] and coordinates ([N], [N], [N])."""
    return ((batch_index * shape[0] + axes[0]) * shape[1] + axes[1]) * shape[2] + axes[2]
