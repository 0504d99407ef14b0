"""Convolutions by spconv over our kernel maps; the only place that imports it.

On CUDA through its implicit GEMM, one call per convolution, with float32 accumulation. spconv's modules build
pairs and masks for target sites of spconv's choice; ours are chosen by the network, so the same arrays are made
from our tables (``masked_pairs``).
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ammnet_sparse.sparse.kernel_maps import KernelMap, cells_read, constant, strided_sites
from ammnet_sparse.sparse.sites import UP_KERNEL, Kernel, SiteSet, filters_of, repeated_rows, weight_of

CHANNEL_MULTIPLE = 8
"""Channels that spconv's tensor core kernels read at once in fp16; others are slow or unsupported."""

_FIRST_UNSAFE_CAPABILITY = (10, 0)
"""Crashes of spconv's backward pass are reported from Blackwell on."""

Convolve = Callable[[Tensor, Tensor, KernelMap], Tensor]


@dataclasses.dataclass(frozen=True)
class MaskedPairs:
    """Inputs of the implicit GEMM, in the forward pass for the targets and in the backward pass for the sources.

    ``pairs`` [taps, N] int32 are a table's columns. ``mask`` [N, 1] int32 has a bit for every tap that a row reads,
    sorted, so that rows that are computed together have similar taps; of repeated sites in each copy. ``order`` [N]
    int32 is the row that each mask belongs to: a tile of the product reads the masks at its own positions and finds its
    rows through ``order``.
    """

    pairs: Tensor
    mask: Tensor
    order: Tensor
    backward_pairs: Tensor
    backward_mask: Tensor
    backward_order: Tensor


MOST_MASKED_TAPS = 31
"""Number of mask bits for which signed and unsigned sorting agree."""


def masked_pairs(kernel_map: KernelMap) -> MaskedPairs:
    """The pairs of a map for the implicit GEMM, shared once built."""

    def build() -> MaskedPairs:
        table, inverse, single = kernel_map.table, kernel_map.inverse, kernel_map.single
        if single is None:
            return MaskedPairs(*_masked(table), *_masked(inverse))
        one = masked_pairs(single)
        forward, backward = (one.mask, one.order), (one.backward_mask, one.backward_order)
        return MaskedPairs(*_repeated(table, *forward), *_repeated(inverse, *backward))

    return kernel_map.shared("masked pairs", build)


def _repeated(table: Tensor, mask: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_masked``, of a table whose rows repeat those of ``mask`` and ``order``."""
    times = len(table) // max(len(order), 1)
    return table.t().contiguous(), mask.repeat(times, 1), repeated_rows(order, times, len(order))


def _masked(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bits = constant(tuple(1 << tap for tap in range(table.shape[1])), table.device, dtype=torch.int32)
    mask, order = ((table >= 0) * bits).sum(1, dtype=torch.int32).sort(stable=True)
    return table.t().contiguous(), mask[:, None].contiguous(), order.int()


def is_served(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> bool:
    """Whether the implicit GEMM supports device, type, channels and taps."""
    return (
        features.is_cuda
        and torch.cuda.get_device_capability(features.device) < _FIRST_UNSAFE_CAPABILITY
        and features.dtype in (torch.float32, torch.float16)
        and weight.shape[0] % CHANNEL_MULTIPLE == 0
        and weight.shape[1] % CHANNEL_MULTIPLE == 0
        and weight[0, 0].numel() <= MOST_MASKED_TAPS
    )


def convolve_implicit(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """[N_source, in] -> [N_target, out] by the implicit GEMM, on the features' CUDA device."""
    out: Tensor = _ImplicitProduct.apply(features, weight, kernel_map)
    return out


def _forward(
    features: Tensor, filters: Tensor, masked: tuple[Tensor, Tensor, Tensor], num_rows: int, *, is_trained: bool
) -> tuple[Tensor, Tensor | None, int]:
    """Result and, in training, the inputs of spconv's weight gradient: the masks of its tiles and their width."""
    from spconv.pytorch import ops

    pairs, mask, order = masked
    with torch.cuda.device(features.device):  # spconv works on the current device, whatever its arguments are on
        found: tuple[Tensor, Tensor | None, int] = ops.implicit_gemm(
            features, filters, pairs, [mask], [order], num_rows, _every_tap(), is_trained, False, fp32_accum=True
        )
    return found


def _backward(
    features: Tensor, filters: Tensor, gradient: Tensor, masked: MaskedPairs, tile_masks: Tensor, tile_width: int
) -> tuple[Tensor, Tensor]:
    """Gradients of features and filters."""
    from spconv.pytorch import ops

    with torch.cuda.device(features.device):
        found: tuple[Tensor, Tensor] = ops.implicit_gemm_backward(
            features,
            filters,
            gradient,
            masked.pairs,
            masked.backward_pairs,
            [masked.mask],
            [masked.backward_mask],
            [masked.order],
            [masked.backward_order],
            mask_output_fwd=tile_masks,
            masks=_every_tap(),
            mask_width=tile_width,
            is_subm=False,
            fp32_accum=True,
        )
    return found


def _every_tap() -> list[Any]:
    return [np.array([0xFFFFFFFF], dtype=np.uint32)]


class _ImplicitProduct(torch.autograd.Function):
    """Keeps features and weight, as every backend does."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        masked = masked_pairs(kernel_map)
        out, ctx.tile_masks, ctx.tile_width = _forward(
            features.contiguous(),
            filters_of(weight, kernel_map.kernel).contiguous(),
            (masked.pairs, masked.mask, masked.order),
            len(kernel_map.target),
            is_trained=ctx.needs_input_grad[1],
        )
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        needs_features, needs_weight, _ = ctx.needs_input_grad
        gradient = gradients[0].contiguous()
        masked = masked_pairs(ctx.kernel_map)
        filters = filters_of(weight, ctx.kernel_map.kernel).contiguous()
        if needs_features and not needs_weight:
            # A forward pass in the opposite direction, which computes no gradient of a frozen weight.
            backward = (masked.backward_pairs, masked.backward_mask, masked.backward_order)
            swapped = filters.transpose(0, 4).contiguous()
            return _forward(gradient, swapped, backward, features.shape[0], is_trained=False)[0], None, None
        features_gradient, filters_gradient = _backward(
            features.contiguous(), filters, gradient, masked, ctx.tile_masks, ctx.tile_width
        )
        weight_gradient = weight_of(filters_gradient, ctx.kernel_map.kernel)
        return features_gradient if needs_features else None, weight_gradient, None


_KINDS = {
    "3x3x3": Kernel((3, 3, 3), padding=(1, 1, 1)),
    "dilated": Kernel((1, 1, 3), padding=(0, 0, 2), dilation=(1, 1, 2)),
    "strided": Kernel((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)),
    "transposed": UP_KERNEL,
}
_CHECKED_CHANNELS = ((24, 40), (136, 264))
"""In and out, narrow and wide. Not used by any layer: spconv's choice for a few rows must not be reused for many."""


@functools.lru_cache(maxsize=16)
def is_sound(device: torch.device, dtype: torch.dtype, convolve: Convolve, expected: Convolve) -> bool:
    """Whether ``convolve`` agrees with ``expected`` on a small convolution of each kind; checked once per process.

    Warns:
        UserWarning: it does not agree, or cannot run here; the message names the difference.
    """
    fault = _find_fault(device, dtype, convolve, expected)
    if fault is None:
        return True
    warnings.warn(
        f"spconv on {device} in {dtype}: {fault}. Convolutions are computed by gathering and one matrix product "
        "instead; set training.convolution_backend=gather to choose that without this check",
        UserWarning,
        stacklevel=3,
    )
    return False


def _find_fault(device: torch.device, dtype: torch.dtype, convolve: Convolve, expected: Convolve) -> str | None:
    generator = torch.Generator().manual_seed(0)  # training draws the same with and without this check
    tolerance = 1e-2 if dtype == torch.float16 else 5e-3  # TF32 has three digits
    shape = (8, 6, 10)
    linear = (torch.rand(2 * 480, generator=generator) < 0.4).nonzero().squeeze(1).to(device)
    for (num_in, num_out), (name, kernel) in itertools.product(_CHECKED_CHANNELS, _KINDS.items()):
        fine = SiteSet(2, shape, linear)
        source = cells_read(fine, kernel, (4, 3, 5)) if kernel.is_transposed else fine
        target = fine if kernel.is_transposed or kernel.stride == (1, 1, 1) else strided_sites(fine, kernel)
        kernel_map = KernelMap(source, target, kernel)
        channels = (num_in, num_out) if kernel.is_transposed else (num_out, num_in)
        values = torch.randn(len(source), num_in, generator=generator).to(device, dtype)
        weight = torch.randn(*channels, *kernel.size, generator=generator).to(device, dtype)
        upstream = torch.randn(len(target), num_out, generator=generator).to(device, dtype)
        for is_frozen in (False, True):
            try:
                found = _evaluate(convolve, values, weight, kernel_map, upstream, is_frozen=is_frozen)
            except Exception as error:  # any error of an engine that does not support card or driver
                return f"a {name} convolution failed ({type(error).__name__}: {error})"
            wanted = _evaluate(expected, values, weight, kernel_map, upstream, is_frozen=is_frozen)
            for what, first, second in zip(("result", "gradient", "weight's gradient"), found, wanted, strict=False):
                difference = float((first.float() - second.float()).abs().max() / second.float().abs().max())
                if not difference <= tolerance:  # false for NaN
                    return f"the {what} of a {name} convolution differs by {difference:.2g} of its largest value"
    return None


def _evaluate(
    convolve: Convolve, values: Tensor, weight: Tensor, kernel_map: KernelMap, upstream: Tensor, *, is_frozen: bool
) -> list[Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        values, weight = values.clone().requires_grad_(), weight.clone().requires_grad_(not is_frozen)
        out = convolve(values, weight, kernel_map)
        return [out.detach(), *torch.autograd.grad(out, [values] if is_frozen else [values, weight], upstream)]
