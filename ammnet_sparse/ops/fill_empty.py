"""Fills the channels that a projection left empty with the mean of their neighborhood."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.ops._library import (
    accumulation_dtype,
    check_features,
    check_integers,
    check_range,
    check_same_device,
    checked,
    define_operator,
    forbid_autograd,
    register_autograd,
)

NUM_NEIGHBORS = 27
"""Sites of a 3x3x3 neighborhood, the site itself included."""


def fill_empty(features: Tensor, neighbors: Tensor) -> Tensor:
    """Adds the mean of the 3x3x3 neighborhood where a channel is exactly zero.

    The mean is the sum over the neighborhood divided by 27: zeros and absent sites count. float16 and bfloat16 are
    summed in float32 and rounded once.

    Args:
        features: [N, C].
        neighbors: [N, 27] integer, the rows of the neighboring sites in C order of the offsets (-1, 0, 1) along
            X, height and Y, so that column 13 is the site itself; -1 where there is no site. The relation must be
            symmetric: ``neighbors[i, k] == j`` if and only if ``neighbors[j, 26 - k] == i``. The gradient relies on it.

    Returns:
        [N, C] contiguous, type of ``features``. Differentiable once in ``features``; the set of zero
        channels is treated as constant, so a zero channel has the gradient of adding the mean.

    Raises:
        IndexError: a row out of range (on the CPU; elsewhere such a neighbor counts as absent).
        ValueError: shapes or devices that do not fit.
        TypeError: features without floating type, rows without integer type.
    """
    check_features("fill_empty: features", features, ndim=2)
    check_integers("fill_empty: neighbors", neighbors)
    if neighbors.ndim != 2 or neighbors.shape[0] != features.shape[0] or neighbors.shape[1] != NUM_NEIGHBORS:
        raise ValueError(
            f"fill_empty: expected neighbors [{features.shape[0]}, {NUM_NEIGHBORS}] to match features "
            f"{list(features.shape)}, found {list(neighbors.shape)}"
        )
    check_same_device(features, neighbors=neighbors)
    return checked(_fill_empty(features, neighbors))


def _sum_of_neighbors(values: Tensor, neighbors: Tensor) -> Tensor:
    """[N, C]: the sum of ``values`` [N, C] over each site's neighborhood; rows out of range count as absent."""
    num_sites = values.shape[0]
    if values.numel() == 0:
        return values
    absent = values.new_zeros((1, values.shape[1]))
    rows = neighbors.long()
    rows = rows.where((rows >= 0) & (rows < num_sites), num_sites)
    return F.embedding_bag(rows, torch.cat([values, absent]), mode="sum")


def _fill_empty_reference(features: Tensor, neighbors: Tensor) -> Tensor:
    check_range("fill_empty: neighbors", neighbors, low=-1, high=features.shape[0] - 1)
    values = features.to(accumulation_dtype(features.dtype))
    mean = _sum_of_neighbors(values, neighbors) / NUM_NEIGHBORS
    return values.where(values != 0, mean).to(features.dtype).contiguous()


def _fill_empty_fake(features: Tensor, neighbors: Tensor) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _fill_empty_backward_reference(grad: Tensor, features: Tensor, neighbors: Tensor) -> Tensor:
    """``grad`` plus, from every neighbor, a 27th of its ``grad`` where its channel was filled.

    A site contributes to the sites that have it as a neighbor. The relation is symmetric, so these are its own
    neighbors (column k there is column 26 - k here), and the backward pass gathers instead of scattering.
    """
    check_range("fill_empty: neighbors", neighbors, low=-1, high=features.shape[0] - 1)
    wide = grad.to(accumulation_dtype(grad.dtype))
    filled = wide.masked_fill(features != 0, 0)
    return (wide + _sum_of_neighbors(filled, neighbors) / NUM_NEIGHBORS).to(grad.dtype).contiguous()


def _fill_empty_backward_fake(grad: Tensor, features: Tensor, neighbors: Tensor) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


_fill_empty = define_operator(
    "fill_empty",
    "(Tensor features, Tensor neighbors) -> Tensor",
    reference=_fill_empty_reference,
    fake=_fill_empty_fake,
)
_fill_empty_backward = define_operator(
    "fill_empty_backward",
    "(Tensor grad, Tensor features, Tensor neighbors) -> Tensor",
    reference=_fill_empty_backward_reference,
    fake=_fill_empty_backward_fake,
)


def _save_filling(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _filling_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _fill_empty_backward(grad, *ctx.saved_tensors), None


register_autograd(_fill_empty, _filling_gradient, setup_context=_save_filling)
forbid_autograd(_fill_empty_backward)
