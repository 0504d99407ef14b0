"""Which cells are sites at a coarser scale, from dense masks, without waiting for the device."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.sparse.kernels import NEIGHBORHOOD, Kernel, strided_shape
from ammnet_sparse.sparse.sites import Triple


def dilated(mask: Tensor) -> Tensor:
    """[B, X, H, Y] bool -> whether a cell or one of its 26 neighbors is set."""
    return _any_within(mask, _offsets(NEIGHBORHOOD), (1, 1, 1), (mask.shape[1], mask.shape[2], mask.shape[3]))


def strided_mask(mask: Tensor, kernel: Kernel) -> Tensor:
    """[B, X, H, Y] bool mask of a grid -> that of the cells of ``strided_sites``."""
    shape = strided_shape((mask.shape[1], mask.shape[2], mask.shape[3]), kernel)
    reached = _offsets(kernel)
    contained = [list(range(stride)) for stride in kernel.stride]
    joined = [sorted({*first, *second}) for first, second in zip(reached, contained, strict=True)]
    num_unlike = sum(first != second for first, second in zip(reached, contained, strict=True))
    if num_unlike <= 1 or joined == reached:  # the reached or contained cells form a box
        return _any_within(mask, joined, kernel.stride, shape)
    return _any_within(mask, reached, kernel.stride, shape) | _any_within(mask, contained, kernel.stride, shape)


def read_mask(mask: Tensor, kernel: Kernel, shape: Triple) -> Tensor:
    """[B, X, H, Y] bool mask of a grid -> that of the cells of ``cells_read`` on the coarser grid of ``shape``."""
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
