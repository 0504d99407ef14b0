"""Recipes: gradients are the same, and no stale tensor is used."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ammnet_sparse.sparse.normalization import SiteBatchNorm
from ammnet_sparse.sparse.recipes import add, multiply, no_recipes, recipes_kept, recorded, relu, take_rows


class Block(nn.Module):
    """A residual block of matrix products, with everything that has recipes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norm1, self.norm2 = SiteBatchNorm(8, with_relu=True), SiteBatchNorm(8)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.norm1(self.first(features))
        hidden = multiply(
            hidden, take_rows(features.new_tensor([[1.0] * 8, [2.0] * 8]), torch.arange(len(features)) % 2)
        )
        return relu(add(self.norm2(self.second(hidden)), features, hidden))


@pytest.mark.parametrize("is_enabled", [False, True])
def test_gradients_of_stacked_blocks_are_the_same(is_enabled: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Block(), Block(), Block()).double()
    features = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(network(features).square().sum(), [features, *network.parameters()])
    with recipes_kept(is_enabled):
        output = network(features)
    found = torch.autograd.grad(output.square().sum(), [features, *network.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Counted(torch.autograd.Function):
    """Squares, and counts the bytes that its saved tensor has as autograd gives it back."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(features)
        return features.square()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (features,) = ctx.saved_tensors
        return 2 * features * gradients[0]


def made_and_kept(change: str) -> tuple[bool, Tensor, Tensor]:
    """Whether a noted tensor was let go, the gradient through it, and the gradient to expect."""
    start = torch.arange(1.0, 5.0, requires_grad=True)
    with recipes_kept(True):
        middle = recorded(start * 3, lambda features: features * 3, start)
        if change == "in place":
            with torch.no_grad():
                middle.mul_(2)
        used = middle.view(2, 2).t() if change == "view" else middle
        result = Counted.apply(used).sum()
    factor = 2 if change == "in place" else 1
    watched = weakref.ref(middle)
    del middle, used
    gc.collect()
    result.backward()
    assert start.grad is not None
    return watched() is None, start.grad, 18 * factor * start.detach()


@pytest.mark.parametrize("change", ["none", "view", "in place"])
def test_recomputed_tensors_are_the_same(change: str) -> None:
    is_gone, found, expected = made_and_kept(change)
    assert is_gone
    torch.testing.assert_close(found, expected)


def fail(*inputs: Tensor) -> Tensor:
    raise AssertionError("recomputed")


def test_reused_memory_has_no_recipe() -> None:
    memory, start = torch.full((4,), 5.0), torch.ones(4, requires_grad=True)
    with recipes_kept(True):
        dead = recorded(memory.detach(), fail, start)
        assert dead.data_ptr() == memory.data_ptr()
        del dead
        result = (start * memory).sum()
    result.backward()
    assert start.grad is not None
    assert start.grad.tolist() == [5.0] * 4


def test_without_gradients_or_within_recomputation_nothing_is_noted() -> None:
    start = torch.ones(4, requires_grad=True)
    with torch.no_grad(), recipes_kept(True):
        recorded(start * 3, fail, start)
    with recipes_kept(True), no_recipes():
        result = Counted.apply(recorded(start * 3, fail, start))
    result.sum().backward()


def test_nothing_outlives_the_graph() -> None:
    network = Block()
    features = torch.randn(32, 8)
    with recipes_kept(True):
        hidden = network.first(features)
        watched = weakref.ref(hidden)
        output = relu(network.norm2(hidden)).sum()
    del hidden
    output.backward()
    del output
    assert watched() is None


def gradient(is_enabled: bool, start: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the squared sum of what ``compute`` makes of ``start``."""
    with recipes_kept(is_enabled):
        result = Counted.apply(compute(start)).sum()
    gc.collect()
    (found,) = torch.autograd.grad(result, start)
    return found


def test_reshaped_inputs_are_recomputed_in_their_shape() -> None:
    start = torch.arange(1.0, 17.0).view(2, 8).requires_grad_()

    def compute(features: Tensor) -> Tensor:
        return take_rows(multiply(features, features).view(4, 4), torch.tensor([1, 0]))

    torch.testing.assert_close(gradient(True, start, compute), gradient(False, start, compute))


def test_parts_of_memory_have_no_recipe() -> None:
    start = torch.arange(1.0, 13.0).requires_grad_()
    parts = []  # alive, or they would be forgotten

    def compute(features: Tensor) -> Tensor:
        whole = features * 1
        parts.append(recorded(whole[:4], fail, features))
        return whole

    torch.testing.assert_close(gradient(True, start, compute), gradient(False, start, compute))


def test_another_type_in_the_same_memory_has_no_recipe() -> None:
    bits = []

    class KeepsBits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, features: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            ctx.save_for_backward(features.view(torch.int32))
            return features.clone()

        @staticmethod
        def backward(ctx, *gradients: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            bits.append(ctx.saved_tensors[0].dtype)
            return gradients[0]

    start = torch.ones(4, requires_grad=True)
    gradient(True, start, lambda features: KeepsBits.apply(multiply(features, features)))
    assert bits == [torch.int32]


def test_empty_tensors_share_an_address() -> None:
    start, features = torch.zeros(0, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    with recipes_kept(True):
        nothing = relu(start)
        result = features.index_select(0, torch.zeros(0, dtype=torch.int64)).sum() + nothing.sum()
    (found,) = torch.autograd.grad(result, features)
    assert found.tolist() == torch.zeros(5, 4).tolist()


def test_inputs_changed_before_the_backward_pass_are_refused() -> None:
    start = torch.ones(4, requires_grad=True)
    with recipes_kept(True):
        hidden = start * 2
        result = Counted.apply(recorded(hidden + 1, lambda features: features + 1, hidden)).sum()
    with torch.no_grad():
        hidden.mul_(10)
    with pytest.raises(RuntimeError, match="in place"):
        result.backward()


def test_inference_tensors_may_enter() -> None:
    with torch.inference_mode():
        frozen = torch.ones(3, 4)
    start = torch.ones(3, 4, requires_grad=True)
    found = gradient(True, start, lambda features: add(features * 2, frozen))
    assert found.tolist() == torch.full((3, 4), 12.0).tolist()
    with recipes_kept(True), torch.inference_mode():
        assert relu(frozen).tolist() == frozen.tolist()


def test_another_thread_may_run_the_backward_pass() -> None:
    """As autograd does on CUDA."""
    torch.manual_seed(0)
    network = Block().double()
    features = torch.randn(32, 8, dtype=torch.float64)
    expected = torch.autograd.grad(network(features).square().sum(), list(network.parameters()))
    with recipes_kept(True):
        result = network(features).square().sum()
        thread = threading.Thread(target=result.backward)
        thread.start()
        thread.join()
    for parameter, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-12, atol=1e-12)
