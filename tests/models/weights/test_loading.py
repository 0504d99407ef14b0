"""From a file to a network: round trip, both kinds of sites, files without a part or that do not fit."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.dense_reference.network import DenseAMMNet
from torch import Tensor

import ammnet_sparse
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.weights import loading
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import read_weights, save_weights
from ammnet_sparse.models.weights.loading import join_states, load_discriminator, load_model
from tests.models.scenes import assert_near, small_config, some_scene, unsettle


def saved_network(folder: Path, **changes: Any) -> tuple[Path, AMMNet]:
    torch.manual_seed(0)
    network, discriminator = AMMNet(small_config(**changes)), Discriminator(small_config(**changes))
    unsettle(network)
    path = folder / "network.safetensors"
    state = join_states(network.state_dict(), discriminator.state_dict())
    save_weights(path, state, model_config=network.config)
    return path, network.eval()


def logits_of(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(some_scene(2)).logits
    return logits


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_a_network_returns_from_its_file(sites: str, tmp_path: Path) -> None:
    path, network = saved_network(tmp_path, sites=sites)
    loaded = ammnet_sparse.load_model(path)
    assert isinstance(loaded, AMMNet) and loaded.config == network.config
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits_of(loaded), logits_of(network))


@pytest.mark.filterwarnings("error")
def test_the_discriminator_returns_from_the_same_file(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    loaded = ammnet_sparse.load_discriminator(path)
    assert not any(module.training for module in loaded.modules())
    stored = {name: value for name, value in read_weights(path)[0].items() if name.startswith("discriminator.")}
    assert stored.keys() == {f"discriminator.{name}" for name in loaded.state_dict()}
    assert all(torch.equal(stored[f"discriminator.{name}"], value) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        prediction = network(some_scene(2), voxels="scored")
        assert loaded(prediction.voxel_logits, prediction.sites).shape == (2, 1)
    save_weights(path, network.state_dict(), model_config=network.config)
    with pytest.raises(WeightsError, match="network.safetensors"):
        load_discriminator(path)


def test_dense_weights_on_sparse_sites_have_zero_state_projections(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path, sites="dense")
    with pytest.warns(UserWarning, match="network.safetensors"):
        loaded = load_model(path, sites="sparse")
    assert loaded.config.sites == "sparse"
    state = loaded.state_dict()
    added = state.keys() - network.state_dict().keys()
    assert added == {"decoder.state_projection.weight", "tsdf_encoder.state_projection.weight"}
    assert not any(state[name].any() for name in added)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert logits_of(loaded).isfinite().all()


def test_sparse_weights_on_dense_sites_give_the_dense_network(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    with pytest.warns(UserWarning, match="model.sites=sparse"):
        loaded = load_model(path, sites="dense")
    assert loaded.config.sites == "dense" and not any("state_projection" in name for name in loaded.state_dict())
    reference = DenseAMMNet(loaded.config).eval()
    kept = {name: value for name, value in network.state_dict().items() if "state_projection" not in name}
    reference.load_state_dict(kept)
    assert_near(logits_of(loaded), logits_of(reference), tolerance=1e-4, name="logits")


def test_a_missing_backbone_warns_and_a_missing_discriminator_does_not(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path, image_encoder="segformer_b2")
    absent = "image_encoder.backbone."
    state = {name: value for name, value in network.state_dict().items() if not name.startswith(absent)}
    save_weights(path, state, model_config=network.config)
    with pytest.warns(UserWarning, match="network.safetensors") as caught:
        loaded = load_model(path)
    assert len(caught) == 1
    assert torch.equal(loaded.decoder.classifier.weight, network.decoder.classifier.weight)


@pytest.mark.parametrize("name", ["decoder.classifier.weight", "tsdf_encoder.state_projection.weight"])
def test_files_that_lack_a_weight_are_refused(name: str, tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    state = {key: value for key, value in network.state_dict().items() if key != name}
    save_weights(path, state, model_config=network.config)
    with pytest.raises(WeightsError, match=f"network.safetensors.*{name}"):
        load_model(path)


def test_half_a_discriminator_is_damage(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    state = {name: value for name, value in read_weights(path)[0].items() if name != "discriminator.score.bias"}
    save_weights(path, state, model_config=network.config)
    with pytest.raises(WeightsError, match="network.safetensors"):
        load_discriminator(path)


def test_other_files_and_arguments_are_refused(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    with pytest.raises(
        WeightsError,
        match="absent.safetensors",
    ):
        load_model(tmp_path / "absent.safetensors")
    pickled = tmp_path / "network.pth"
    torch.save(network.state_dict(), pickled)
    with pytest.raises(WeightsError, match="network.pth"):
        load_model(pickled)
    save_weights(path, network.state_dict(), model_config=small_config(width=16))
    with pytest.raises(WeightsError, match="wrong shapes: "):
        load_model(path)
    with pytest.raises(ValueError, match="sites"):
        load_model(path, sites="all")  # type: ignore[arg-type]


BAD_VALUES = {
    "NaN": lambda value: value.fill_(math.nan),
    "beyond float32": lambda value: value.double().fill_(1e300),
    "int8": lambda value: value.to(torch.int8),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_weights_that_are_not_finite_floats_are_refused(kind: str, tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    name = "decoder.classifier.bias"
    state = network.state_dict()
    state[name] = BAD_VALUES[kind](state[name].clone())
    save_weights(path, state, model_config=network.config)
    with pytest.raises(WeightsError, match="network.safetensors"):
        load_model(path)


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    path, network = saved_network(tmp_path)
    state = network.state_dict()
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = -state[name]
    save_weights(path, state, model_config=network.config)
    with pytest.raises(WeightsError, match=name):
        load_model(path)


@pytest.mark.parametrize(
    "changes",
    [{"width": 1600}, {"width": 4 * 10**30}, {"discriminator_width": 40_000}, {"stem_widths": (10**12, 10**12)}],
)
def test_a_width_from_metadata_takes_no_memory(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, network = saved_network(tmp_path)
    save_weights(path, read_weights(path)[0], model_config=network.config.model_copy(update=changes))

    def only_without_memory(build: Callable[[ModelConfig], torch.nn.Module], config: ModelConfig) -> torch.nn.Module:
        assert torch.empty(0).device.type == "meta"
        return build(config)

    for network_class in (AMMNet, Discriminator):
        monkeypatch.setattr(loading, network_class.__name__, functools.partial(only_without_memory, network_class))
    load = load_discriminator if "discriminator_width" in changes else load_model
    with pytest.raises(WeightsError, match="network.safetensors"):
        load(path)


@pytest.mark.parametrize("device", ["tpu", "", "cuda:999", "xla", 3.5])
def test_an_unknown_device_is_refused_before_the_file_is_read(device: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device"):
        load_model(tmp_path / "absent.safetensors", device=device)
