"""The weights that come with the package: found by name, small, and a float32 network when loaded."""

from pathlib import Path

import pytest
import torch

import ammnet_sparse
from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.models.weights.shipped import (
    DEFAULT_WEIGHTS,
    FOLDER,
    chosen_weights,
    find_weights,
    is_shipped,
    shipped_names,
)


def test_shipped_weights_are_small_and_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert DEFAULT_WEIGHTS in shipped_names()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12e6
    assert find_weights(DEFAULT_WEIGHTS) == FOLDER / f"{DEFAULT_WEIGHTS}.safetensors"
    # A file of the user's comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_WEIGHTS).touch()
    assert not is_shipped(DEFAULT_WEIGHTS)
    assert find_weights(DEFAULT_WEIGHTS) == Path(DEFAULT_WEIGHTS)


@pytest.mark.parametrize("name", ["nyu_seg2d_w33", "folder/none.safetensors"])
def test_unknown_names_are_explained(name: str) -> None:
    with pytest.raises(WeightsError, match=f"^{name}: expected .*the name of shipped ones .*{DEFAULT_WEIGHTS}"):
        find_weights(name)


def test_half_precision_files_make_float32_networks() -> None:
    state, config, _ = read_weights(find_weights(DEFAULT_WEIGHTS))
    assert {value.dtype for value in state.values() if value.ndim > 1} == {torch.float16}
    assert not any(name.startswith("discriminator.") for name in state)
    network = ammnet_sparse.load_model(DEFAULT_WEIGHTS)
    assert config == network.config and not network.training
    loaded = network.state_dict()
    assert {value.dtype for value in loaded.values() if value.is_floating_point()} == {torch.float32}
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in state.items())


def test_what_was_chosen_is_said(tmp_path: Path) -> None:
    path, line = chosen_weights(None, dataset="nyu")
    assert path == find_weights(DEFAULT_WEIGHTS)
    assert DEFAULT_WEIGHTS in line and "no --checkpoint given" in line and "docs/models.md" in line
    assert "no --checkpoint" not in chosen_weights(DEFAULT_WEIGHTS, dataset="nyucad")[1]
    own = tmp_path / "own.safetensors"
    own.touch()
    assert chosen_weights(own, dataset="nyu") == (own, f"Weights: {own}")
    with pytest.raises(WeightsError, match="--checkpoint: expected weights trained on nyucad"):
        chosen_weights(None, dataset="nyucad")
