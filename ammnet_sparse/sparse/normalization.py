"""Batch normalization of site features, with the residuals and the ReLU that follow it."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ammnet_sparse.ops import Normalized, RunningStatistics, apply_normalization, normalize_sites
from ammnet_sparse.ops._library import accumulation_dtype
from ammnet_sparse.processes import num_processes
from ammnet_sparse.sparse.recipes import add, has_recipes, recorded, relu
from ammnet_sparse.sparse.shared_statistics import normalize_over_processes

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SiteBatchNorm(nn.BatchNorm1d):
    """Batch normalization over the sites of a batch, [N, C] -> [N, C]; names and buffers as in torch's layers.

    ``with_relu``: a ReLU follows. One operator does both, and adds residuals in between; its backward pass needs
    the input and the positions where the ReLU is active: the result, which a convolution keeps anyway, or the
    residuals, if those can be recomputed.
    """

    def __init__(self, num_features: int, *, with_relu: bool = False) -> None:
        super().__init__(num_features)
        self.with_relu = with_relu
        self.has_unchanged_statistics = False

    def forward(  # type: ignore[override]
        self,
        features: Tensor,
        *residuals: Tensor,
        with_relu: bool | None = None,
        with_sum: bool = False,
        num_groups: int = 1,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalized features plus residuals, and the ReLU of that.

        Args:
            features: [N, C].
            residuals: at most two, [N, C].
            with_relu: whether a ReLU follows; None: as in the constructor.
            with_sum: return (ReLU, its input) if a ReLU follows.
            num_groups: in training mode, sets of equally many contiguous rows, with separate statistics for
                each; the running ones are updated by the first set, then by the second, and so on.

        Raises:
            ValueError: in training mode fewer than two sites in a group.
        """
        with_relu = self.with_relu if with_relu is None else with_relu
        if any(residual.dtype != features.dtype for residual in residuals):
            # Autocast mixes types; a sum has their common type.
            total = add(self._normalize(features, (), num_groups, with_relu=False, with_sum=True)[0], *residuals)
            result = relu(total) if with_relu else total
            return (result, total) if with_relu and with_sum else result
        total, activated = self._normalize(
            features, residuals, num_groups, with_relu=with_relu, with_sum=with_sum or not with_relu
        )
        if not with_relu:
            return total
        return (activated, total) if with_sum else activated

    def _normalize(
        self, features: Tensor, residuals: tuple[Tensor, ...], num_groups: int, *, with_relu: bool, with_sum: bool
    ) -> tuple[Tensor, Tensor]:
        """Sum and its ReLU; ``features`` in place of one that is not requested."""
        weight, bias, mean, variance = self._in_type_of(features)
        if self.training or mean is None or variance is None:
            is_shared = num_processes() > 1
            if features.shape[0] < 2 * num_groups and not is_shared:
                raise ValueError(
                    "batch normalization in training mode needs at least 2 sites, found "
                    f"{features.shape[0] // num_groups}; the batch holds too few scored or hit voxels"
                )
            running = None
            if mean is not None and variance is not None and not self.has_unchanged_statistics:
                if self.momentum is None or self.num_batches_tracked is None:
                    raise ValueError(
                        "SiteBatchNorm.momentum: expected a number, found None; cumulative averages are not supported"
                    )
                running = RunningStatistics(mean, variance, self.num_batches_tracked, self.momentum)
            normalize = normalize_over_processes if is_shared else normalize_sites
            out = normalize(
                features,
                weight,
                bias,
                residuals=residuals,
                running=running,
                num_groups=num_groups,
                eps=self.eps,
                with_sum=with_sum,
                with_relu=with_relu,
                keep_residuals=has_recipes(),
            )
            if running is not None and mean is not self.running_mean:
                self._store(mean, variance)
        else:
            out = apply_normalization(
                features,
                weight,
                bias,
                mean=mean,
                variance=variance,
                residuals=residuals,
                eps=self.eps,
                with_sum=with_sum,
                with_relu=with_relu,
                keep_residuals=has_recipes(),
            )
        if has_recipes():
            _record(out, features, weight, bias, residuals, eps=self.eps)
        return features if out.sum is None else out.sum, features if out.activated is None else out.activated

    def _in_type_of(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Weight, bias and running statistics in the type for the features; usually unchanged."""
        dtype = accumulation_dtype(features.dtype)
        if self.weight.dtype == dtype:
            return self.weight, self.bias, self.running_mean, self.running_var
        mean, variance = (
            None if buffer is None else buffer.to(dtype) for buffer in (self.running_mean, self.running_var)
        )
        return self.weight.to(dtype), self.bias.to(dtype), mean, variance

    def _store(self, mean: Tensor | None, variance: Tensor | None) -> None:
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            if buffer is not None and value is not None:
                buffer.copy_(value)


def _record(
    out: Normalized, features: Tensor, weight: Tensor, bias: Tensor, residuals: tuple[Tensor, ...], *, eps: float
) -> None:
    """Recipes of both results, from the statistics of this pass."""
    inputs = (features, weight, bias, out.mean, out.variance, *residuals)
    for result, with_relu in ((out.sum, False), (out.activated, True)):
        if result is not None:
            recorded(result, _made_again(eps, with_relu=with_relu), *inputs)


def _made_again(eps: float, *, with_relu: bool) -> Callable[..., Tensor]:
    def make(
        features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *residuals: Tensor
    ) -> Tensor:
        out = apply_normalization(
            features,
            weight,
            bias,
            mean=mean,
            variance=variance,
            residuals=residuals,
            eps=eps,
            with_sum=not with_relu,
            with_relu=with_relu,
        )
        result = out.activated if with_relu else out.sum
        assert result is not None
        return result

    return make


@contextlib.contextmanager
def unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block batch normalization in training mode does not update its running statistics."""
    site_norms = [child for child in module.modules() if isinstance(child, SiteBatchNorm)]
    flags = [norm.has_unchanged_statistics for norm in site_norms]
    for site_norm in site_norms:
        site_norm.has_unchanged_statistics = True
    norms = [
        child
        for child in module.modules()
        # In evaluation mode they are used to normalize.
        if isinstance(child, _BatchNorm)
        and not isinstance(child, SiteBatchNorm)
        and child.track_running_stats
        and child.training
    ]
    kept = [{name: getattr(norm, name) for name in _STATISTICS} for norm in norms]
    for norm, statistics in zip(norms, kept, strict=True):
        # Copies take the updates. Without any, torch's layers would save fewer tensors for the backward pass than they
        # did before, which torch.utils.checkpoint refuses.
        for name, value in statistics.items():
            setattr(norm, name, torch.zeros_like(value))
    try:
        yield
    finally:
        for site_norm, flag in zip(site_norms, flags, strict=True):
            site_norm.has_unchanged_statistics = flag
        for norm, statistics in zip(norms, kept, strict=True):
            for name, value in statistics.items():
                setattr(norm, name, value)
