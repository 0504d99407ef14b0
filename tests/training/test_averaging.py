"""The moving average of the generator's weights: its arithmetic, and runs that validate, save and resume it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.config import Config
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.models.weights.loading import join_states
from ammnet_sparse.training.checkpoints import load_state
from ammnet_sparse.training.interruption import RunInterrupted
from ammnet_sparse.training.loop import Run
from ammnet_sparse.training.optimization import AveragedWeights
from tests.training.support import differing, make_run, state_of, tiny_config

pytestmark = pytest.mark.usefixtures("quick_pictures")
DECAY = 0.6


def run_config(root: Path, *, ema_decay: float = DECAY) -> Config:
    """Two epochs of two steps of two frames."""
    return tiny_config(
        data={"root": str(root)},
        model={"encoder_dropout": 0.3},
        training={"epochs": 2, "batch_size": 2, "ema_decay": ema_decay},
    )


def test_average_follows_the_generator_alone() -> None:
    torch.manual_seed(0)
    network = AMMNet(tiny_config().model)
    average = AveragedWeights(network, decay=DECAY)
    variance = next(name for name in network.state_dict() if name.endswith("running_var"))
    names = ["decoder.classifier.weight", variance]
    expected = {name: network.state_dict()[name].double().clone() for name in names}
    for step in range(1, 6):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.copy_(torch.randn_like(value) if value.is_floating_point() else value + 1)
        average.update(network, step=step)
        decay = min(DECAY, 1 - step ** (-2 / 3))
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * network.state_dict()[name].double()
    found = average.network.state_dict()
    for name in names:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    changed = differing(state_of(network), found)
    assert changed and not any("num_batches" in name for name in changed)
    assert average.state_dict().keys() == network.state_dict().keys()


@pytest.fixture(scope="module")
def averaged(root: Path, tmp_path_factory: pytest.TempPathFactory, quick_pictures: None) -> tuple[Run, Path]:
    """A whole run, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "averaged"
    run = make_run(run_config(root), folder)
    run.train()
    return run, folder


def test_run_saves_the_average_and_may_begin_to_average(averaged: tuple[Run, Path], root: Path, tmp_path: Path) -> None:
    run, folder = averaged
    last = read_weights(folder / "last.safetensors")[0]
    trained = run.game.networks.state_dict()
    assert not differing(last, join_states(run.evaluated.state_dict(), run.game.discriminator.state_dict()))
    changed = differing(trained, last)
    assert changed and not any(name.startswith("discriminator.") for name in changed)
    assert not differing(load_state(folder)["network"], trained)
    # The average leaves training alone.
    plain = make_run(run_config(root, ema_decay=0), tmp_path)
    plain.train()
    assert plain.evaluated is plain.game.networks.generator
    assert not differing(plain.game.networks.state_dict(), trained)
    assert load_state(tmp_path)["average"] is None
    resumed = make_run(run_config(root), tmp_path, resume=True, may_change=True)
    assert resumed.parts.average is not None
    assert not differing(state_of(resumed.evaluated), state_of(resumed.game.networks.generator))


def test_interrupted_run_goes_on_exactly_and_validates_the_average(
    averaged: tuple[Run, Path], root: Path, tmp_path: Path
) -> None:
    run = make_run(run_config(root), tmp_path)
    evaluated = []
    run.evaluated.register_forward_hook(lambda *_: evaluated.append(1))
    step = run.game.step

    def stopping(*arguments: Any, **options: Any) -> Any:
        if run.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments, **options)

    run.game.step = stopping  # type: ignore[method-assign]
    with pytest.raises(RunInterrupted):
        run.train()
    assert evaluated
    make_run(run_config(root), tmp_path, resume=True).train()
    whole, parts = (load_state(folder) for folder in (averaged[1], tmp_path))
    for part in ("network", "average"):
        assert not differing(whole[part], parts[part])
    for name in ("best.safetensors", "last.safetensors"):
        assert not differing(*(read_weights(folder / name)[0] for folder in (averaged[1], tmp_path)))
