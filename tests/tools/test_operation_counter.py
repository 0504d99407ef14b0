"""What counts as an operation and as a wait, and how many of both a training step has."""

import pytest
import torch
from bench.operation_counter import Operations

from tests.training.support import make_game, tiny_batch, tiny_config


def test_views_and_allocations_launch_nothing() -> None:
    values = torch.ones(4, 6)
    with Operations() as counted:
        values.t()[1:].unsqueeze(0).flatten(0, 1).clone()
        torch.empty(3)
        values + 1
        values.mul_(2)
    assert dict(counted.launching) == {"add": 1, "mul_": 1, "clone": 1} and counted.views > 3
    assert counted.num_waits == 0


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda values: values.sum().item(), "_local_scalar_dense"),
        (lambda values: bool(values.sum() > 1), "_local_scalar_dense"),
        (lambda values: values.tolist(), "tolist"),
        (lambda values: values.cpu(), "cpu"),
        (lambda values: values.to("cpu"), "to"),
        (lambda values: values.to(device="cpu"), "to"),
        (lambda values: values.nonzero(), "nonzero"),
        (lambda values: values[values > 0], "index"),
        (lambda values: values.masked_select(values > 0), "masked_select"),
        (lambda values: values.unique(), "_unique2"),
        (lambda values: torch.ones(3).repeat_interleave(values.long().flatten()[:3]), "repeat_interleave"),
        (lambda values: torch.tensor([1, 2]), "tensor"),
    ],
)
def test_what_the_host_waits_for(wait: object, name: str) -> None:
    values = torch.ones(2, 3)
    with Operations() as counted:
        wait(values)  # type: ignore[operator]
    assert counted.waits[name] >= 1


def test_what_it_does_not_wait_for() -> None:
    values, rows = torch.ones(5, 3), torch.tensor([1, 2])
    mask = values > 0
    with Operations() as counted:
        values[rows], values[1:3], values.index_select(0, rows), values.masked_fill(mask, 0.0), values.where(mask, 0)
        values.to(values.device), values.to(torch.float64), torch.arange(4), torch.full((2,), 3)
        rows.repeat_interleave(rows, output_size=3)
    assert counted.num_waits == 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("recompute", ["off", "elementwise", "full"])
def test_a_step_waits_at_most_five_times_a_batch(accumulate: int, recompute: str) -> None:
    config = tiny_config(training={"recompute": recompute, "accumulate": accumulate})
    game = make_game(config)
    batches = [tiny_batch([2 * index, 2 * index + 1]) for index in range(accumulate)]
    game.step(batches, seed=0)  # constants of the process
    with Operations() as counted:
        game.step(batches, seed=1).as_floats()
    # The plan of the sites and, on a CPU only, a check of indices; the losses, once a step.
    assert counted.num_waits <= 5 * accumulate, counted.waits
    assert counted.num_waits <= 4 * accumulate + 1, counted.waits


def test_a_step_dispatches_few_operations() -> None:
    """The number hardly depends on widths and frames: those of chunks of large convolutions alone."""
    game = make_game(tiny_config())
    batch = tiny_batch([0, 1])
    game.step([batch], seed=0)
    with Operations() as counted:
        game.step([batch], seed=1).as_floats()
    assert counted.num_launching <= 2_500, counted.launching.most_common(20)
