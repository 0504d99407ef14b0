"""The tools right after installation, with the shipped weights; and the tool that makes such weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ammnet_sparse.cli.main import run
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.grid import CLASS_NAMES, GRID_SHAPE
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import lists_in, read_weights, save_weights
from ammnet_sparse.models.weights.loading import load_model
from ammnet_sparse.models.weights.shipped import list_models
from ammnet_sparse.training.networks import build_networks
from tests.models.scenes import unsettle
from tests.training.support import GRID, tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "frame"
Tool = Callable[[list[str]], int]


def tool(name: str) -> Tool:
    return lambda arguments: run(name, ["--device", "cpu", *arguments])


def export(arguments: list[str]) -> int:
    return tool("export")(arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    networks = build_networks(tiny_config())
    unsettle(networks.generator)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    save_weights(path, networks.state_dict(), model_config=networks.generator.config, metadata={"epoch": "4"})
    return path


INPUTS = {
    "nyu_seg2d_w64": ["--color", "color.jpg", "--label-map", "label_map.png"],
    "nyu_rgb_w64": ["--color", "color.jpg"],
    "nyu_depth_w64": [],
}
"""What of the example beside its depth makes each of the shipped weights the default."""


ON_REQUEST = ["nyu_seg2d_w128"]
"""Shipped weights that are never the default."""


def test_all_shipped_weights_are_tested() -> None:
    assert sorted([*INPUTS, *ON_REQUEST]) == list_models()


def test_environment_lists_them_without_counting_epochs_of_earlier_trainings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The metadata knows the last training only; docs/models.md has those before it."""
    tool("environment")([])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights ")]
    assert [line.split()[1] for line in lines] == [f"{name}:" for name in list_models()]
    assert all("of their last training" in line and "validation SSC mIoU" in line for line in lines)


@pytest.mark.parametrize("name", INPUTS)
def test_predict_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The shipped networks see the floor of the shipped example where it is, and more than the floor."""
    files = [word if word.startswith("--") else str(EXAMPLE / word) for word in INPUTS[name]]
    given = [*files, "--depth", str(EXAMPLE / "depth.png"), "--intrinsics", str(EXAMPLE / "intrinsics.txt")]
    assert tool("predict")([*given, "--out", str(tmp_path)]) == 0
    assert f"Weights: {name}, " in capsys.readouterr().err
    with np.load(tmp_path / "frame.npz") as archive:
        labels, reliable = archive["labels"], archive["reliable"]
    assert labels.shape == GRID_SHAPE
    lowest = labels[:, 0][reliable[:, 0]]
    assert (lowest == CLASS_NAMES.index("floor")).mean() > 0.8
    assert len(np.unique(labels)) > 4


@pytest.mark.parametrize("name", [*INPUTS, *ON_REQUEST])
def test_evaluate_takes_shipped_weights_by_name(
    nyu_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / "scores.json"
    given = ["--data", str(nyu_folder), "--split", "val", "--limit", "2", "--json", str(file)]
    assert tool("evaluate")(["--checkpoint", name, *given]) == 0
    printed = capsys.readouterr().err
    assert f"Weights: {name}, " in printed and "'val'" not in printed
    assert json.loads(file.read_text(encoding="utf-8"))["sc"]["iou"] > 50


@pytest.mark.parametrize(
    ("metadata", "split", "is_said"),
    [
        ({"training_config": '{"data": {"split": "train", "train_on_all": true}}'}, "val", True),
        ({"training_config": '{"data": {"split": "train", "train_on_all": false}}'}, "val", False),
        ({"training_config": '{"data": {"split": "train", "train_on_all": false}}'}, "train", True),
        ({"training_config": '{"data": {"split": "train"}}', "trained_on": "train val"}, "val", True),
        ({}, "val", False),
        ({"training_config": "null"}, "val", False),
        ({"training_config": '{"data": []}'}, "val", False),
        ({"training_config": "{"}, "val", False),
    ],
)
def test_weights_know_the_frames_that_they_were_trained_on(metadata: dict[str, str], split: str, is_said: bool) -> None:
    assert (split in lists_in(metadata)) is is_said


def test_flips_at_test_time(trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(trained), "--data", str(root)]
    assert tool("evaluate")([*given, "--split", "val", "--flips", "4"]) == 0
    assert "best, 4 flips |" in capsys.readouterr().out
    found = []
    for name, more in (("plain", []), ("eight", ["--flips"])):
        assert tool("predict")([*given, "--ids", "0001", "--out", str(tmp_path / name), *more]) == 0
        with np.load(tmp_path / name / "0001.npz") as archive:
            found.append(archive["labels"])
    assert (found[0] != found[1]).any()


def test_a_mean_of_networks(trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    networks = build_networks(tiny_config(model={"width": 16}))
    unsettle(networks.generator)
    save_weights(other, networks.state_dict(), model_config=networks.generator.config)
    given = ["--checkpoint", str(trained), "--checkpoint", str(other), "--data", str(root)]
    assert tool("predict")([*given, "--ids", "0001", "--out", str(tmp_path)]) == 0
    assert tool("evaluate")([*given, "--split", "val"]) == 0
    assert "best + other |" in capsys.readouterr().out


def test_export_halves_and_keeps_the_rest(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "small.safetensors"
    given = ["--checkpoint", str(trained), "--out", str(out), "--data", str(root), "--ids", "0001", "0002"]
    assert export([*given, "--min-agreement", "0.99"]) == 0
    assert "float16" in (printed := capsys.readouterr().out) and "2 frames" in printed
    state, config, metadata = read_weights(out)
    original = read_weights(trained)[0]
    assert metadata == {"epoch": "4", "stored_as": "float16"} and config.grid_shape == GRID
    assert state.keys() == {name for name in original if not name.startswith("discriminator.")}
    for name, value in state.items():
        # Biases and normalization keep their float32.
        expected = original[name].half() if original[name].ndim > 1 else original[name]
        assert value.dtype == expected.dtype and torch.equal(value, expected)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.stat().st_mode & 0o044 == 0o044
    assert not load_model(out).training


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-mb", "0.001"), "expected at most 0.001 MB"),
        (("--min-agreement", "1.1"), "expected the checkpoint's class at 110.0000% of the voxels"),
    ],
)
def test_export_refuses_unfit_files(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "small.safetensors"
    assert export(["--checkpoint", str(trained), "--out", str(out), "--data", str(root), *more]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_half_precision_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = AMMNet(ModelConfig(width=8, stem_widths=(3, 8), grid_shape=GRID, discriminator_width=8))
    with torch.no_grad():
        network.decoder.classifier.weight.fill_(1e6)
    path = tmp_path / "wild.safetensors"
    save_weights(path, network.state_dict(), model_config=network.config)
    assert export(["--checkpoint", str(path), "--out", str(tmp_path / "small.safetensors")]) == 1
    assert "decoder.classifier.weight: " in capsys.readouterr().err


def test_export_refuses_another_ending_before_it_reads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "small.pth"
    assert export(["--checkpoint", str(tmp_path / "absent"), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"ammnet export: --out {out}: expected a name ending in .safetensors\n"
    assert list(tmp_path.iterdir()) == []
