"""Fine-tuning an image encoder on 2D segmentation: it learns, and the 3D network takes what it learnt."""

import dataclasses
import errno
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ammnet_sparse.config import Config, ConfigError, ModelConfig, load_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import FrameDataset, build_loader
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.image_folder import Truth2D
from ammnet_sparse.data.training_sets import open_encoder_datasets
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.image_encoders import ImageEncoder
from ammnet_sparse.models.image_encoders.efficientnet import EfficientNetLite0
from ammnet_sparse.models.weights.backbones import load_encoder_weights
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.training.encoder import (
    EncoderSettings,
    Scores2D,
    _window,
    class_weights,
    save_encoder,
    score_encoder,
    train_encoder,
)
from tests.data.frames import GRID, write_set

CPU = torch.device("cpu")


class TwoColors:
    """Small images whose color tells the class: red walls above, green floor below, a strip without label between."""

    ids = ["0001", "0002", "0003", "0004"]
    makes_batches = False

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        border = 24 + 8 * (index % 3)
        image = torch.tensor([2.0, -1.5, -1.5])[:, None, None].repeat(1, 64, 96)
        image[:, border:] = torch.tensor([-1.5, 2.0, -1.5])[:, None, None]
        truth = torch.full((64, 96), 3, dtype=torch.uint8)
        truth[border:] = 2
        truth[border - 4 : border + 4] = 255
        voxels = torch.zeros(1, 8, dtype=torch.uint8)
        return Batch(
            tsdf=torch.zeros(1, 1, 2, 2, 2),
            mapping=voxels.long(),
            label_weight=voxels.bool(),
            label=voxels,
            image=image[None],
            label_2d=truth[None],
            frame_ids=(self.ids[index],),
        )


@pytest.fixture
def frames() -> TwoColors:
    return TwoColors()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    write_set(root, ["0001", "0002"], has_image=True)
    return root


def small_encoder(*, width: int = 8, out_width: int | None = None, is_frozen: bool = False) -> ImageEncoder:
    torch.manual_seed(1)
    config = ModelConfig(width=out_width or width, head_width=width, head_dropout=0.1, freeze_image_encoder=is_frozen)
    return EfficientNetLite0(config)


@pytest.fixture(scope="module")
def trained() -> ImageEncoder:
    settings = EncoderSettings(epochs=20, batch_size=4, learning_rate=1e-2, ema_decay=0.5, backbone_rate=0.1)
    return train_encoder(small_encoder(), TwoColors(), settings, device=CPU)


def test_training_learns_the_classes(trained: ImageEncoder, frames: TwoColors) -> None:
    loader = build_loader(frames, batch_size=2, shuffle_seed=None, epoch=0, workers=0, drop_last=False)
    before = score_encoder(small_encoder(), loader, device=CPU)
    after = score_encoder(trained.train(), loader, device=CPU)
    assert after.accuracy > 0.8 > before.accuracy
    assert not trained.training
    assert "wall" in after.describe() and f"{100 * after.miou:.1f}" in after.describe()


def test_a_network_takes_backbone_and_head(trained: ImageEncoder, tmp_path: Path) -> None:
    encoder, path = trained.eval(), tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, metadata={"image_encoder": "efficientnet_lite0"}, dtype=torch.float16)
    assert path.stat().st_size < 7e6
    wider = small_encoder(width=8, out_width=16, is_frozen=True).eval()
    reduction = {name: value.clone() for name, value in wider.head.state_dict().items() if name.startswith("reduce")}
    assert load_encoder_weights(wider, path)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(wider(image).class_logits, encoder(image).class_logits, rtol=0.05, atol=0.05)
    assert all(wider.head.state_dict()[name].equal(value) for name, value in reduction.items())
    with pytest.warns(UserWarning, match=str(path)):
        assert not load_encoder_weights(small_encoder(width=12), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(encoder.backbone.state_dict(), tmp_path / "backbone.pth")
        assert not load_encoder_weights(small_encoder(width=12), tmp_path / "backbone.pth")


def test_weights_that_are_not_finite_are_neither_returned_nor_written(frames: TwoColors, tmp_path: Path) -> None:
    diverging = small_encoder()
    with torch.no_grad():
        diverging.backbone.get_parameter("conv_stem.weight")[0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"conv_stem\.weight"):
        train_encoder(diverging, frames, EncoderSettings(epochs=1, batch_size=4), device=CPU)
    large = small_encoder()
    with torch.no_grad():
        large.backbone.get_parameter("conv_stem.weight")[0, 0, 0, 0] = 1e5
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(FloatingPointError, match=r"backbone\.conv_stem\.weight"):
        save_encoder(path, large, metadata={}, dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    save_encoder(path, large, metadata={}, dtype=torch.float32)
    assert load_encoder_weights(small_encoder(), path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"before")

    def fill_the_disk(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(WeightsError, match=r"encoder\.safetensors"),
    ):
        patch.setattr(safetensors.torch, "save_file", fill_the_disk)
        save_encoder(path, small_encoder(), metadata={}, dtype=torch.float16)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_class_weights_follow_the_pixels(frames: TwoColors) -> None:
    counts = torch.zeros(12)
    for index in range(len(frames)):
        truth = frames[index].label_2d
        assert truth is not None
        counts += truth[truth != 255].long().bincount(minlength=12)
    frequency = counts / counts.sum()
    for balance in (0.0, 0.5, 1.0):
        weights = class_weights(frames, balance=balance)
        assert float((weights * frequency).sum()) == pytest.approx(1)
        assert float(weights[2] / weights[3]) == pytest.approx(float(frequency[3] / frequency[2]) ** balance, rel=1e-4)


def test_scores_count_labeled_pixels() -> None:
    confusion = torch.zeros(12, 12, dtype=torch.int64)
    confusion[2, 2], confusion[2, 3], confusion[3, 3], confusion[4, 0] = 6, 2, 4, 4
    scores = Scores2D.of(confusion)
    assert scores.accuracy == 10 / 16
    assert scores.iou[2] == 6 / 8 and scores.iou[3] == 4 / 6 and scores.iou[4] == 0 and math.isnan(scores.iou[5])
    assert scores.miou == pytest.approx((6 / 8 + 4 / 6 + 0) / 3)


@pytest.mark.parametrize(
    ("epochs", "seconds", "done", "begun"),
    [
        (2, 1e6, "4 steps of 2 images, 2 epochs", [0, 1]),
        (math.inf, 1e-3, "1 steps of 2 images, 1 epochs", [0]),
    ],
)
def test_epochs_and_time_bound_the_training(
    frames: TwoColors, epochs: float, seconds: float, done: str, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no frame is loaded after the last step."""
    lines: list[str] = []
    loaded: list[int] = []
    monkeypatch.setattr(TwoColors, "set_epoch", lambda self, epoch: loaded.append(epoch))
    settings = EncoderSettings(epochs=epochs, seconds=seconds, batch_size=2)
    train_encoder(small_encoder(), frames, settings, device=CPU, report=lines.append)
    assert lines[-1].startswith(done) and loaded == begun


def test_a_step_sees_a_window_of_the_images(frames: TwoColors) -> None:
    encoder, seen = small_encoder(), set[tuple[int, ...]]()
    encoder.register_forward_pre_hook(lambda module, arguments: seen.add(tuple(arguments[0].shape[2:])))
    train_encoder(encoder, frames, EncoderSettings(epochs=1, batch_size=2, crop=(32, 2000)), device=CPU)
    assert seen == {(32, 96)}


def test_windows_of_image_and_truth_are_the_same() -> None:
    image = torch.arange(480 * 640, dtype=torch.float32).view(1, 1, 480, 640).expand(2, 3, -1, -1)
    truth = torch.arange(480 * 640).view(1, 480, 640).expand(2, -1, -1)
    generator = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(20):
        part, labels = _window(image, truth, (100, 50), generator=generator)
        assert part.shape == (2, 3, 100, 50) and part[0, 0].long().equal(labels[1])
        corners.add(int(labels[0, 0, 0]))
    assert len(corners) > 10


def test_what_cannot_be_trained_is_refused(frames: TwoColors, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoder"):
        train_encoder(small_encoder(is_frozen=True), frames, EncoderSettings(), device=CPU)
    without = FrameDataset(FrameFolder(root, grid_shape=GRID), ["0001", "0002"])
    with pytest.raises(ValueError, match=r"data\.label_2d"):
        train_encoder(small_encoder(), without, EncoderSettings(), device=CPU)
    with pytest.raises(ConfigError, match=r"data\.label_2d"):
        open_encoder_datasets(_config(root, {"data.label_2d": ""}), device=CPU, limit=None)
    with pytest.raises(DataError, match="nowhere"):
        open_encoder_datasets(_config(root, {"data.label_2d": tmp_path / "nowhere"}), device=CPU, limit=None)
    (tmp_path / "some").mkdir()
    with pytest.raises(DataError, match="some"):
        open_encoder_datasets(_config(root, {"data.label_2d": tmp_path / "some"}), device=CPU, limit=None)
    for values in (np.full((480, 640), 12, dtype=np.uint8), np.zeros((48, 64), dtype=np.uint8), None):
        if values is None:
            (tmp_path / "some" / "0001.png").write_bytes(b"no png")
        else:
            Image.fromarray(values).save(tmp_path / "some" / "0001.png")
        with pytest.raises(DataError, match=r"0001\.png"):
            Truth2D(tmp_path / "some").read("0001")


def test_images_and_truth_of_a_batch_must_both_be_there(frames: TwoColors) -> None:
    batch: Batch = dataclasses.replace(frames[0], label_2d=None)
    with pytest.raises(ValueError, match="0001"):
        score_encoder(small_encoder(), [batch], device=CPU)


def _config(root: Path, keys: dict[str, Any]) -> Config:
    values = {
        "data.root": root,
        "data.validation_frames": 1,
        "model.image_encoder": "efficientnet_lite0",
        "model.grid_shape": "[12, 12, 12]",
        **keys,
    }
    return load_config(None, [f"{key}={value}" for key, value in values.items()])
