"""CUDA graphs of the blocks on full grids, recorded and repeated on a CPU (``bench.emulated_graphs``)."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench.emulated_graphs import EmulatedRecorder
from torch import Tensor

from ammnet_sparse.ops import kernel_libraries
from ammnet_sparse.sparse.blocks import DDRBlock, run_blocks
from ammnet_sparse.sparse.graphs import BlockGraphs
from ammnet_sparse.sparse.sites import full_sites
from ammnet_sparse.training.device import block_graphs
from tests.training.support import make_game, state_of, tiny_batch, tiny_config

pytestmark = pytest.mark.skipif(
    not kernel_libraries()["cpu"].is_loaded, reason="references check indices on the host, which no graph can record"
)


def trained(*, with_graphs: bool, dtype: torch.dtype, training: dict[str, Any], adversarial: dict[str, Any]) -> Any:
    """A game after four steps, of which the third has another number of frames, and the values of each."""
    config = tiny_config(training={"batch_size": 2, **training}, adversarial=adversarial)
    game = make_game(config, dtype=dtype)
    if with_graphs:
        game.graphs = BlockGraphs(EmulatedRecorder)
    reports = []
    for seeds in ([0, 1], [2, 3], [4, 5, 6], [7, 8]):
        torch.manual_seed(seeds[0])
        reports.append(game.step([tiny_batch(seeds)], seed=seeds[0]).as_floats())
    return game, reports


@pytest.mark.parametrize(
    ("dtype", "training", "adversarial", "num_graphs"),
    [
        # Two stages of encoder and decoder each, the TSDF's way down, and the discriminator in both of its steps.
        (torch.float64, {}, {}, 7),
        (torch.float64, {}, {"gradient_penalty": 1.0}, 9),
        (torch.float32, {"mixed_precision": "bf16"}, {}, 7),
    ],
)
def test_training_from_graphs_is_training(
    dtype: torch.dtype, training: dict[str, Any], adversarial: dict[str, Any], num_graphs: int
) -> None:
    arguments = {"dtype": dtype, "training": training, "adversarial": adversarial}
    game, reports = trained(with_graphs=True, **arguments)
    plain, expected = trained(with_graphs=False, **arguments)
    assert game.graphs.num_graphs == num_graphs
    if dtype == torch.float32:  # in 16 bits rounding differs, and more from step to step
        assert reports[1] == pytest.approx(expected[1], rel=0.02)
        return
    for report, wanted in zip(reports, expected, strict=True):
        assert report == pytest.approx(wanted, rel=1e-9)
    for network, other in ((game.generator, plain.generator), (game.discriminator, plain.discriminator)):
        found, wanted = state_of(network), state_of(other)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-9), name


def blocks_and_features() -> tuple[list[DDRBlock], list[Tensor]]:
    torch.manual_seed(0)
    blocks = [DDRBlock(8, 2, expansion=4, dilation=dilation).double() for dilation in (1, 2)]
    return blocks, [torch.randn(2 * 64, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def gradients(run: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Of several forward passes before a single backward pass."""
    total = sum(((index + 1) * run(features).square().sum() for index, features in enumerate(inputs)), torch.zeros(()))
    return [gradient.clone() for gradient in torch.autograd.grad(total, inputs)]  # those of a graph are overwritten


def test_values_that_a_backward_pass_needs_are_not_overwritten() -> None:
    blocks, (noted, first, second) = blocks_and_features()
    sites = full_sites(2, (4, 4, 4), torch.device("cpu"))

    def run(features: Tensor) -> Tensor:
        return run_blocks(blocks, features, sites)[0]

    graphs = BlockGraphs(EmulatedRecorder)
    with graphs.used():
        run(noted)
    before = EmulatedRecorder.num_repeated
    with graphs.used():
        found = gradients(run, [first, second])
        again = gradients(run, [second, first])
        abandoned = run(first)
        del abandoned
        run(first).sum().backward()
    # Recorded and checked; then the first of two passes from the graph each time, and those after one that was dropped.
    assert graphs.num_graphs == 1 and EmulatedRecorder.num_repeated - before == 2 + 2 + 2 + 1 + 2
    expected = [*gradients(run, [first, second]), *gradients(run, [second, first])]
    for value, wanted in zip([*found, *again], expected, strict=True):
        torch.testing.assert_close(value, wanted)


class Reading(DDRBlock):
    """A block that reads a value on the host."""

    def forward(self, features: Tensor, *others: Any, **named: Any) -> Any:
        return super().forward(features * float(features.detach().abs().max()), *others, **named)


class Idle(EmulatedRecorder):
    """Repeats nothing."""

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        return super().record(run)[0], lambda: None


@pytest.mark.parametrize(
    ("kind", "recorder", "named"),
    [(Reading, EmulatedRecorder, "_local_scalar_dense"), (DDRBlock, Idle, "the result")],
)
def test_blocks_that_a_graph_cannot_repeat_run_as_usual(
    kind: type[DDRBlock], recorder: type[EmulatedRecorder], named: str
) -> None:
    torch.manual_seed(0)
    block = kind(8, 2, expansion=4)
    sites = full_sites(2, (4, 4, 4), torch.device("cpu"))
    features = torch.randn(2 * 64, 8, requires_grad=True)
    graphs = BlockGraphs(recorder)
    with graphs.used():
        run_blocks([block], features, sites)
    statistics = state_of(block)
    with pytest.warns(UserWarning, match=named), graphs.used():
        pass
    assert graphs.num_graphs == 0
    for name, value in block.state_dict().items():
        assert torch.equal(value, statistics[name]), name
    with graphs.used():
        (result, _), (wanted, _) = (run_blocks([block], features, sites) for _ in range(2))
    assert torch.equal(result, wanted)


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"recompute": "elementwise"}, "recompute"),
        ({"accumulate": 2}, "accumulate"),
        ({"deterministic": True}, "deterministic"),
        ({"convolution_backend": "spconv"}, "convolution_backend"),
        ({}, "cpu"),
    ],
)
def test_runs_without_graphs_say_why(training: dict[str, Any], named: str) -> None:
    device = torch.device("cuda" if training else "cpu")
    with pytest.warns(UserWarning, match=named):
        assert block_graphs(tiny_config(training={"cuda_graphs": True, **training}), device) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert block_graphs(tiny_config(training={"cuda_graphs": "auto", **training}), device) is None


@pytest.mark.cuda
@pytest.mark.parametrize("mixed_precision", [False, "fp16"])
def test_training_from_graphs_on_a_gpu(mixed_precision: bool | str) -> None:
    config = tiny_config(training={"batch_size": 2, "mixed_precision": mixed_precision})
    reports = []
    for with_graphs in (False, True):
        game = make_game(config, device="cuda")
        game.graphs = BlockGraphs() if with_graphs else None
        for step in range(4):
            torch.manual_seed(step)
            report = game.step([tiny_batch([2 * step, 2 * step + 1]).to("cuda")], seed=step).as_floats()
        reports.append(report)
        assert not with_graphs or game.graphs.num_graphs == 7
    assert reports[1] == pytest.approx(reports[0], rel=1e-2 if mixed_precision is False else 0.1)
