"""Optimizer, schedule and clipping of one network."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from ammnet_sparse.config import OptimizerConfig
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.sparse.normalization import SiteBatchNorm
from ammnet_sparse.training.optimization import Optimization
from tests.training.support import tiny_config


def optimization_of(network: nn.Module, *, num_steps: int = 10, **keys: Any) -> Optimization:
    config = OptimizerConfig(**keys)
    return Optimization(
        network,
        config,
        learning_rate=config.learning_rate,
        num_steps=num_steps,
        uses_scaling=False,
        device=torch.device("cpu"),
    )


def run_steps(optimization: Optimization, network: nn.Module, count: int) -> list[float]:
    """The learning rate of each step."""
    rates = []
    for _ in range(count):
        rates.append(optimization.learning_rate)
        optimization.backward(sum((value**2).sum() for value in network.parameters()))  # type: ignore[arg-type]
        optimization.step()
    return rates


def test_weight_decay_spares_biases_and_normalization() -> None:
    network = AMMNet(tiny_config().model)
    optimization = optimization_of(network, weight_decay=0.05)
    decays = {
        id(value): group["weight_decay"] for group in optimization.optimizer.param_groups for value in group["params"]
    }
    assert len(decays) == len(list(network.parameters()))
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            spared = name == "bias" or isinstance(module, SiteBatchNorm | nn.BatchNorm2d)
            assert decays[id(value)] == (0.0 if spared else 0.05), (module, name)
    assert {0.0, 0.05} == set(decays.values())


def test_extra_decay_stays_while_the_learning_rate_falls() -> None:
    """As the published discriminator's optimizer: zero gradients, constant learning rate, the generator's weights."""
    network = nn.Linear(2, 2)
    before = copy.deepcopy(network)
    config = OptimizerConfig(weight_decay=0.05, learning_rate=0.1, final_learning_rate=0.001, warmup_steps=2)
    optimization = Optimization(
        network,
        config,
        learning_rate=0.1,
        num_steps=6,
        uses_scaling=False,
        device=torch.device("cpu"),
        extra_decay=0.2,
    )
    expected = 1.0
    for _ in range(6):
        expected *= 1 - optimization.learning_rate * 0.05 - 0.1 * 0.2
        optimization.backward(sum((value * 0).sum() for value in network.parameters()))  # type: ignore[arg-type]
        optimization.step()
    torch.testing.assert_close(network.weight, before.weight * expected)
    torch.testing.assert_close(network.bias, before.bias)


@pytest.mark.parametrize("name", ["weight_decay", "final_learning_rate"])
def test_extra_decay_needs_what_it_adds_to(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a number above 0"):
        OptimizerConfig(**{"extra_decay": 0.05, name: 0.0})


def test_moments_of_an_older_run_take_the_order_of_the_weights() -> None:
    """Weights of convolutions were stored in torch's order of memory, and their moments with them."""
    network = AMMNet(tiny_config().model)
    optimization = optimization_of(network)
    run_steps(optimization, network, 1)
    state, resumed = copy.deepcopy(optimization.state_dict()), copy.deepcopy(network)
    state["optimizer"]["state"] = {
        place: {name: value.contiguous() for name, value in moments.items()}
        for place, moments in state["optimizer"]["state"].items()
    }
    other = optimization_of(resumed)
    other.load_state_dict(state)
    run_steps(optimization, network, 1)
    run_steps(other, resumed, 1)
    for first, second in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second) and first.stride() == second.stride()


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    assert len(optimization_of(network).parameters) == 2
    with pytest.raises(ValueError, match="Sequential"):
        optimization_of(network.requires_grad_(False))


def test_cosine_moves_with_every_step_and_ends_at_the_final_rate() -> None:
    network = nn.Linear(2, 1)
    optimization = optimization_of(network, num_steps=8, learning_rate=1e-2, final_learning_rate=1e-4)
    rates = run_steps(optimization, network, 8)
    expected = [1e-4 + 0.5 * (1e-2 - 1e-4) * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx(expected)
    assert optimization.learning_rate == pytest.approx(1e-4)


def test_warm_up_rises_in_a_line_before_the_cosine() -> None:
    network = nn.Linear(2, 1)
    keys = {"learning_rate": 1e-2, "final_learning_rate": 1e-4, "warmup_steps": 4}
    optimization = optimization_of(network, num_steps=10, **keys)
    rates = run_steps(optimization, network, 10)
    assert rates[:5] == pytest.approx([1e-4 + step / 4 * (1e-2 - 1e-4) for step in range(5)])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert optimization.learning_rate == pytest.approx(1e-4)


def test_gradients_are_clipped_by_the_norm_of_all_and_cleared() -> None:
    network = nn.Linear(3, 2)
    optimization = optimization_of(network, gradient_clip=0.5)
    seen: list[float] = []
    optimization.optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(sum((value.grad**2).sum() for value in network.parameters()) ** 0.5))
    )
    optimization.backward(100 * network(torch.ones(1, 3)).sum())
    norm = optimization.step()
    assert float(norm) == pytest.approx(100 * math.sqrt(8))
    assert seen == [pytest.approx(0.5, rel=1e-4)]
    assert all(value.grad is None for value in network.parameters())


def test_restored_optimization_takes_schedule_and_decay_of_its_configuration() -> None:
    network = nn.Linear(3, 2)
    before = optimization_of(network, num_steps=4)
    run_steps(before, network, 4)
    after = optimization_of(network, num_steps=8, learning_rate=2e-3, weight_decay=0.5)
    after.load_state_dict(before.state_dict())
    assert after.learning_rate == pytest.approx(1e-3, rel=1e-3)
    assert {group["weight_decay"] for group in after.optimizer.param_groups} == {0.0, 0.5}


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite_change_nothing(value: float) -> None:
    network = nn.Linear(3, 2)
    optimization = optimization_of(network)
    run_steps(optimization, network, 1)
    before = copy.deepcopy((network.state_dict(), optimization.optimizer.state_dict()["state"]))
    optimization.backward(value * network(torch.ones(1, 3)).sum())
    assert not math.isfinite(float(optimization.step()))
    after = (network.state_dict(), optimization.optimizer.state_dict()["state"])
    assert all(torch.equal(before[0][name], tensor) for name, tensor in after[0].items())
    for index, moments in after[1].items():
        assert all(torch.equal(before[1][index][name], tensor) for name, tensor in moments.items())
    run_steps(optimization, network, 1)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_a_state_from_before_the_fused_optimizer_goes_on_with_loss_scaling() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    plain = optimization_of(network)
    run_steps(plain, network, 2)
    state = copy.deepcopy(plain.state_dict())
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    scaled = Optimization(
        network,
        OptimizerConfig(),
        learning_rate=1e-3,
        num_steps=10,
        uses_scaling=True,
        device=torch.device("cpu"),
    )
    scaled.load_state_dict(state)
    before = network.weight.detach().clone()
    run_steps(scaled, network, 1)
    assert not torch.equal(network.weight, before) and torch.isfinite(network.weight).all()
