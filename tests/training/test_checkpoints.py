"""Saved states and weights: whole or not at all, and what fits what."""

import dataclasses
import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammnet_sparse.config import Config, DataConfig, config_from_dict
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.training_sets import unobserved_in
from ammnet_sparse.data.volumes.tsdf import Unobserved, flip_tsdf
from ammnet_sparse.evaluation.metrics import scores_from_counts
from ammnet_sparse.files import writing
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import UNOBSERVED, read_weights, save_weights
from ammnet_sparse.models.weights.loading import load_discriminator, load_model
from ammnet_sparse.training.checkpoints import (
    PREVIOUS_STATE,
    STATE,
    CheckpointError,
    load_state,
    run_metadata,
    save_run_weights,
    save_state,
)
from ammnet_sparse.training.networks import Networks, build_networks, initialize_from
from tests.data.frames import random_frame
from tests.training.support import differing, state_of, tiny_batch, tiny_config


def networks_of(seed: int, **model: Any) -> Networks:
    return build_networks(tiny_config(model=model, training={"seed": seed}), is_resumed=True)


def saved(folder: Path, seed: int, **model: Any) -> tuple[Networks, Path]:
    networks = networks_of(seed, **model)
    save_run_weights(folder, "last.safetensors", networks.generator, networks.discriminator, metadata={"epoch": "3"})
    return networks, folder / "last.safetensors"


def test_interrupted_save_leaves_the_states_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, {"step": 1})
    save_state(tmp_path, {"step": 2})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {STATE, PREVIOUS_STATE}

    class FullDisk:
        """torch.save makes an error of its own of the first, and of a writer that fails later none at all."""

        def __init__(self, file: Any, room: int) -> None:
            self.file, self.room = file, room

        def write(self, content: Any) -> int:
            self.room -= len(content)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written: int = self.file.write(content)
            return written

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    watched = writing._Watched
    for room in (0, 100, 2000):
        monkeypatch.setattr(writing, "_Watched", lambda file, room=room: watched(FullDisk(file, room)))
        with pytest.raises(OSError, match="No space left on device") as error:
            save_state(tmp_path, {"step": 3, "weights": torch.zeros(1000)})
        assert error.value.filename == str(tmp_path / STATE)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_state_is_recognized_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    path = tmp_path / STATE
    weights = torch.arange(1000.0)
    for step in (1, 2):
        save_state(tmp_path, {"step": step, "weights": weights})
    content = bytearray(path.read_bytes())
    content[content.find(weights.numpy().tobytes()) + 1000] ^= 1  # which torch.load does not notice
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[: len(content) // 2]))
    with pytest.warns(UserWarning, match=r"state\.pt.*previous"):
        assert load_state(tmp_path)["step"] == 1
    (tmp_path / PREVIOUS_STATE).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"state\.pt.*previous"):
        load_state(tmp_path)


def test_missing_and_damaged_states_are_named(tmp_path: Path) -> None:
    path = tmp_path / STATE
    with pytest.raises(CheckpointError, match=str(path)):
        load_state(tmp_path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=str(path)):
        load_state(tmp_path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match=str(path)):
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
    assert path.stat().st_mode & 0o044 == 0o044  # as the umask of the tests says
    assert not differing(state, networks.state_dict())
    batch = tiny_batch((1,))
    loaded, discriminator = load_model(path), load_discriminator(path)
    with torch.inference_mode():
        expected = networks.generator.eval()(batch, voxels="scored")
        found = loaded(batch, voxels="scored")
        assert torch.equal(found.voxel_logits, expected.voxel_logits)
        scores = networks.discriminator.eval()(expected.voxel_logits, expected.sites)
        assert torch.equal(discriminator(found.voxel_logits, found.sites), scores)


@pytest.mark.parametrize(("first", "second"), [("sparse", "sparse"), ("sparse", "dense"), ("dense", "sparse")])
def test_weights_of_a_run_start_another_whose_sites_may_differ(tmp_path: Path, first: str, second: str) -> None:
    networks, path = saved(tmp_path, 1, sites=first)
    others = networks_of(2, sites=second)
    initialize_from(others, path)
    given, taken = networks.state_dict(), others.state_dict()
    assert all(torch.equal(given[name], taken[name]) for name in given.keys() & taken.keys())
    own = taken.keys() - given.keys()
    assert len(own) == (2 if (first, second) == ("dense", "sparse") else 0)
    assert all((taken[name] == 0).all() for name in own)


def test_other_widths_and_fusions_are_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path, 1)
    others = networks_of(2, width=16, fusion="add")
    start = {name: value.clone() for name, value in others.state_dict().items()}
    with pytest.raises(WeightsError, match=r"model.width=8 model.fusion=modulation$") as error:
        initialize_from(others, path)
    assert str(path) in str(error.value)
    assert not differing(start, others.state_dict())


def test_frozen_encoders_come_from_a_network_with_other_inputs(tmp_path: Path) -> None:
    """Figure 2: the TSDF encoder of a multi-modal network under a new decoder."""
    networks, path = saved(tmp_path, 1)
    others = networks_of(2, inputs="tsdf", freeze_encoders=True)
    decoder, discriminator = state_of(others.generator.decoder), state_of(others.discriminator)
    initialize_from(others, path)
    assert networks.generator.tsdf_encoder is not None and others.generator.tsdf_encoder is not None
    assert not differing(state_of(networks.generator.tsdf_encoder), state_of(others.generator.tsdf_encoder))
    assert not differing(decoder, state_of(others.generator.decoder))
    assert not differing(discriminator, state_of(others.discriminator))
    with pytest.raises(WeightsError, match="label_map_stem"):
        initialize_from(networks_of(2, inputs="both", freeze_encoders=True), saved(tmp_path, 3, inputs="tsdf")[1])


def test_a_network_with_another_2d_input_takes_what_it_shares(tmp_path: Path) -> None:
    networks, path = saved(tmp_path, 1)
    others = networks_of(2, inputs="tsdf")
    before, discriminator = state_of(others.generator), state_of(others.discriminator)
    with pytest.warns(UserWarning, match=rf"{len(before)} .*{len(before)} "):
        initialize_from(others, path, only_shared=True)
    given, taken = networks.generator.state_dict(), others.generator.state_dict()
    assert all(torch.equal(given[name], value) for name, value in taken.items())
    assert not differing(discriminator, state_of(others.discriminator))
    with pytest.warns(UserWarning, match="decoder, label_map_stem"):
        initialize_from(networks_of(3), saved(tmp_path, 4, inputs="tsdf")[1], only_shared=True)
    foreign = tmp_path / "foreign.safetensors"
    save_weights(foreign, {"of.another": torch.zeros(2)}, model_config=networks.generator.config)
    with pytest.raises(WeightsError, match=r"foreign\.safetensors"):
        initialize_from(networks_of(2), foreign, only_shared=True)


def test_checkpoint_without_discriminator_leaves_it(tmp_path: Path) -> None:
    generator = networks_of(1).generator
    path = tmp_path / "converted.safetensors"
    save_weights(path, generator.state_dict(), model_config=generator.config)
    others = networks_of(2)
    discriminator = state_of(others.discriminator)
    initialize_from(others, path)
    assert not differing(discriminator, state_of(others.discriminator))
    assert not differing(state_of(generator), state_of(others.generator))


def test_weights_say_what_unobserved_space_was() -> None:
    counts = {"epoch": 1, "step": 2, "scores": None}
    assert UNOBSERVED not in run_metadata(Config(), [3, 2], **counts)  # type: ignore[arg-type]
    assert run_metadata(Config(), [3, 2], unobserved="surface", **counts)[UNOBSERVED] == "surface"  # type: ignore[arg-type]
    config = Config(data=DataConfig(dataset="nyucad"))
    tsdf = np.where(np.random.default_rng(0).random((12, 12, 12)) < 0.5, 0, 0.4)
    names: tuple[Unobserved, ...] = ("free", "surface")
    for unobserved in names:
        frame = dataclasses.replace(
            random_frame(1, grid_shape=(12, 12, 12)), tsdf=flip_tsdf(tsdf, unobserved=unobserved), tsdf_is_flipped=True
        )
        frames: Any = [Batch.from_frame(frame)]
        assert unobserved_in(frames, config) == unobserved
        assert unobserved_in(frames, Config()) is None


def test_scores_of_frames_that_were_trained_on_are_no_metadata() -> None:
    scores = scores_from_counts(torch.eye(12, dtype=torch.long), torch.eye(2, dtype=torch.long), frames=1)
    given: dict[str, Any] = {"epoch": 1, "step": 1, "scores": scores}
    kept = run_metadata(Config(), [3, 2], **given)
    assert kept["validation"] and json.loads(kept["validation_scores"])["frames"] == 1
    assert kept["data"].endswith("3 training and 2 validation frames")
    everything = run_metadata(config_from_dict({"data": {"train_on_all": True}}, source="test"), [3, 2], **given)
    assert not {"validation", "validation_scores"} & everything.keys()
    assert everything["data"].endswith("3 training and 2 validation frames, these among those")
