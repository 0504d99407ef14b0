"""Convolutions on site features [N, C]; the only place that imports spconv.

Weights keep the shape and the initialisation of torch's layers, so that a checkpoint does not say which of
the two networks it came from. Three ways compute the same sum over the same kernel map:

* ``dense``: a plain convolution, where every cell is a site on both sides (CPU);
* ``torch``: gather, matrix product and addition, tap by tap, on any device and in any float type;
* ``spconv``: spconv's native algorithm over our index pairs.

``auto`` takes spconv on CUDA (but for float64 and bfloat16, which it lacks), and on a CPU, where spconv reaches about
2 GMAC/s, dense or torch.
Biases are added outside spconv, which rejects them on a CPU in evaluation mode.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.sparse.kernel_maps import Kernel, KernelMap, containing_cells
from ammnet_sparse.sparse.recipes import noted
from ammnet_sparse.sparse.sites import SiteSet

Backend = Literal["auto", "dense", "torch", "spconv"]
_backend: contextvars.ContextVar[Backend] = contextvars.ContextVar("backend", default="auto")


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Chooses how convolutions are computed within the block; ``dense`` needs every cell to be a site."""
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution, a matrix product on site features; weight [out, in, 1, 1, 1]."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        return F.linear(features, self.weight.flatten(1), self.bias)


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

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:  # type: ignore[override]
        """[N_source, in] -> [N_target, out]."""
        return convolve(features, self.weight, KernelMap(source, target, self.kernel))


UP_KERNEL = Kernel((3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), is_transposed=True)
"""Doubles every axis (output padding 1)."""


class SiteConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution k3 s2 p1 op1 onto any sites of the finer grid; weight [in, out, 3, 3, 3]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:  # type: ignore[override]
        """[N_source, in] -> [N_target, out]."""
        out = convolve(features, self.weight, KernelMap(source, target, UP_KERNEL))
        assert self.bias is not None
        # Under autocast the sum with a bias in float32 would be in float32, and all that follows.
        return out + self.bias.to(out.dtype)


def average_pool(features: Tensor, source: SiteSet, *, target: SiteSet, window: tuple[int, int, int]) -> Tensor:
    """[N_source, C] -> [N_target, C]: sum over the sites of a window, divided by the full window's volume."""
    volume = window[0] * window[1] * window[2]
    if source.is_full and target.is_full:

        def pool(features: Tensor) -> Tensor:
            return _sum_windows(features, source, window) / volume

    else:
        rows = containing_cells(source, target, window)

        def pool(features: Tensor) -> Tensor:
            return features.new_zeros(len(target), features.shape[1]).index_add(0, rows, features) / volume

    return noted(pool(features), pool, features)


def _sum_windows(features: Tensor, source: SiteSet, window: tuple[int, int, int]) -> Tensor:
    """Sums over the windows of a grid of which every cell is a site; its axes are multiples of the window's.

    Axis by axis on rows as they lie: ten times as fast as ``avg_pool3d`` on a CPU, which turns the volume around twice.
    """
    cells = features.view(source.batch_size, *source.spatial_shape, -1)
    for axis, size in enumerate(window, start=1):
        slices = cells.unflatten(axis, (-1, size)).unbind(axis + 1)
        cells = functools.reduce(torch.add, slices)
    return cells.reshape(-1, features.shape[1])


def convolve(features: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
    """The convolution of [N_source, in] with a torch-shaped weight over a kernel map -> [N_target, out]."""
    if features.shape[0] != len(pairs.source):
        raise ValueError(f"features: expected a row for each of {len(pairs.source)} sites, found {features.shape[0]}")
    backend = _backend.get()
    if backend == "auto":
        if features.is_cuda:
            backend = "spconv" if features.dtype in (torch.float32, torch.float16) else "torch"
        else:
            backend = "dense" if pairs.is_dense else "torch"
    if backend == "dense":
        return _convolve_dense(features, weight, pairs)
    if len(pairs.target) == 0 or len(pairs.source) == 0:
        # spconv raises for empty sets; an empty sum is zero.
        return features.new_zeros(len(pairs.target), weight.shape[1 if pairs.kernel.is_transposed else 0])
    if backend == "spconv":
        return _convolve_spconv(features, weight, pairs)
    # [in, out] matrices, one a tap.
    taps = weight.permute(2, 3, 4, 0, 1) if pairs.kernel.is_transposed else weight.permute(2, 3, 4, 1, 0)
    out: Tensor = _GatherConvolution.apply(features, taps.flatten(0, 2), pairs)
    return out


def _convolve_dense(features: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
    if not pairs.is_dense:
        raise ValueError("the dense backend needs every cell to be a site on both sides; use torch or spconv")
    volume = pairs.source.densify(features)
    kernel = pairs.kernel
    if kernel.is_transposed:
        out = F.conv_transpose3d(volume, weight, stride=kernel.stride, padding=kernel.padding, output_padding=1)
    else:
        out = F.conv3d(volume, weight, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation)
    return pairs.target.gather(out)


def _convolve_spconv(features: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
    import spconv.pytorch.functional as spconv_functional
    from spconv.core import ConvAlgo

    # spconv keeps weights as [out, taps..., in].
    order = (1, 2, 3, 4, 0) if pairs.kernel.is_transposed else (0, 2, 3, 4, 1)
    indices, counts = pairs.spconv_pairs
    out: Tensor = spconv_functional.indice_conv(
        features.contiguous(),
        weight.permute(order).contiguous(),
        indices,
        counts,
        len(pairs.target),
        ConvAlgo.Native,
    )
    return out


class _GatherConvolution(torch.autograd.Function):
    """out[target] += features[source] @ weight[tap], over the taps; saves only its inputs."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float16)
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        out = features.new_zeros(len(pairs.target), weight.shape[2])
        for matrix, (source, target) in zip(weight, pairs.pairs, strict=True):
            out.index_add_(0, target, features.index_select(0, source) @ matrix)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        needs_features, needs_weight, _ = ctx.needs_input_grad
        features_gradient = torch.zeros_like(features) if needs_features else None
        weight_gradient = torch.zeros_like(weight) if needs_weight else None
        for tap, (source, target) in enumerate(ctx.pairs.pairs):
            rows = gradient.index_select(0, target)
            if weight_gradient is not None:
                torch.mm(features.index_select(0, source).t(), rows, out=weight_gradient[tap])
            if features_gradient is not None:
                features_gradient.index_add_(0, source, rows @ weight[tap].t())
        return features_gradient, weight_gradient, None
