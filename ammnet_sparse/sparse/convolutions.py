"""Convolutions on site features [N, C].

Weights have the shape and the initialization of torch's layers, so that a checkpoint does not depend on which of
the two networks wrote it. Three backends compute the same sum over the same kernel map:

* ``gather``: gathered rows and one matrix product, on any device and in any float type (``gather_product.py``);
* ``spconv``: spconv's implicit GEMM on CUDA, its native algorithm elsewhere (``spconv_engine.py``);
* ``dense``: a plain convolution of volumes, with zeros where there is no site.

``auto`` uses spconv for sparse maps on CUDA if it supports type and channels and passes its check, otherwise gather;
between full grids it uses ``FULL_GRID_BACKENDS``.
Biases are added outside spconv, which rejects them on a CPU in evaluation mode.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.ops import sum_rows
from ammnet_sparse.sparse import spconv_engine
from ammnet_sparse.sparse.gather_product import GatherProduct
from ammnet_sparse.sparse.kernel_maps import KernelMap, containing_cells
from ammnet_sparse.sparse.kernels import UP_KERNEL, Kernel
from ammnet_sparse.sparse.recipes import recorded
from ammnet_sparse.sparse.sites import SiteSet

Backend = Literal["auto", "spconv", "gather", "dense"]
FULL_GRID_BACKENDS: dict[str, Backend] = {"cpu": "dense", "cuda": "gather"}
"""The backend of ``auto`` between grids where every cell is a site, by type of device: the fastest."""

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


class SiteConvTranspose3d(nn.ConvTranspose3d):
    """A transposed convolution k3 s2 p1 op1 onto any sites of the finer grid; weight [in, out, 3, 3, 3]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:  # type: ignore[override]
        """[N_source, in] -> [N_target, out]."""
        out = convolve(features, self.weight, KernelMap(source, target, UP_KERNEL))
        assert self.bias is not None
        # Under autocast the sum with a float32 bias, and everything after it, would be in float32.
        return out + self.bias.to(out.dtype)


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
        features, weight = features.to(dtype), weight.to(dtype)
    if len(kernel_map.target) == 0 or len(kernel_map.source) == 0:
        # Engines raise for empty sets; an empty sum and its gradients are zero.
        empty = features.sum() * 0 + weight.sum() * 0
        return empty.expand(len(kernel_map.target), weight.shape[1 if kernel_map.kernel.is_transposed else 0])
    backend = _choose(features, weight, kernel_map)
    if backend == "dense":
        return _convolve_dense(features, weight, kernel_map)
    if backend == "spconv":
        if spconv_engine.is_served(features, weight, kernel_map):
            return spconv_engine.convolve_implicit(features, weight, kernel_map)
        return spconv_engine.convolve_native(features, weight, kernel_map)
    return _convolve_gather(features, weight, kernel_map)


def _choose(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Backend:
    """The backend to use: the requested one, unless that is ``auto`` or does not support it."""
    backend = _backend
    if backend == "auto" and kernel_map.is_dense:
        backend = FULL_GRID_BACKENDS.get(features.device.type, "gather")
    if backend == "auto":
        backend = "spconv" if features.is_cuda and spconv_engine.is_served(features, weight, kernel_map) else "gather"
    if backend == "spconv" and features.is_cuda:
        if not spconv_engine.is_served(features, weight, kernel_map):
            return "gather"
        checked = (spconv_engine.convolve_implicit, _convolve_gather)
        return "spconv" if spconv_engine.is_sound(features.device, features.dtype, *checked) else "gather"
    return backend


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
