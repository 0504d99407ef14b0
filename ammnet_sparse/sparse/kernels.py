"""The geometry of convolutions and poolings: taps, strides, which cells use which taps, and the masks they reach."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.sparse.sites import Triple

AXIS_Y, AXIS_HEIGHT, AXIS_X = 2, 1, 0


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
