"""``ammnet train-encoder``: a file that a network takes, and what is wrong said in a line."""

import math
from pathlib import Path

import pytest
import torch

from ammnet_sparse.cli import evaluate, train
from ammnet_sparse.cli import train_encoder as command
from ammnet_sparse.cli.train_encoder import main
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.image_encoders.efficientnet import EfficientNetLite0
from ammnet_sparse.models.weights.backbones import load_encoder_weights
from ammnet_sparse.models.weights.files import lists_trained_on
from tests.training.support import TINY_KEYS, tiny_image_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image_set(tmp_path_factory.mktemp("set"))


def keys(root: Path) -> list[str]:
    return [
        f"data.root={root}",
        f"data.label_2d={root / 'Label2D'}",
        "model.image_encoder=efficientnet_lite0",
        f"model.image_encoder_weights={root / 'backbone.pth'}",
        "model.head_width=12",
        "model.grid_shape=[12, 12, 12]",
    ]


def train_quickly(out: Path, *arguments: str) -> int:
    options = ["--epochs", "1", "--batch-size", "2", "--crop", "64", "64", "--device", "cpu"]
    return main(["--out", str(out), *options, *arguments])


def test_an_encoder_is_trained_scored_and_saved(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "encoder.safetensors"
    options = ["--out", str(out), "--epochs", "1", "--batch-size", "2", "--device", "cpu"]
    assert main([*options, *keys(root)]) == 0
    said = capsys.readouterr().out
    assert "1 steps of 2 images, 1 epochs" in said and "1 validation frames: 2D mIoU" in said
    encoder = EfficientNetLite0(ModelConfig(width=8, head_width=12))
    assert load_encoder_weights(encoder, out)
    given = torch.load(root / "backbone.pth", weights_only=True)
    assert not encoder.backbone.state_dict()["conv_stem.weight"].equal(given["conv_stem.weight"])


@pytest.mark.usefixtures("quick_pictures")
def test_networks_on_an_encoder_trained_on_val_say_so(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, run = tmp_path / "encoder.safetensors", tmp_path / "run"
    assert train_quickly(encoder, *keys(root), "data.train_on_all=true") == 0
    network = [*TINY_KEYS, "adversarial.enabled=false", "training.epochs=1", f"model.image_encoder_weights={encoder}"]
    with pytest.warns(UserWarning, match=r"encoder\.safetensors"):
        assert train.main(["--out", str(run), "--device", "cpu", *keys(root), *network]) == 0
    assert lists_trained_on(run / "best.safetensors") == {"train", "val"}
    encoder.unlink()  # the state has its weights
    assert train.main(["--resume", str(run), "--device", "cpu", "training.epochs=2"]) == 0
    assert lists_trained_on(run / "last.safetensors") == {"train", "val"}
    scored = ["--checkpoint", str(run / "last.safetensors"), "--data", str(root), "--device", "cpu"]
    capsys.readouterr()
    assert evaluate.main([*scored, "--split", "val"]) == 0
    assert "'val'" in capsys.readouterr().err


def test_an_existing_file_is_replaced_only_on_request(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "best.safetensors"
    out.write_bytes(b"weights of a run")
    monkeypatch.setattr(command, "open_encoder_datasets", lambda *_, **__: pytest.fail("work was done"))
    assert train_quickly(out, *keys(root)) == 2
    said = capsys.readouterr().err
    assert f"--out {out}: " in said and "--overwrite" in said
    assert out.read_bytes() == b"weights of a run"
    monkeypatch.undo()
    assert train_quickly(out, *keys(root), "--learning-rate", "1e12", "--overwrite") == 1
    assert out.read_bytes() == b"weights of a run"
    assert train_quickly(out, *keys(root), "--overwrite") == 0
    assert lists_trained_on(out) == {"train"}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "epochs", "seconds"),
    [
        ([], 20, None),
        (["--epochs", "3"], 3, None),
        (["--seconds", "5"], math.inf, 5),
        (["--seconds", "5", "--epochs", "20"], 20, 5),
    ],
)
def test_the_training_ends_after_epochs_or_seconds(options: list[str], epochs: float, seconds: float | None) -> None:
    found = command._parse(["--out", "encoder.safetensors", *options])
    assert (found.epochs, found.seconds) == (epochs, seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.label_2d="], "data.label_2d: "),
        (["model.image_encoder=seg2d"], "model.image_encoder: "),
        (["--out", "encoder.pth"], "--out encoder.pth: "),
        (["model.image_encoder=resnet50", "model.image_encoder_weights="], "model.image_encoder_weights: "),
    ],
)
def test_wrong_usage(
    root: Path, change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "e.safetensors"), "--device", "cpu", *keys(root), *change]) == 2
    assert message in capsys.readouterr().err
