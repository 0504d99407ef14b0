"""Batch normalisation of site features, with the ReLU that mostly follows it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ammnet_sparse.sparse.recipes import has_recipes, noted, relu

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SiteBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the sites of a batch, [N, C] -> [N, C]; names and buffers as in torch's layers.

    With ``is_activated`` a ReLU follows, of which the backward pass needs nothing that normalisation does not keep.
    On a CPU torch normalises [N, C] by sums row by row in the features' type, which lose four digits over 100,000
    sites; there the statistics are taken in two passes instead.
    """

    def __init__(self, num_features: int, *, is_activated: bool = False) -> None:
        super().__init__(num_features)
        self.is_activated = is_activated

    def forward(self, features: Tensor) -> Tensor:
        if self.training and features.shape[0] < 2:
            raise ValueError(
                f"batch normalisation in training mode needs at least 2 sites, found {features.shape[0]}; "
                "the batch holds too few scored or hit voxels"
            )
        if not self.training:
            normalized = super().forward(features)
            return torch.relu(normalized) if self.is_activated else normalized
        if features.is_cuda:
            return self._normalize_on_cuda(features)
        variance, mean = _variance_and_mean(features.detach())
        self._track(mean, variance, count=features.shape[0])
        deviation = torch.rsqrt(variance + self.eps)
        out: Tensor = _Normalize.apply(features, self.weight, self.bias, mean, deviation, self.is_activated)
        return noted(
            out, _activated if self.is_activated else _scaled, features, *_scale_and_shift(self, mean, deviation)
        )

    def _normalize_on_cuda(self, features: Tensor) -> Tensor:
        if not has_recipes() or self.momentum is None:  # a cumulative average
            normalized = super().forward(features)
        else:
            # The recipe needs the statistics that the kernel finds.
            if self.track_running_stats and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
            normalized, mean, deviation = torch.native_batch_norm(
                features, self.weight, self.bias, *running, True, self.momentum, self.eps
            )
            noted(normalized, _scaled, features, *_scale_and_shift(self, mean, deviation))
        return relu(normalized) if self.is_activated else normalized

    def _track(self, mean: Tensor, variance: Tensor, *, count: int) -> None:
        if not self.track_running_stats:
            return
        assert self.momentum is not None and self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)


def _variance_and_mean(features: Tensor) -> tuple[Tensor, Tensor]:
    """([C], [C]) over the sites, variance without Bessel's correction.

    Five times as fast as ``torch.var_mean``, which takes a quarter of a training step on a CPU, and as accurate: what
    rounding leaves of the mean is taken out of both.
    """
    mean = features.mean(0)
    centered = features - mean
    remainder = centered.mean(0)
    variance = centered.square_().mean(0).addcmul_(remainder, remainder, value=-1).clamp_min_(0)
    return variance, mean + remainder


def _scale_and_shift(norm: nn.BatchNorm1d, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """([C], [C]) that normalise with the inverse ``deviation``; without gradients."""
    with torch.no_grad():
        scale = norm.weight * deviation
        return scale, norm.bias - mean * scale


def _scaled(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, features, scale).to(features.dtype)


def _activated(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _scaled(features, scale, shift).relu_()


class _Normalize(torch.autograd.Function):
    """(x - mean) * inverse deviation * weight + bias, and a ReLU; keeps x alone."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor, is_activated: bool
    ) -> Tensor:
        ctx.save_for_backward(features, weight, bias, mean, deviation)
        ctx.is_activated = is_activated
        scale = weight * deviation
        out = _scaled(features, scale, bias - mean * scale)
        return out.relu_() if is_activated else out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, mean, deviation = ctx.saved_tensors
        gradient = gradients[0]
        count = features.shape[0]
        # As few passes over [N, C] as PyTorch's operators allow: they take a sixth of a training step on a CPU.
        normalized = torch.addcmul(-mean * deviation, features, deviation)
        if ctx.is_activated:
            out = torch.addcmul(bias, normalized, weight)
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        bias_gradient = gradient.sum(0)
        weight_gradient = (gradient * normalized).sum(0)
        features_gradient = None
        if ctx.needs_input_grad[0]:
            scale = weight * deviation
            centering = -bias_gradient / count * scale
            features_gradient = torch.addcmul(centering, normalized, -weight_gradient / count * scale)
            features_gradient.addcmul_(gradient, scale)
        return features_gradient, weight_gradient, bias_gradient, None, None, None


@contextlib.contextmanager
def unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation in training mode uses the batch's statistics here but leaves its running ones alone."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm) and child.track_running_stats]
    norms = [norm for norm in norms if norm.training]  # others normalise by them
    kept = [{name: getattr(norm, name) for name in _STATISTICS} for norm in norms]
    for norm, statistics in zip(norms, kept, strict=True):
        # Others take the updates. Without any, torch's layers would save fewer tensors for the backward pass than they
        # did before, which a checkpoint that recomputes them refuses.
        for name, value in statistics.items():
            setattr(norm, name, torch.zeros_like(value))
    try:
        yield
    finally:
        for norm, statistics in zip(norms, kept, strict=True):
            for name, value in statistics.items():
                setattr(norm, name, value)
