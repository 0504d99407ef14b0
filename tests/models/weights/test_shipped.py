"""The weights that come with the package: found by name, small, and a float32 network when loaded."""

from pathlib import Path

import pytest
import torch

import ammnet_sparse
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights import shipped
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.models.weights.shipped import (
    DEFAULT_WEIGHTS,
    FOLDER,
    Input2D,
    chosen_weights,
    find_weights,
    is_shipped,
    list_models,
)


def test_shipped_weights_are_small_and_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert DEFAULT_WEIGHTS in list_models()
    limits = {"nyu_rgb_w64": 16e6, "nyu_depth_w64": 3e6}
    limits |= dict.fromkeys(("nyu_seg2d_w64", "nyu_seg2d_w128"), 12e6)
    assert list_models() == sorted(limits)
    assert all((FOLDER / f"{name}.safetensors").stat().st_size <= limit for name, limit in limits.items())
    assert find_weights(DEFAULT_WEIGHTS) == FOLDER / f"{DEFAULT_WEIGHTS}.safetensors"
    # A file of the user's comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_WEIGHTS).touch()
    assert not is_shipped(DEFAULT_WEIGHTS)
    assert find_weights(DEFAULT_WEIGHTS) == Path(DEFAULT_WEIGHTS)


def test_half_precision_files_make_float32_networks() -> None:
    state, config, _ = read_weights(find_weights(DEFAULT_WEIGHTS))
    assert {value.dtype for value in state.values() if value.ndim > 1} == {torch.float16}
    assert not any(name.startswith("discriminator.") for name in state)
    network = ammnet_sparse.load_model(DEFAULT_WEIGHTS)
    assert config == network.config and not network.training
    assert AMMNet.from_pretrained(DEFAULT_WEIGHTS).config == config
    loaded = network.state_dict()
    assert {value.dtype for value in loaded.values() if value.is_floating_point()} == {torch.float32}
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in state.items())


@pytest.mark.parametrize(
    ("there", "given", "expected"),
    [
        (("nyu_seg2d_w64", "nyu_rgb_w64", "nyu_depth_w64"), "label map", "nyu_seg2d_w64"),
        (("nyu_seg2d_w64", "nyu_rgb_w64", "nyu_depth_w64"), "color image", "nyu_rgb_w64"),
        (("nyu_seg2d_w64", "nyu_rgb_w64", "nyu_depth_w64"), "depth alone", "nyu_depth_w64"),
        (("nyu_seg2d_w64", "nyu_depth_w64"), "color image", "nyu_depth_w64"),
        (("nyu_seg2d_w64",), "color image", "nyu_seg2d_w64"),
        (("nyu_seg2d_w64", "nyu_rgb_w64"), None, "nyu_seg2d_w64"),
    ],
)
def test_weights_follow_the_2d_input(
    there: tuple[str, ...], given: Input2D | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    for name in there:
        (tmp_path / f"{name}.safetensors").touch()
    path, line = chosen_weights(None, dataset="nyu", given=given)
    assert path == tmp_path / f"{expected}.safetensors" and expected in line
    assert given is None or given in line
    named, line = chosen_weights(there[-1], dataset="nyu", given=given)
    assert named.stem == there[-1] and "--checkpoint" not in line


def test_the_chosen_weights_are_reported(tmp_path: Path) -> None:
    path, line = chosen_weights(None, dataset="nyu")
    assert path == find_weights(DEFAULT_WEIGHTS)
    assert DEFAULT_WEIGHTS in line and "--checkpoint" in line
    assert "--checkpoint" not in chosen_weights(DEFAULT_WEIGHTS, dataset="nyucad")[1]
    own = tmp_path / "own.safetensors"
    own.touch()
    assert chosen_weights(own, dataset="nyu")[0] == own
    with pytest.raises(WeightsError, match="--checkpoint"):
        chosen_weights(None, dataset="nyucad")
