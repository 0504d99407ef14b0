"""How many operations and waits a training step has."""

import pytest
from bench.operation_counter import Operations

from tests.training.support import make_game, tiny_batch, tiny_config


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
