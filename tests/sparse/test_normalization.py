"""Batch normalization over sites, against torch's in float64 and against float64 in float32."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ammnet_sparse.sparse.normalization import SiteBatchNorm, unchanged_statistics
from ammnet_sparse.sparse.recipes import recipes_kept


def build_pair(channels: int, *, with_relu: bool) -> tuple[SiteBatchNorm, nn.Module, nn.BatchNorm1d]:
    torch.manual_seed(0)
    reference = nn.BatchNorm1d(channels).double()
    with torch.no_grad():
        reference.weight.uniform_(0.5, 1.5)
        reference.bias.uniform_(-0.5, 0.5)
    norm = SiteBatchNorm(channels, with_relu=with_relu).double()
    norm.load_state_dict(reference.state_dict())
    return norm, nn.Sequential(reference, nn.ReLU()) if with_relu else reference, reference


@pytest.mark.parametrize("with_relu", [False, True])
def test_values_gradients_and_statistics_are_those_of_torch(with_relu: bool) -> None:
    norm, reference, reference_norm = build_pair(5, with_relu=with_relu)
    for _ in range(3):
        features = (torch.randn(40, 5, dtype=torch.float64) * 2 + 3).requires_grad_()
        upstream = torch.randn(40, 5, dtype=torch.float64)
        results = []
        for module in (norm, reference):
            out = module(features)
            results.append((out, *torch.autograd.grad(out, (features, *module.parameters()), upstream)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked == 3
    expected = dict(reference_norm.named_buffers())
    torch.testing.assert_close(dict(norm.named_buffers()), expected, rtol=1e-12, atol=1e-12)
    norm.eval(), reference.eval()
    features = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(features), reference(features))
    assert norm.num_batches_tracked == 3


@pytest.mark.parametrize("has_gradient", [False, True])
def test_statistics_can_be_left_unchanged(has_gradient: bool) -> None:
    norm = SiteBatchNorm(3)
    plain = nn.BatchNorm1d(3)
    network = nn.Sequential(norm, plain)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features = torch.randn(20, 3) + 4
    with torch.set_grad_enabled(has_gradient), unchanged_statistics(network):
        with unchanged_statistics(norm):
            inside = norm(features)
        inside = plain(norm(features))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert norm.track_running_stats and plain.track_running_stats
    # The batch's own statistics were used, and afterwards they are tracked again.
    torch.testing.assert_close(inside.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(network(features), inside)
    assert norm.num_batches_tracked == plain.num_batches_tracked == 1
    assert (norm.running_mean > 0.3).all()


def test_statistics_are_tracked_again_after_an_error() -> None:
    norm = SiteBatchNorm(3)
    with pytest.raises(RuntimeError, match="inside"), unchanged_statistics(norm):
        raise RuntimeError("inside")
    norm(torch.randn(20, 3) + 4)
    assert norm.num_batches_tracked == 1 and (norm.running_mean > 0.3).all()


def test_torchs_batch_norm_can_be_recomputed() -> None:
    """It saves its running statistics for the backward pass, and a checkpoint counts what is saved."""
    norm = nn.BatchNorm1d(3)
    features = torch.randn(20, 3, requires_grad=True)

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), unchanged_statistics(norm)

    out = checkpoint(norm, features, use_reentrant=False, context_fn=contexts)
    out.square().sum().backward()
    assert norm.num_batches_tracked == 1


def test_mixed_types_are_promoted() -> None:
    norm = SiteBatchNorm(4)
    features, residual = torch.randn(20, 4).half(), torch.randn(20, 4, requires_grad=True)
    found, total = norm(features, residual, with_relu=True, with_sum=True)
    assert found.dtype == total.dtype == torch.float32
    expected = SiteBatchNorm(4)(features).float() + residual
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found, expected.relu())
    with recipes_kept(True):
        found = norm(features, residual, with_relu=True)
    found.sum().backward()
    torch.testing.assert_close(residual.grad, (expected > 0).float())


def test_cumulative_averages_are_refused() -> None:
    norm = SiteBatchNorm(3)
    norm.momentum = None
    with pytest.raises(ValueError, match="momentum"):
        norm(torch.randn(4, 3))


@pytest.mark.parametrize("count", [0, 1])
def test_one_site_has_no_statistics(count: int) -> None:
    norm = SiteBatchNorm(3)
    with pytest.raises(ValueError, match="2 sites"):
        norm(torch.randn(count, 3))
    with pytest.raises(ValueError, match="2 sites"):
        norm(torch.randn(3 * count, 3), num_groups=3)
    assert norm.eval()(torch.randn(count, 3)).shape == (count, 3)
