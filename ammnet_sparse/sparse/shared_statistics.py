"""Batch normalization with statistics over the rows of all processes that train together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ammnet_sparse.ops import Normalized, RunningStatistics, apply_normalization
from ammnet_sparse.processes import num_processes, sum_over_processes


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
    parts = []
    for index, rows in enumerate(features.chunk(num_groups)):
        mean, variance, num_rows = _SharedStatistics.apply(rows, weight.dtype)
        constant_mean, constant_variance = mean.detach(), variance.detach()
        if running is not None:
            running.mean.lerp_(constant_mean, running.momentum)
            running.variance.lerp_(constant_variance * num_rows / (num_rows - 1), running.momentum)
            running.num_batches.add_(1)
        # The operator takes statistics as constants. Their gradients go through parameters that have the same values.
        inverse_std = (constant_variance + eps).rsqrt()
        parts.append(
            apply_normalization(
                rows,
                weight * (1 - 0.5 * (variance - constant_variance) * inverse_std.square()),
                bias - (mean - constant_mean) * inverse_std * weight,
                mean=constant_mean,
                variance=constant_variance,
                residuals=[residual.chunk(num_groups)[index] for residual in residuals],
                eps=eps,
                with_sum=with_sum,
                with_relu=with_relu,
                keep_residuals=keep_residuals,
            )
        )
    return Normalized(
        torch.cat([part.sum for part in parts if part.sum is not None]) if with_sum else None,
        torch.cat([part.activated for part in parts if part.activated is not None]) if with_relu else None,
        torch.stack([part.mean for part in parts]),
        torch.stack([part.variance for part in parts]),
    )


class _SharedStatistics(torch.autograd.Function):
    """[N, C] of this process -> over the rows of all: mean [C], variance [C] without Bessel's correction, number []."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        rows, channels = features.shape
        mine = torch.zeros(1 + 2 * channels, dtype=torch.float64, device=features.device)
        if rows:
            own_variance, own_mean = torch.var_mean(features.to(dtype), dim=0, correction=0)
            mine = torch.cat([torch.full_like(mine[:1], rows), own_mean.double(), own_variance.double()])
        of_all = [torch.empty_like(mine) for _ in range(num_processes())]
        dist.all_gather(of_all, mine)
        # As Chan, Golub and LeVeque (1979) join the statistics of parts.
        counts, means, variances = torch.stack(of_all).split([1, channels, channels], dim=1)
        num_rows = counts.sum()
        mean = (counts * means).sum(0) / num_rows
        variance = (counts * (variances + (means - mean).square())).sum(0) / num_rows
        mean, variance, num_rows = mean.to(dtype), variance.to(dtype), num_rows.to(dtype)
        ctx.save_for_backward(features, mean, num_rows)
        ctx.mark_non_differentiable(num_rows)
        return mean, variance, num_rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor, _: Tensor) -> tuple[Tensor, None]:
        # Every row of every process receives gradient from the results of all processes.
        features, mean, num_rows = ctx.saved_tensors
        of_mean, of_variance = sum_over_processes(torch.stack([of_mean, of_variance])) / num_rows
        return (of_mean + 2 * of_variance * (features.to(mean.dtype) - mean)).to(features.dtype), None


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
