"""What two processes compute together, against one process: a program for torchrun, see test_processes.py."""

import copy
import dataclasses
import functools
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.processes import ProcessError, joined_processes, num_processes, rank
from ammnet_sparse.sparse.shared_statistics import share_batch_statistics
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.validation import Validation, validate
from tests.training.support import both, make_game, state_of, tiny_batch, tiny_config

FRAMES = [tiny_batch([seed]) for seed in range(1, 5)]


def fixed_fakes(scene: Any, *, seed: int) -> list[Tensor]:
    """Fakes that depend on the truth alone."""
    return [scene.truth.where(scene.truth != 3, 0), scene.truth.where(scene.truth != 4, 5)]


def step_of(
    batches: list[Batch], recompute: str, penalty: float
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor], Any]:
    """Losses, gradients as they are applied, weights and buffers after the step, and its counts."""
    config = tiny_config(
        training={"recompute": recompute},
        optimizer={"gradient_clip": 0.5},
        adversarial={"gradient_penalty": penalty},
    )
    game = make_game(config, dtype=torch.float64)
    game._fakes = fixed_fakes  # type: ignore[method-assign, assignment]
    gradients: dict[str, Tensor] = {}
    for part in (game.discriminator_optimization, game.generator_optimization):
        assert part is not None
        part.optimizer.register_step_pre_hook(functools.partial(keep_gradients, game, part.parameters, gradients))
    report = game.step(batches, seed=1)
    return report.as_floats(), gradients, state_of(both(game)), report.counts


def keep_gradients(game: AdversarialGame, parameters: list[Tensor], gradients: dict[str, Tensor], *_: object) -> None:
    own = {id(parameter) for parameter in parameters}
    for name, value in both(game).named_parameters():
        if id(value) in own and value.grad is not None:
            gradients[name] = value.grad.clone()


def normalized_maps(maps: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Result, gradients and statistics of a 2D batch normalization; summed gradients of the parameters."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1)).double()
    nn.init.normal_(norm[0].weight)
    share_batch_statistics(norm)
    maps = maps.clone().requires_grad_()
    out = norm(maps)
    (out * weight).sum().backward()
    gradients = [norm[0].weight.grad, norm[0].bias.grad]
    for gradient in gradients:
        if num_processes() > 1:
            dist.all_reduce(gradient)
    return out.detach(), maps.grad, *gradients, norm[0].running_mean, norm[0].running_var, norm[0].num_batches_tracked


def scores_of(batches: list[Batch]) -> Validation:
    torch.manual_seed(0)
    network = AMMNet(tiny_config().model)
    return validate(network, batches, label_smoothing=0.2, device=torch.device("cpu"))


def unlike_frames() -> list[Batch]:
    """Three: one in a process and two in the other; one of these has no scored voxel, and the last no hit."""
    empty = dataclasses.replace(FRAMES[1], label_weight=torch.zeros_like(FRAMES[1].label_weight), frame_ids=("bare",))
    blind = dataclasses.replace(FRAMES[2], mapping=torch.full_like(FRAMES[2].mapping, -1), frame_ids=("blind",))
    return [FRAMES[0], empty, blind]


def main() -> None:
    alone = {
        (recompute, accumulate, penalty): step_of(
            [Batch.collate(FRAMES[2 * index : 2 * index + 2]) for index in range(accumulate)], recompute, penalty
        )
        for recompute, accumulate, penalty in CASES
    }
    maps = torch.randn(3, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    weights = torch.randn(3, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    maps_alone = normalized_maps(maps, weights)
    scores_alone = scores_of(copy.deepcopy(unlike_frames()))
    with joined_processes("cpu"):
        assert num_processes() == 2
        for (recompute, accumulate, penalty), expected in alone.items():
            mine = [FRAMES[2 * index + rank()] for index in range(accumulate)]
            losses, gradients, state, counts = step_of(mine, recompute, penalty)
            assert ("gradient_penalty" in expected[0]) == (penalty > 0)
            for name, value in expected[0].items():
                assert abs(losses[name] - value) <= 1e-7 * abs(value), (
                    recompute,
                    accumulate,
                    name,
                    losses[name],
                    value,
                )
            largest = max(float(value.abs().max()) for value in expected[1].values())
            assert gradients.keys() == expected[1].keys()
            for name, value in expected[1].items():
                torch.testing.assert_close(gradients[name], value, rtol=1e-6, atol=1e-8 * largest, msg=name)
            for name, value in expected[2].items():
                torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-8, msg=name)
            assert torch.equal(counts.confusion, expected[3].confusion) and counts.frames == expected[3].frames
            print(f"process {rank()}: a step agrees ({recompute}, {accumulate} batches)", flush=True)
        part = slice(0, 1) if rank() == 0 else slice(1, 3)  # unlike numbers of rows
        for found, wanted in zip(normalized_maps(maps[part], weights[part]), maps_alone, strict=True):
            if wanted.ndim == 4:
                wanted = wanted[part]
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        validation = scores_of(unlike_frames()[rank() :: 2])
        assert validation.scores.to_json() == scores_alone.scores.to_json()
        assert abs(validation.scene - scores_alone.scene) < 1e-9
        nothing = scores_of([FRAMES[0]] if rank() == 0 else [])
        assert nothing.scores.frames == 1
        print(f"process {rank()}: all agrees", flush=True)


CASES = [("off", 1, 0.0), ("off", 2, 10.0), ("elementwise", 1, 10.0), ("full", 2, 10.0)]

if __name__ == "__main__":
    try:
        main()
    except ProcessError as error:
        sys.exit(str(error))
