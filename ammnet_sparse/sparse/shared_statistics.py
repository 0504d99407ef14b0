"""Batch normalization with statistics over the rows of all processes that train together."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ammnet_sparse.ops import Normalized, RunningStatistics, apply_normalization
from ammnet_sparse.ops.normalization import constant_normalization_gradients
from ammnet_sparse.processes import num_processes, sum_over_processes


class _Statistics(NamedTuple):
    """Over the rows of all processes: mean [C], variance [C] without Bessel's correction, and their number []."""

    mean: Tensor
    variance: Tensor
    rows: Tensor


def normalize_over_processes(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residuals: tuple[Tensor, ...] = (),
    running: RunningStatistics | None = None,
    num_groups: int = 1,
    eps: float = 1e-5,
    with_sum: bool = True,
    with_relu: bool = False,
    keep_residuals: bool = False,
) -> Normalized:
    """``ops.normalize_sites`` with the statistics of the rows of all processes, each row counting alike.

    Collective, in the backward pass too.

    Args:
        features: [N, C] of this process; the others may have more or fewer rows, but the same number of groups.
        weight: as the other arguments, see ``ops.normalize_sites``.
    """
    residual1, residual2 = (*residuals, None, None)[:2]
    parts = []
    for index, rows in enumerate(features.chunk(num_groups)):
        of_group = [None if part is None else part.chunk(num_groups)[index] for part in (residual1, residual2)]
        parts.append(
            _Normalization.apply(rows, weight, bias, *of_group, running, eps, with_sum, with_relu, keep_residuals)
        )
    total, activated, mean, variance = zip(*parts, strict=True)
    return Normalized(
        torch.cat(total) if with_sum else None,
        torch.cat(activated) if with_relu else None,
        torch.stack(mean),
        torch.stack(variance),
    )


def _statistics(features: Tensor, dtype: torch.dtype) -> _Statistics:
    """Mean and variance over the rows of all processes, from those of each (Chan, Golub and LeVeque 1979)."""
    rows, channels = features.shape
    mine = torch.zeros(1 + 2 * channels, dtype=torch.float64, device=features.device)
    if rows:
        variance, mean = torch.var_mean(features.to(dtype), dim=0, correction=0)
        mine = torch.cat([torch.full_like(mine[:1], rows), mean.double(), variance.double()])
    of_all = [torch.empty_like(mine) for _ in range(num_processes())]
    dist.all_gather(of_all, mine)
    counts, means, variances = torch.stack(of_all).split([1, channels, channels], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return _Statistics(mean.to(dtype), variance.to(dtype), counts.sum())


class _Normalization(torch.autograd.Function):
    """For one group of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual1: Tensor | None,
        residual2: Tensor | None,
        running: RunningStatistics | None,
        eps: float,
        with_sum: bool,
        with_relu: bool,
        keep_residuals: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, rows = _statistics(features, weight.dtype)
        if running is not None:
            running.mean.lerp_(mean, running.momentum)
            running.variance.lerp_(variance * (rows / (rows - 1)).to(variance.dtype), running.momentum)
            running.num_batches.add_(1)
        out = apply_normalization(
            features,
            weight,
            bias,
            mean=mean,
            variance=variance,
            residuals=[residual for residual in (residual1, residual2) if residual is not None],
            eps=eps,
            with_sum=with_sum,
            with_relu=with_relu,
        )
        # The result or the residuals show where the ReLU is active; without them, the features.
        has_relu_and_residuals = with_relu and residual1 is not None
        if not (has_relu_and_residuals and keep_residuals):
            residual1 = residual2 = None
        activated = out.activated if has_relu_and_residuals and not keep_residuals else None
        ctx.save_for_backward(features, weight, bias, residual1, residual2, activated, mean, variance, rows)
        ctx.eps, ctx.with_sum, ctx.with_relu = eps, with_sum, with_relu
        ctx.needs_residual = has_relu_and_residuals
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        absent = features.new_empty(0)
        total, result = (absent if value is None else value for value in (out.sum, out.activated))
        return total, result, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_sum: Tensor | None, grad_activated: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        features, weight, bias, residual1, residual2, activated, mean, variance, rows = ctx.saved_tensors
        grad_sum = grad_sum if ctx.with_sum else None
        grad_activated = grad_activated if ctx.with_relu else None
        if grad_sum is None and grad_activated is None:  # the other processes wait for this one
            grad_sum = torch.zeros_like(features)
        needs_residual = ctx.needs_residual and grad_activated is not None
        of_features, of_residual, of_weight, of_bias = constant_normalization_gradients(
            grad_sum,
            grad_activated,
            features,
            weight,
            bias,
            residual1,
            residual2,
            activated=activated,
            mean=mean,
            variance=variance,
            eps=ctx.eps,
            needs_residual=needs_residual,
        )
        # Through the statistics every row of every process receives gradient from all rows.
        common = sum_over_processes(torch.stack([of_weight, of_bias])) / rows.to(weight.dtype)
        inverse_std = (variance + ctx.eps).rsqrt()
        slope = weight * inverse_std * inverse_std * common[0]
        offset = weight * inverse_std * common[1] - slope * mean
        of_features = (of_features.to(weight.dtype) - torch.addcmul(offset, features.to(weight.dtype), slope)).to(
            features.dtype
        )
        shared = of_residual if needs_residual else grad_sum
        gradients = (of_features, of_weight, of_bias, shared, shared)
        wanted = [
            gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False)
        ]
        return (*wanted, *(None,) * (len(ctx.needs_input_grad) - len(wanted)))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of maps [B, C, rows, columns] with the statistics of all processes in training mode."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, rows, columns], normalized."""
        if not self.training or num_processes() == 1:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        batch, channels, *size = input.shape
        running = RunningStatistics(self.running_mean, self.running_var, self.num_batches_tracked, self.momentum)
        rows = input.movedim(1, -1).reshape(-1, channels)
        out = normalize_over_processes(rows, self.weight, self.bias, running=running, eps=self.eps)
        assert out.sum is not None
        return out.sum.view(batch, *size, channels).movedim(-1, 1)


def share_batch_statistics(network: nn.Module) -> None:
    """Makes the 2D batch normalizations of a network use the statistics of all processes; names are unchanged.

    Normalizations over sites do so anyway.
    """
    for child in network.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SharedBatchNorm2d
