"""Saved states and weights: whole or not at all, and what fits what."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.models.weights.files import read_weights, save_weights
from ammnet_sparse.models.weights.loading import load_discriminator, load_model
from ammnet_sparse.training import checkpoints
from ammnet_sparse.training.checkpoints import (
    STATE,
    CheckpointError,
    load_state,
    save_run_weights,
    save_state,
)
from ammnet_sparse.training.networks import Networks, build_networks, initialise_from
from tests.training.support import differing, state_of, tiny_batch, tiny_config


def networks_of(seed: int, **model: Any) -> Networks:
    return build_networks(tiny_config(model=model, training={"seed": seed}))


def saved(folder: Path, seed: int, **model: Any) -> tuple[Networks, Path]:
    networks = networks_of(seed, **model)
    save_run_weights(folder, "last.safetensors", networks.generator, networks.discriminator, metadata={"epoch": "3"})
    return networks, folder / "last.safetensors"


def test_state_comes_back(tmp_path: Path) -> None:
    state = {"network": {"weight": torch.arange(3.0)}, "progress": {"step": 3, "sums": {"loss": 0.1}}, "limit": None}
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert torch.equal(found["network"]["weight"], state["network"]["weight"])  # type: ignore[index]
    assert (found["progress"], found["limit"]) == (state["progress"], None)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_interrupted_save_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, {"step": 1})

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, {"step": 2})
    assert load_state(tmp_path) == {"step": 1}


def test_missing_and_damaged_states_are_named(tmp_path: Path) -> None:
    path = tmp_path / STATE
    with pytest.raises(CheckpointError, match=f"{path}: expected the state of an interrupted run, found nothing"):
        load_state(tmp_path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read"):
        load_state(tmp_path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="expected a dict, found list"):
        load_state(tmp_path)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_loading_a_state_executes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))):
        write(Malicious(), tmp_path / STATE)
        with pytest.raises(CheckpointError):
            load_state(tmp_path)
    assert not Path("executed").exists()


def test_run_weights_hold_their_configuration_and_predict_the_same(tmp_path: Path) -> None:
    networks, path = saved(tmp_path, 1)
    state, config, metadata = read_weights(path)
    assert (config, metadata) == (networks.generator.config, {"epoch": "3"})
    assert not differing(state, networks.state_dict())
    batch = tiny_batch((1,))
    loaded, discriminator = load_model(path), load_discriminator(path)
    with torch.inference_mode():
        expected = networks.generator.eval()(batch, voxels="scored")
        found = loaded(batch, voxels="scored")
        assert torch.equal(found.voxel_logits, expected.voxel_logits)
        scores = networks.discriminator.eval()(expected.voxel_logits, expected.sites)
        assert torch.equal(discriminator(found.voxel_logits, found.sites), scores)


def test_weights_of_a_run_start_another(tmp_path: Path) -> None:
    networks, path = saved(tmp_path, 1)
    others = networks_of(2, decoder_dropout=0.5)
    initialise_from(others, path)
    assert not differing(networks.state_dict(), others.state_dict())


@pytest.mark.parametrize(("first", "second"), [("sparse", "dense"), ("dense", "sparse")])
def test_sites_may_differ(tmp_path: Path, first: str, second: str) -> None:
    networks, path = saved(tmp_path, 1, sites=first)
    others = networks_of(2, sites=second)
    initialise_from(others, path)
    given, taken = networks.state_dict(), others.state_dict()
    assert all(torch.equal(given[name], taken[name]) for name in given.keys() & taken.keys())
    own = taken.keys() - given.keys()
    assert len(own) == (2 if second == "sparse" else 0)
    assert all((taken[name] == 0).all() for name in own)


def test_other_widths_and_fusions_are_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path, 1)
    others = networks_of(2, width=16, fusion="add")
    start = {name: value.clone() for name, value in others.state_dict().items()}
    with pytest.raises(WeightsError, match=r"model.width 8 \(here 16\), model.fusion modulation \(here add\)") as error:
        initialise_from(others, path)
    assert str(path) in str(error.value) and "wrong shapes" in str(error.value)
    assert not differing(start, others.state_dict())


def test_frozen_encoders_come_from_a_network_with_other_inputs(tmp_path: Path) -> None:
    """Figure 2: the TSDF encoder of a multi-modal network under a new decoder."""
    networks, path = saved(tmp_path, 1)
    others = networks_of(2, inputs="tsdf", freeze_encoders=True)
    decoder, discriminator = state_of(others.generator.decoder), state_of(others.discriminator)
    initialise_from(others, path)
    assert networks.generator.tsdf_encoder is not None and others.generator.tsdf_encoder is not None
    assert not differing(state_of(networks.generator.tsdf_encoder), state_of(others.generator.tsdf_encoder))
    assert not differing(decoder, state_of(others.generator.decoder))
    assert not differing(discriminator, state_of(others.discriminator))
    with pytest.raises(WeightsError, match="label_map_stem"):
        initialise_from(networks_of(2, inputs="both", freeze_encoders=True), saved(tmp_path, 3, inputs="tsdf")[1])


def test_checkpoint_without_discriminator_leaves_it(tmp_path: Path) -> None:
    generator = networks_of(1).generator
    path = tmp_path / "converted.safetensors"
    save_weights(path, generator.state_dict(), model_config=generator.config)
    others = networks_of(2)
    discriminator = state_of(others.discriminator)
    initialise_from(others, path)
    assert not differing(discriminator, state_of(others.discriminator))
    assert not differing(state_of(generator), state_of(others.generator))
