"""How many operations and waits a training step has."""

import pytest
import torch
from bench.operation_counter import Operations
from bench.steps import as_on_a_gpu

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


def test_a_step_launches_little_beside_its_layers() -> None:
    """As on a GPU: copies of buffers and of weights take a few launches; skipped products count like computed ones."""
    game = make_game(tiny_config(training={"mixed_precision": "bf16"}))
    batch = tiny_batch([0, 1])
    found = []
    with as_on_a_gpu():
        game.step([batch], seed=0)
        for skips in (False, True):
            with Operations(skips_products=skips) as counted:
                game.step([batch], seed=1)
            found.append(counted.launching.copy())
    for operations in found:
        del operations["clone"]  # a CPU's transposed convolution returns another order of memory than cuDNN's
    assert found[0] == found[1]
    assert counted.launches["_foreach_copy_"] <= 24
    assert counted.launches["addmm_"] > 0  # spconv's
    layers = counted.launches["normalize_sites"] + counted.launches["normalize_sites_backward"]
    assert counted.num_launches - layers <= 1_800, counted.launches.most_common(20)


def test_lists_of_mixed_types_are_copied_one_by_one() -> None:
    values = [torch.ones(3), torch.ones(2), torch.ones(2, dtype=torch.int64)]
    with Operations() as counted:
        torch._foreach_copy_(values, [value + 1 for value in values])
        torch._foreach_copy_(values[:2], values[:2])
    assert counted.launching["_foreach_copy_"] == 2 and counted.launches["_foreach_copy_"] == 4
