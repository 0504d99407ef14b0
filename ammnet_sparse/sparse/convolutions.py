"""Convolutions on site features [N, C].

Weights have the shape and the initialization of torch's layers, so that a checkpoint does not depend on which of
the two networks wrote it. Three backends compute the same sum over the same kernel map:

* ``gather``: gathered rows and one matrix product, on any device and in any float type;
* ``spconv``: spconv's implicit GEMM on CUDA (``spconv_engine.py``), gather for what it does not support;
* ``dense``: a plain convolution of volumes, with zeros where there is no site.

``auto`` uses spconv for sparse maps on CUDA if it supports type and channels and passes its check, otherwise gather;
between full grids, where every cell is a site, it uses dense.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.ops import gather_taps, sum_rows, sum_taps
from ammnet_sparse.sparse import spconv_engine
from ammnet_sparse.sparse.kernel_maps import KernelMap, containing_cells
from ammnet_sparse.sparse.recipes import recorded
from ammnet_sparse.sparse.sites import UP_KERNEL, Kernel, SiteSet, filters_of, weight_of

Backend = Literal["auto", "spconv", "gather", "dense"]
MOST_CHUNK_ELEMENTS = 2**26
_FEWEST_CHUNK_ELEMENTS = 2**23
_CHUNK_ELEMENTS_CPU = 2**20
_CACHED_ELEMENTS, _FEWEST_CACHED_ROWS = 2**17, 256


@functools.cache
def chunk_elements(device: torch.device) -> int:
    """Largest number of gathered values at a time.

    On a GPU every chunk takes a few launches, so it may take 1/128 of the card's memory in 16 bits, at most 128 MiB:
    of all its memory, not of what is free, so that a resumed run rounds alike. On a CPU chunks cost nothing, and 4 MiB
    fit into the cache.
    """
    if device.type != "cuda":
        return _CHUNK_ELEMENTS_CPU
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(max(2 ** int(math.log2(memory / 256)), _FEWEST_CHUNK_ELEMENTS), MOST_CHUNK_ELEMENTS)


# Global, not context-local: on CUDA the backward pass recomputes in other threads.
_backend: Backend = "auto"


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Sets the backend of convolutions within the block, in all threads."""
    global _backend
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


_casts: dict[int, Tensor] = {}
"""Parameters in the type of autocast by their ``id``, while ``weights_cast`` is active."""


def cast(parameter: Tensor) -> Tensor:
    """The parameter in the type of autocast, if it was converted; otherwise itself."""
    return _casts.get(id(parameter), parameter)


@contextlib.contextmanager
def weights_cast(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block convolutions and ``Linear`` of ``network`` use parameters converted to ``dtype`` all at once.

    One by one they would take a launch each, forward and backward. Elsewhere, as where the backward pass recomputes,
    layers convert their own.
    """
    layers = [module for module in network.modules() if isinstance(module, _CONVOLUTIONS)]
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    _casts.update(zip(map(id, weights), _CastAll.apply(dtype, *weights), strict=True))
    try:
        yield
    finally:
        for weight in weights:
            _casts.pop(id(weight), None)  # several layers may share one


class _CastAll(torch.autograd.Function):
    """Tensors of one type in another; the gradients are converted back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = values[0].dtype
        return _cast_all(values, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = iter(_cast_all([gradient for gradient in gradients if gradient is not None], ctx.dtype))
        return (None, *(None if gradient is None else next(given) for gradient in gradients))


def _cast_all(values: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    results = tuple(torch.empty_like(value, dtype=dtype) for value in values)
    if results:
        torch._foreach_copy_(results, tuple(values))
    return results


def _ordered(weight: Tensor, kernel: Kernel) -> nn.Parameter:
    """The same weight with [out, taps, in] as the order of its memory, so that cuDNN and spconv need not copy it."""
    return nn.Parameter(weight_of(filters_of(weight.detach(), kernel).contiguous(), kernel))


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution, a matrix product on site features; weight [out, in, 1, 1, 1]."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        return F.linear(features, cast(self.weight).flatten(1), None if self.bias is None else cast(self.bias))


class Linear(nn.Linear):
    """As ``nn.Linear``, with parameters that are converted together with those of convolutions."""

    def forward(self, features: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(features, cast(self.weight), None if self.bias is None else cast(self.bias))


class SiteConv3d(nn.Conv3d):
    """A convolution without bias from one site set to another; weight [out, in, kX, kH, kY]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Kernel) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel.size,
            stride=kernel.stride,
            padding=kernel.padding,
            dilation=kernel.dilation,
            bias=False,
        )
        self.kernel = kernel
        self.weight = _ordered(self.weight, kernel)

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:  # type: ignore[override]
        """[N_source, in] -> [N_target, out]."""
        return convolve(features, self.weight, KernelMap(source, target, self.kernel))


class SiteConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution k3 s2 p1 op1 onto any sites of the finer grid; weight [in, out, 3, 3, 3]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.weight = _ordered(self.weight, UP_KERNEL)

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:  # type: ignore[override]
        """[N_source, in] -> [N_target, out]."""
        out = convolve(features, self.weight, KernelMap(source, target, UP_KERNEL))
        assert self.bias is not None
        # Under autocast the sum with a float32 bias, and everything after it, would be in float32.
        bias = cast(self.bias).to(out.dtype)
        return out + bias if torch.is_grad_enabled() else out.add_(bias)


_CONVOLUTIONS = (PointwiseConv3d, SiteConv3d, SiteConvTranspose3d, Linear)


def average_pool(features: Tensor, source: SiteSet, *, target: SiteSet, window: tuple[int, int, int]) -> Tensor:
    """[N_source, C] -> [N_target, C]: sum over the sites of a window, divided by the full window's volume."""
    volume = window[0] * window[1] * window[2]
    if volume == 1:
        return features
    table = KernelMap(source, target, Kernel(window, stride=window)).table
    owner = containing_cells(source, target, window)

    def pool(features: Tensor) -> Tensor:
        return sum_rows(features, table, owner, scale=1 / volume)

    return recorded(pool(features), pool, features)


def convolve(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """The convolution of [N_source, in] with a torch-shaped weight over a kernel map -> [N_target, out]."""
    if features.shape[0] != len(kernel_map.source):
        raise ValueError(
            f"features: expected a row for each of {len(kernel_map.source)} sites, found {features.shape[0]}"
        )
    device = features.device.type
    if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), cast(weight).to(dtype)
    if len(kernel_map.target) == 0 or len(kernel_map.source) == 0:
        # Engines raise for empty sets; an empty sum and its gradients are zero.
        empty = features.sum() * 0 + weight.sum() * 0
        return empty.expand(len(kernel_map.target), weight.shape[1 if kernel_map.kernel.is_transposed else 0])
    backend = _choose(features, weight, kernel_map)
    if backend == "dense":
        return _convolve_dense(features, weight, kernel_map)
    if backend == "spconv":
        return spconv_engine.convolve_implicit(features, weight, kernel_map)
    return _convolve_gather(features, weight, kernel_map)


def _choose(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Backend:
    """The backend to use: the requested one, unless that is ``auto`` or does not support it."""
    backend = _backend
    if backend == "auto" and kernel_map.is_dense:
        # A CPU convolves a single frame of few channels slower than it gathers and multiplies.
        is_gathered = (
            features.dtype == torch.float32 and features.device.type == "cpu" and torch.is_inference_mode_enabled()
        )
        return "gather" if is_gathered else "dense"
    if backend in ("gather", "dense"):
        return backend
    if not spconv_engine.is_served(features, weight, kernel_map):
        return "gather"
    checked = (spconv_engine.convolve_implicit, _convolve_gather)
    return "spconv" if spconv_engine.is_sound(features.device, features.dtype, *checked) else "gather"


def _convolve_gather(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    out: Tensor = GatherProduct.apply(features, weight, kernel_map)
    return out


def _convolve_dense(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    volume = kernel_map.source.densify(features)
    kernel = kernel_map.kernel
    if kernel.is_transposed:
        shape = kernel_map.target.spatial_shape
        missing = [
            size - ((coarse - 1) * step - 2 * padding + dilation * (taps - 1) + 1)
            for size, coarse, step, padding, dilation, taps in zip(
                shape,
                kernel_map.source.spatial_shape,
                kernel.stride,
                kernel.padding,
                kernel.dilation,
                kernel.size,
                strict=True,
            )
        ]
        out = F.conv_transpose3d(volume, weight, stride=kernel.stride, padding=kernel.padding, output_padding=missing)
    else:
        out = F.conv3d(volume, weight, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation)
    return kernel_map.target.gather(out)


class GatherProduct(torch.autograd.Function):
    """[N_source, in], a torch-shaped weight, a kernel map -> [N_target, out]; keeps only its inputs.

    ``out = gather(features, table) @ weight``, in chunks of rows to bound the gathered memory. The gradients are
    computed likewise with the inverse table.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        with torch.autocast(features.device.type, enabled=False):
            return _product(features, _by_tap(weight, kernel_map), kernel_map)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        needs_features, needs_weight, _ = ctx.needs_input_grad
        with torch.autocast(features.device.type, enabled=False):
            found = _gradients(
                features,
                weight,
                gradients[0].contiguous(),
                ctx.kernel_map,
                needs_features=needs_features,
                needs_weight=needs_weight,
            )
        return (*found, None)


def _by_tap(weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """[taps, in, out], a view."""
    return filters_of(weight, kernel_map.kernel).flatten(1, 3).permute(1, 2, 0)


def _weight_shaped(by_tap: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """[taps, in, out] -> the shape of the weight, in the order of its memory, a copy."""
    filters = by_tap.to(weight.dtype).permute(2, 0, 1).contiguous()
    return weight_of(filters.view(filters.shape[0], *kernel_map.kernel.size, -1), kernel_map.kernel)


def _product(features: Tensor, matrices: Tensor, kernel_map: KernelMap) -> Tensor:
    num_taps, in_channels, out_channels = matrices.shape
    if kernel_map.kernel.is_transposed and kernel_map.kernel.stride != (1, 1, 1):
        return _product_by_groups(features, matrices, kernel_map)
    if out_channels < in_channels and _is_product_small(features, num_taps * out_channels):
        products = features @ matrices.permute(1, 0, 2).reshape(in_channels, -1)
        return sum_taps(products, kernel_map.table)
    return _gathered_product(features, kernel_map.table, matrices.flatten(0, 1).contiguous())


def _product_by_groups(features: Tensor, matrices: Tensor, kernel_map: KernelMap) -> Tensor:
    """One product per residue of the targets, whose taps are the same; each target row is written once."""
    groups = kernel_map.groups
    matrices = matrices.index_select(0, groups.tap_order)
    if groups.position is None:
        ((_, _, first_tap, end_tap),) = groups.groups
        return _gathered_product(features, groups.table, matrices[first_tap:end_tap].flatten(0, 1))
    out = features.new_empty(len(kernel_map.target), matrices.shape[2])
    for begin, end, first_tap, end_tap in groups.groups:
        table = groups.table[begin:end, : end_tap - first_tap]
        _gathered_product(features, table, matrices[first_tap:end_tap].flatten(0, 1), out=out[begin:end])
    return out.index_select(0, groups.position)


def _is_product_small(rows: Tensor, columns: int) -> bool:
    """Whether to multiply before summing the taps: the products are rounded and must fit into a chunk."""
    return rows.dtype in (torch.float32, torch.float64) and rows.shape[0] * columns <= _FEWEST_CHUNK_ELEMENTS


def _chunks(values: Tensor, table: Tensor, *, is_cached: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a table [N, T], a chunk at a time, and the values [M, C] that they read, [rows, T * C].

    ``is_cached``: on a CPU chunks fit into the cache of a core, if they do not become too short for a product.
    """
    width = table.shape[1] * values.shape[1]
    rows = max(chunk_elements(values.device) // width, 1)
    if is_cached and values.device.type == "cpu":
        rows = min(rows, max(_CACHED_ELEMENTS // width, _FEWEST_CACHED_ROWS))
    for begin in range(0, table.shape[0], rows):
        yield slice(begin, begin + rows), gather_taps(values, table[begin : begin + rows])


def _gathered_product(features: Tensor, table: Tensor, matrix: Tensor, *, out: Tensor | None = None) -> Tensor:
    """[N, out] of features [M, C], table [N, T] and a matrix [T * C, out]."""
    if out is None:
        out = features.new_empty(table.shape[0], matrix.shape[1])
    for here, gathered in _chunks(features, table, is_cached=True):
        torch.mm(gathered, matrix, out=out[here])
        del gathered  # before the next chunk is made
    return out


class _Sum:
    """Sum of products ``first.T @ second`` over ``num_rows`` rows, of several chunks in at least float32."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.total: Tensor | None = None

    def add(self, first: Tensor, second: Tensor) -> None:
        if self.total is None:
            is_only = len(first) == self.num_rows
            self.total = first.t() @ second if is_only else _wide_product(first, second)
        elif self.total.dtype == first.dtype:
            self.total.addmm_(first.t(), second)
        else:
            self.total += _wide_product(first, second)


def _wide_product(first: Tensor, second: Tensor) -> Tensor:
    """``first.T @ second`` in at least float32, on CUDA without rounding to 16 bits before."""
    if first.is_cuda and first.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(first.t(), second, out_dtype=torch.float32)
    product = first.t() @ second
    return product.to(torch.promote_types(product.dtype, torch.float32))


def _gradients(
    features: Tensor,
    weight: Tensor,
    gradient: Tensor,
    kernel_map: KernelMap,
    *,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    matrices = _by_tap(weight, kernel_map)
    num_taps, in_channels, out_channels = matrices.shape
    num_sources, num_targets = len(kernel_map.source), len(kernel_map.target)
    features_gradient: Tensor | None = None
    by_tap: Tensor | None = None
    if needs_features and in_channels < out_channels and _is_product_small(gradient, num_taps * in_channels):
        products = gradient @ matrices.permute(2, 0, 1).reshape(out_channels, -1)
        features_gradient = sum_taps(products, kernel_map.inverse)
    elif needs_features:
        # The gathered gradient is used for the weight too, unless there are many more sources than targets.
        is_shared = needs_weight and num_sources <= num_targets
        total = _Sum(num_sources)
        matrix = matrices.transpose(1, 2).reshape(-1, in_channels)
        features_gradient = torch.empty_like(features)
        for here, gathered in _chunks(gradient, kernel_map.inverse):
            torch.mm(gathered, matrix, out=features_gradient[here])
            if is_shared:
                total.add(gathered, features[here])
        if total.total is not None:
            by_tap = total.total.view(num_taps, out_channels, in_channels).transpose(1, 2)
    if needs_weight and by_tap is None:
        by_tap = _weight_gradient(features, gradient, kernel_map, num_taps=num_taps)
    return features_gradient, None if by_tap is None else _weight_shaped(by_tap, weight, kernel_map)


def _weight_gradient(features: Tensor, gradient: Tensor, kernel_map: KernelMap, *, num_taps: int) -> Tensor:
    """[taps, in, out], gathering the side with fewer values."""
    gathers_gradient = len(kernel_map.source) * gradient.shape[1] < len(kernel_map.target) * features.shape[1]
    read, other, table = features, gradient, kernel_map.table
    if gathers_gradient:
        read, other, table = gradient, features, kernel_map.inverse
    total = _Sum(len(table))
    for here, gathered in _chunks(read, table):
        total.add(gathered, other[here])
    assert total.total is not None
    by_tap = total.total.view(num_taps, read.shape[1], other.shape[1])
    return by_tap.transpose(1, 2) if gathers_gradient else by_tap
