"""Which voxels are sites at which scale.

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
        """[B * X * H * Y] int64: the row of each cell's site, -1 for cells that are not sites."""
        return self.linear if self.is_full else self.cached("row table", self._build_row_table)

    def _build_row_table(self) -> Tensor:
        table = torch.full((self.batch_size * self.num_cells,), -1, dtype=torch.int64, device=self.linear.device)
        return table.scatter_(0, self.linear, torch.arange(len(self), device=self.linear.device))

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
        """A batch of ``times`` as many frames: these, then the same once more, and so on; shared once built."""
        if times == 1:
            return self
        batch_size = self.batch_size * times
        if self.is_full:
            return full_sites(batch_size, self.spatial_shape, self.linear.device)

        def build() -> SiteSet:
            begin = torch.arange(0, batch_size, self.batch_size, device=self.linear.device) * self.num_cells
            return SiteSet(batch_size, self.spatial_shape, (begin[:, None] + self.linear).flatten())

        return self.cached(("repeated", times), build)

    def chunks(self, size: int) -> Iterator["SiteSet"]:
        """The sites in consecutive pieces of at most ``size``."""
        if len(self) <= size:
            yield self
            return
        for linear in self.linear.split(size):
            yield SiteSet(self.batch_size, self.spatial_shape, linear)


@functools.lru_cache(maxsize=64)
def full_sites(batch_size: int, spatial_shape: Triple, device: torch.device) -> SiteSet:
    """Every cell of the grid; cached, so that everything derived from it is built once."""
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
    ends = flags.cumsum(0)  # sites up to and including a cell
    found = torch.cat([ends.index_select(0, last), *(values.flatten() for values in counts)]).tolist()
    totals, rest = found[: len(masks)], iter(found[len(masks) :])
    positions = torch.searchsorted(ends, torch.arange(1, totals[-1] + 1, device=flags.device))
    sites, begin = [], 0
    for mask, size, first, end in zip(masks, sizes, start, totals, strict=True):
        shape = (mask.shape[1], mask.shape[2], mask.shape[3])
        if end - begin == size:
            sites.append(full_sites(mask.shape[0], shape, mask.device))
        else:
            made = SiteSet(mask.shape[0], shape, positions[begin:end] - first)
            rows = ends[first : first + size] - (begin + 1)
            made.store("row table", rows.masked_fill_(~mask.flatten(), -1))
            sites.append(made)
        begin = end
    return sites, [[next(rest) for _ in range(values.numel())] for values in counts]


@functools.lru_cache(maxsize=64)
def _segment_bounds(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """For concatenated tensors of these sizes: [n] the index of each one's last element, and all first ones."""
    ends = tuple(itertools.accumulate(sizes))
    with torch.inference_mode(False):
        last = torch.tensor(ends, device=device) - 1
    return last, (0, *ends[:-1])


BORDER = 3
"""Border cells on each side of a grid, so that taps need no bounds test: the largest dilation."""


def bordered_shape(shape: Triple) -> Triple:
    """A grid's extents with the border."""
    return shape[0] + 2 * BORDER, shape[1] + 2 * BORDER, shape[2] + 2 * BORDER


def bordered_table(sites: SiteSet) -> Tensor:
    """Rows as in ``SiteSet.row_table``, int32, on the grid with an empty border, flat."""

    def build() -> Tensor:
        volume = sites.row_table.view(sites.batch_size, *sites.spatial_shape).int()
        return F.pad(volume, (BORDER,) * 6, value=-1).flatten()

    return sites.cached("bordered table", build)


def ravel(batch_index: Tensor, axes: list[Tensor], shape: Triple) -> Tensor:
    """[N] linear indices in a grid of this ``shape`` of frames [N] and coordinates ([N], [N], [N])."""
    return ((batch_index * shape[0] + axes[0]) * shape[1] + axes[1]) * shape[2] + axes[2]
