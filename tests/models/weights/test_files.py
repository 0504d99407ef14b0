"""Weight files are read back as written, and all others are refused."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import load_into, read_weights, save_weights

CONFIG = ModelConfig(width=8, grid_shape=(12, 12, 12), fusion="cbam", image_encoder_weights=Path("somewhere.pth"))


def test_weights_configuration_and_metadata_return(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {**network.state_dict(), "0.weight": network[0].weight.T.contiguous().T}
    save_weights(path, state, model_config=CONFIG, metadata={"epoch": "3"})
    found, config, metadata = read_weights(path)
    assert config == CONFIG.model_copy(update={"image_encoder_weights": None})
    assert metadata == {"epoch": "3"}
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.items())
    assert [file.name for file in tmp_path.iterdir()] == ["network.safetensors"]


def test_saving_refuses_other_endings_reserved_keys_and_absent_folders(tmp_path: Path) -> None:
    state = {"weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match="network.pth"):
        save_weights(tmp_path / "network.pth", state, model_config=CONFIG)
    with pytest.raises(WeightsError, match="format"):
        save_weights(tmp_path / "a.safetensors", state, model_config=CONFIG, metadata={"format": "other"})
    with pytest.raises(WeightsError, match="a.safetensors"):
        save_weights(tmp_path / "absent" / "a.safetensors", state, model_config=CONFIG)


def test_reading_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    with pytest.raises(WeightsError, match="network.safetensors"):
        read_weights(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="network.safetensors"):
        read_weights(path)
    state = {"weight": torch.zeros(1)}
    safetensors.torch.save_file(state, path)
    with pytest.raises(WeightsError, match="format"):
        read_weights(path)
    for config, name in (
        ("{", "network.safetensors"),
        (json.dumps({"width": 8, "depth": 3}), "depth"),
        (json.dumps({"width": 7}), "width"),
    ):
        safetensors.torch.save_file(state, path, metadata={"format": "ammnet_sparse", "config": config})
        with pytest.raises(WeightsError, match=name):
            read_weights(path)


def test_loading_checks_everything_before_it_changes_anything() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wrong = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(3), "2.bias": torch.ones(2)}
    with pytest.raises(WeightsError) as caught:
        load_into(network, wrong, source="some.file")
    message = str(caught.value)
    assert all(name in message for name in ("some.file", "1.weight", "1.bias", "2.bias", "0.bias"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    load_into(network, {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)}, source="some.file", may_lack=["1"])
    assert torch.equal(network[0].bias, torch.ones(4))
