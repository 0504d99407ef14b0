"""Batch normalization of site features, the residuals added to it and the ReLU that follows, in one operator.

In plain PyTorch the same takes a dozen operators forward and as many backward, each a pass over memory. Unlike sums
of squares, the statistics stay accurate in float32 if the mean is large relative to the deviation.

Rows may form *groups* of equal size, the rows of group g contiguous. Every group has separate statistics, as if the
groups were normalized one after another.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ammnet_sparse.ops._library import (
    accumulation_dtype,
    check_features,
    check_same_device,
    define_operator,
    forbid_autograd,
    register_autograd,
)


class RunningStatistics(NamedTuple):
    """Buffers of a layer, changed in place: mean [C], variance [C] (unbiased), number of batches [] int64."""

    mean: Tensor
    variance: Tensor
    num_batches: Tensor
    momentum: float


class Normalized(NamedTuple):
    """The results of a normalization.

    Attributes:
        sum: [N, C], normalized features plus residuals; None unless requested.
        activated: [N, C], the ReLU of that; None unless requested.
        mean: [G, C] of each group, float32 (float64 for float64 features); without gradients.
        variance: [G, C] of each group, without Bessel's correction.
    """

    sum: Tensor | None
    activated: Tensor | None
    mean: Tensor
    variance: Tensor


def normalize_sites(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residuals: Sequence[Tensor] = (),
    running: RunningStatistics | None = None,
    num_groups: int = 1,
    eps: float = 1e-5,
    with_sum: bool = True,
    with_relu: bool = False,
    keep_residuals: bool = False,
) -> Normalized:
    """``(features - mean) / sqrt(variance + eps) * weight + bias + residuals``, and its ReLU.

    Mean and variance are those of the rows, channel by channel. float16 and bfloat16 are computed in float32 and
    rounded once.

    Args:
        features: [N, C], N a multiple of ``num_groups``; rows of a group contiguous, at least two in each.
        weight: [C] float32, or float64 for features in float64.
        bias: as ``weight``.
        residuals: at most two, shape and type of ``features``.
        running: updated in place, as if the groups were successive batches in their order.
        num_groups: sets of rows with separate statistics.
        eps: added to the variance.
        with_sum: return the result before the ReLU.
        with_relu: return the ReLU.
        keep_residuals: save the residuals instead of the result for the backward pass of a ReLU. Either shows where
            the ReLU is active; choose the one that is kept in memory anyway.

    Returns:
        The requested results and the statistics. Differentiable once in features, parameters and residuals.

    Raises:
        ValueError: contradicting shapes, groups or devices, fewer than two rows in a group, or no result requested.
        TypeError: types other than these.
    """
    residual1, residual2 = _checked("normalize_sites", features, weight, bias, residuals, with_sum or with_relu)
    rows = features.shape[0]
    if num_groups < 1 or rows % num_groups:
        raise ValueError(f"normalize_sites: num_groups: expected a divisor of the {rows} rows, found {num_groups}")
    if rows < 2 * num_groups:
        raise ValueError(f"normalize_sites: expected at least 2 rows in a group, found {rows // num_groups}")
    momentum = 0.0
    running_mean = running_var = num_batches = None
    if running is not None:
        running_mean, running_var, num_batches, momentum = running
        _check_statistics("normalize_sites", features, running_mean=running_mean, running_var=running_var)
        if num_batches.dtype != torch.int64 or num_batches.numel() != 1:
            raise TypeError(f"normalize_sites: num_batches: expected one int64, found {num_batches.dtype}")
    out = _normalize_sites(
        features,
        weight,
        bias,
        residual1,
        residual2,
        running_mean,
        running_var,
        num_batches,
        num_groups,
        momentum,
        eps,
        with_sum,
        with_relu,
        keep_residuals,
    )
    return Normalized(out[0] if with_sum else None, out[1] if with_relu else None, out[2], out[3])


def apply_normalization(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Tensor,
    variance: Tensor,
    residuals: Sequence[Tensor] = (),
    eps: float = 1e-5,
    with_sum: bool = True,
    with_relu: bool = False,
    keep_residuals: bool = False,
) -> Normalized:
    """As ``normalize_sites``, with given, constant statistics: running ones, or those of an earlier pass.

    Args:
        features: [N, C], any number of rows.
        weight: [C] float32, or float64 for features in float64.
        bias: as ``weight``.
        mean: [C], or [G, C] for G groups of rows; the type of ``weight``.
        variance: as ``mean``.
        residuals: as for ``normalize_sites``, like the other arguments.

    Returns:
        The requested results. Differentiable once in features, parameters and residuals.

    Raises:
        ValueError: contradicting shapes or devices, or no result requested.
        TypeError: types other than these.
    """
    residual1, residual2 = _checked("apply_normalization", features, weight, bias, residuals, with_sum or with_relu)
    channels = features.shape[1]
    if mean.shape != variance.shape or mean.shape[-1:] != (channels,) or mean.ndim > 2:
        raise ValueError(
            f"apply_normalization: expected mean and variance [{channels}] or [G, {channels}], "
            f"found {list(mean.shape)} and {list(variance.shape)}"
        )
    num_groups = mean.shape[0] if mean.ndim == 2 else 1
    if num_groups == 0 or features.shape[0] % num_groups:
        raise ValueError(
            f"apply_normalization: mean: expected statistics of equal groups of the {features.shape[0]} rows, "
            f"found {num_groups} groups"
        )
    _check_type("apply_normalization", features, mean=mean, variance=variance)
    out = _apply_normalization(
        features, weight, bias, residual1, residual2, mean, variance, eps, with_sum, with_relu, keep_residuals
    )
    return Normalized(out[0] if with_sum else None, out[1] if with_relu else None, mean, variance)


def _checked(
    name: str, features: Tensor, weight: Tensor, bias: Tensor, residuals: Sequence[Tensor], has_result: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The residuals, padded with None."""
    check_features(f"{name}: features", features, ndim=2)
    _check_statistics(name, features, weight=weight, bias=bias)
    if len(residuals) > 2:
        raise ValueError(f"{name}: residuals: expected at most 2, found {len(residuals)}")
    for residual in residuals:
        if residual.shape != features.shape:
            raise ValueError(f"{name}: residuals: expected {list(features.shape)}, found {list(residual.shape)}")
        if residual.dtype != features.dtype:
            raise TypeError(f"{name}: residuals: expected {features.dtype} like features, found {residual.dtype}")
        check_same_device(features, residuals=residual)
    if not has_result:
        raise ValueError(f"{name}: expected with_sum, with_relu or both, found neither")
    residual1, residual2 = (*residuals, None, None)[:2]
    return residual1, residual2


def _check_statistics(name: str, features: Tensor, **tensors: Tensor) -> None:
    for argument, tensor in tensors.items():
        if tensor.shape != features.shape[1:]:
            raise ValueError(f"{name}: {argument}: expected {list(features.shape[1:])}, found {list(tensor.shape)}")
    _check_type(name, features, **tensors)


def _check_type(name: str, features: Tensor, **tensors: Tensor) -> None:
    expected = accumulation_dtype(features.dtype)
    for argument, tensor in tensors.items():
        if tensor.dtype != expected:
            raise TypeError(f"{name}: {argument}: expected {expected}, found {tensor.dtype}")
    check_same_device(features, **tensors)


def _normalize_sites_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual1: Tensor | None,
    residual2: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    num_groups: int,
    momentum: float,
    eps: float,
    with_sum: bool,
    with_relu: bool,
    keep_residuals: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum and activated result [N, C], [0] if not requested; mean and variance [G, C]."""
    rows = features.shape[0] // num_groups
    groups = features.to(weight.dtype).reshape(num_groups, rows, features.shape[1])
    mean = groups.mean(1)
    centered = groups - mean[:, None]
    # Corrects both for the rounding of the mean.
    remainder = centered.mean(1)
    variance = centered.square_().mean(1).addcmul_(remainder, remainder, value=-1).clamp_min_(0)
    mean += remainder
    if running_mean is not None and running_var is not None:
        for group_mean, group_variance in zip(mean, variance, strict=True):
            running_mean.lerp_(group_mean, momentum)
            running_var.lerp_(group_variance * (rows / (rows - 1)), momentum)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(num_groups)
    total, activated = _apply_normalization_reference(
        features, weight, bias, residual1, residual2, mean, variance, eps, with_sum, with_relu, keep_residuals
    )
    return total, activated, mean, variance


def _apply_normalization_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual1: Tensor | None,
    residual2: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    with_sum: bool,
    with_relu: bool,
    keep_residuals: bool,
) -> tuple[Tensor, Tensor]:
    """Sum and activated result [N, C], [0] if not requested."""
    total = _sum_reference(features, weight, bias, residual1, residual2, mean, variance, eps)
    empty = features.new_empty(0)
    return total.to(features.dtype) if with_sum else empty, total.relu().to(features.dtype) if with_relu else empty


def _sum_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual1: Tensor | None,
    residual2: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    """[N, C] in the type of the statistics."""
    total = _normalized_reference(features, mean, variance, eps).mul_(weight).add_(bias)
    for residual in (residual1, residual2):
        if residual is not None:
            total += residual
    return total


def _normalized_reference(features: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """[N, C] of mean 0 and variance 1, in the type of the statistics."""
    groups = _grouped(features, mean)
    mean, variance = mean.view(groups.shape[0], 1, -1), variance.view(groups.shape[0], 1, -1)
    normalized: Tensor = ((groups - mean) * (variance + eps).rsqrt()).view(features.shape)
    return normalized


def _grouped(features: Tensor, mean: Tensor) -> Tensor:
    """[N, C] -> [G, N / G, C] in the type of the statistics."""
    num_groups = mean.shape[0] if mean.ndim == 2 else 1
    return features.to(mean.dtype).reshape(num_groups, features.shape[0] // num_groups, features.shape[1])


def _normalize_sites_backward_reference(
    grad_sum: Tensor | None,
    grad_activated: Tensor | None,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual1: Tensor | None,
    residual2: Tensor | None,
    activated: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    is_training: bool,
    needs_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features [N, C], of a residual ([0] unless needed), of weight and of bias [C].

    Args:
        grad_sum: [N, C] gradient of the sum, or None.
        grad_activated: [N, C] gradient of the activated result, or None.
        features: [N, C].
        weight: [C].
        bias: [C].
        residual1: [N, C]; read where there is a gradient of the activated result, but no such result.
        residual2: likewise.
        activated: [N, C] the activated result, or None: then it is computed again.
        mean: [G, C] or [C].
        variance: [G, C] or [C].
        eps: added to the variance.
        is_training: the statistics are those of the rows; else they are constants.
        needs_residual: return the gradient of a residual, that of the sum plus what passes through the ReLU.
    """
    grad = torch.zeros_like(features, dtype=mean.dtype) if grad_sum is None else grad_sum.to(mean.dtype)
    if grad_activated is not None:
        value = activated
        if value is None:
            value = _sum_reference(features, weight, bias, residual1, residual2, mean, variance, eps)
        grad = grad + torch.where(value <= 0, 0, grad_activated.to(mean.dtype))
    normalized = _grouped(_normalized_reference(features, mean, variance, eps), mean)
    groups = _grouped(grad, mean)
    bias_gradients = groups.sum(1)
    weight_gradients = (groups * normalized).sum(1)
    scale = weight * (variance + eps).rsqrt().view(groups.shape[0], 1, -1)
    grad_features = groups
    if is_training:
        rows = groups.shape[1]
        grad_features = groups - (normalized * (weight_gradients[:, None] / rows) + bias_gradients[:, None] / rows)
    grad_features = (grad_features * scale).view(features.shape).to(features.dtype)
    grad_residual = grad.to(features.dtype, copy=True) if needs_residual else features.new_empty(0)
    return grad_features.contiguous(), grad_residual.contiguous(), weight_gradients.sum(0), bias_gradients.sum(0)


def _results_fake(features: Tensor, with_sum: bool, with_relu: bool) -> tuple[Tensor, Tensor]:
    total, activated = (features.new_empty(features.shape if wanted else 0) for wanted in (with_sum, with_relu))
    return total, activated


def _normalize_sites_fake(features: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_groups, with_sum, with_relu = others[6], others[9], others[10]
    mean, variance = (weight.new_empty(num_groups, features.shape[1]) for _ in range(2))
    return *_results_fake(features, with_sum, with_relu), mean, variance


def _apply_normalization_fake(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _results_fake(features, others[7], others[8])


def _normalize_sites_backward_fake(
    grad_sum: Tensor | None, grad_activated: Tensor | None, features: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_features, grad_residual = _results_fake(features, True, others[8])
    return grad_features, grad_residual, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_normalize_sites = define_operator(
    "normalize_sites",
    "(Tensor features, Tensor weight, Tensor bias, Tensor? residual1, Tensor? residual2, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, SymInt num_groups, float momentum, float eps, "
    "bool with_sum, bool with_relu, bool keep_residuals) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_normalize_sites_reference,
    fake=_normalize_sites_fake,
)
_apply_normalization = define_operator(
    "apply_normalization",
    "(Tensor features, Tensor weight, Tensor bias, Tensor? residual1, Tensor? residual2, Tensor mean, Tensor variance, "
    "float eps, bool with_sum, bool with_relu, bool keep_residuals) -> (Tensor, Tensor)",
    reference=_apply_normalization_reference,
    fake=_apply_normalization_fake,
)
_normalize_sites_backward = define_operator(
    "normalize_sites_backward",
    "(Tensor? grad_sum, Tensor? grad_activated, Tensor features, Tensor weight, Tensor bias, Tensor? residual1, "
    "Tensor? residual2, Tensor? activated, Tensor mean, Tensor variance, float eps, bool is_training, "
    "bool needs_residual) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_normalize_sites_backward_reference,
    fake=_normalize_sites_backward_fake,
)


def _save(
    ctx: Any, inputs: tuple[Any, ...], statistics: tuple[Tensor, Tensor], activated: Tensor, *, is_training: bool
) -> None:
    features, weight, bias, residual1, residual2 = inputs[:5]
    eps, with_sum, with_relu, keep_residuals = inputs[-4:]
    ctx.eps, ctx.is_training, ctx.num_inputs = eps, is_training, len(inputs)
    ctx.with_sum, ctx.with_relu = with_sum, with_relu
    has_relu_and_residuals = with_relu and residual1 is not None
    ctx.needs_residual = has_relu_and_residuals and any(ctx.needs_input_grad[3:5])
    if not has_relu_and_residuals or not keep_residuals:
        residual1 = residual2 = None
    kept_result = activated if has_relu_and_residuals and not keep_residuals else None
    ctx.save_for_backward(features, weight, bias, residual1, residual2, kept_result, *statistics)
    ctx.set_materialize_grads(False)


def _save_of_normalization(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, activated, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    _save(ctx, inputs, (mean, variance), activated, is_training=True)


def _save_of_application(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, (inputs[5], inputs[6]), output[1], is_training=False)


def _gradient(ctx: Any, grad_sum: Tensor | None, grad_activated: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    # A trace also passes (empty) gradients of results that were not requested.
    grad_sum = grad_sum if ctx.with_sum else None
    grad_activated = grad_activated if ctx.with_relu else None
    if grad_sum is None and grad_activated is None:
        return (None,) * ctx.num_inputs
    needs_residual = ctx.needs_residual and grad_activated is not None
    features_gradient, residual_gradient, weight_gradient, bias_gradient = _normalize_sites_backward(
        grad_sum, grad_activated, *ctx.saved_tensors, ctx.eps, ctx.is_training, needs_residual
    )
    # From the sum alone a residual gets the gradient unchanged.
    shared = residual_gradient if needs_residual else grad_sum
    gradients = (features_gradient, weight_gradient, bias_gradient, shared, shared)
    wanted = [gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False)]
    return (*wanted, *(None,) * (ctx.num_inputs - len(wanted)))


register_autograd(_normalize_sites, _gradient, setup_context=_save_of_normalization)
register_autograd(_apply_normalization, _gradient, setup_context=_save_of_application)
forbid_autograd(_normalize_sites_backward)
