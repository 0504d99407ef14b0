"""Runs of a network that reads color images: with features kept, and with images on the device."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

import ammnet_sparse
from ammnet_sparse.config import Config, ConfigError
from ammnet_sparse.data import training_sets
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.stage_dataset import StageDataset
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.image_encoders.efficientnet import EfficientNetLite0
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import save_weights
from ammnet_sparse.training import networks
from tests.training.support import make_run, tiny_config, tiny_image_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image_set(tmp_path_factory.mktemp("set"))


def config_of(root: Path, data: dict[str, Any], **model: Any) -> Config:
    return tiny_config(
        data={"root": str(root), "label_2d": str(root / "Label2D"), **data},
        model={
            "image_encoder": "efficientnet_lite0",
            "image_encoder_weights": str(root / "backbone.pth"),
            "head_width": 12,
            "head_dropout": 0.1,
            **model,
        },
        training={"epochs": 1, "batch_size": 2},
        adversarial={"enabled": False},
    )


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("data", [{"cache_features": True, "augment_2d": False}, {"on_device": True}], ids=str)
def test_a_run_with_images(root: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(config_of(root, data), tmp_path)
    assert isinstance(run.training_set, StageDataset if "cache_features" in data else DeviceDataset)
    before = {name: value.clone() for name, value in run.game.networks.generator.state_dict().items()}
    run.train()
    after = run.game.networks.generator.state_dict()
    frozen = [name for name in before if name.startswith("image_encoder.backbone.")]
    given = torch.load(root / "backbone.pth", weights_only=True)
    assert all(after[name].equal(given[name.removeprefix("image_encoder.backbone.")]) for name in frozen)
    trained = ("head.classifier.weight", "head.reduce.weight", "head.projection1.weight")
    assert all(not after[f"image_encoder.{name}"].equal(before[f"image_encoder.{name}"]) for name in trained)
    # The file holds the backbone: neither the weights it came from nor their package are needed.
    monkeypatch.setattr(EfficientNetLite0, "installed_weights", lambda _=None: pytest.fail("looked for a package"))
    loaded = ammnet_sparse.load_model(tmp_path / "last.safetensors")
    assert all(loaded.state_dict()[name].equal(value) for name, value in after.items())


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("keeps", ["cache_features", "on_device", "workers"])
def test_a_network_with_images_learns_from_one_with_label_maps(root: Path, keeps: str, tmp_path: Path) -> None:
    teacher = AMMNet(tiny_config().model)
    save_weights(tmp_path / "teacher.safetensors", teacher.state_dict(), model_config=teacher.config)
    values = config_of(root, {keeps: 0 if keeps == "workers" else True, "augment_2d": False, "label_maps": True})
    loss = values.loss.model_copy(update={"teachers": (str(tmp_path / "teacher.safetensors"),)})
    config = values.model_copy(update={"loss": loss})
    make_run(config, tmp_path / "run").train()
    steps = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(steps.splitlines()[0])["distillation"] > 0
    without = config.model_copy(update={"data": config.data.model_copy(update={"label_maps": False})})
    with pytest.raises(WeightsError, match=r"loss.teachers.*reads_label_map"):
        make_run(without, tmp_path / "other")
    with pytest.raises(ConfigError, match="data.label_maps"):
        config_of(root, {"label_maps": True, "augment_2d": True})


@pytest.mark.usefixtures("quick_pictures")
def test_a_run_with_a_backbone_of_timm(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts from timm's weights of the whole model, and the file that it writes needs nothing else."""
    given = timm.create_model("convnext_atto").state_dict()
    safetensors.torch.save_file(given, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(tmp_path / "model.safetensors"))
    config = config_of(root, {}, image_encoder="timm:convnext_atto", image_encoder_weights=None)
    run = make_run(config, tmp_path / "run")
    run.train()
    trained = run.game.generator.eval()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("looked for weights"))
    loaded = ammnet_sparse.load_model(tmp_path / "run" / "last.safetensors")
    assert loaded.image_encoder is not None
    backbone = loaded.image_encoder.backbone.state_dict()
    assert backbone["stages_3.blocks.1.mlp.fc2.weight"].equal(given["stages.3.blocks.1.mlp.fc2.weight"])
    batch = run.validation_set[0]
    with torch.no_grad():
        assert loaded(batch).voxel_logits.equal(trained(batch).voxel_logits)


def test_features_kept_predict_as_images_do(root: Path, tmp_path: Path) -> None:
    config = config_of(root, {"cache_features": True, "augment_2d": False, "augment_3d": False})
    run = make_run(config, tmp_path)
    network, kept = run.game.generator.eval(), run.training_set
    whole = training_sets.open_source(config)
    with torch.no_grad():
        from_stages = network(kept[0], voxels="scored")
        from_image = network(ammnet_sparse.Batch.from_frame(whole.read(kept.ids[0])), voxels="scored")
    assert from_stages.image_size == from_image.image_size == (480, 640)
    for found, expected in (
        (from_stages.voxel_logits, from_image.voxel_logits),
        (from_stages.class_logits_2d, from_image.class_logits_2d),
    ):
        assert found is not None and expected is not None
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_packaged_weights_are_asked_for_where_none_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def installed(_: object = None) -> Path:
        asked.append(1)
        return root / "backbone.pth"

    monkeypatch.setattr(EfficientNetLite0, "installed_weights", installed)
    config = config_of(root, {}, image_encoder_weights=None)
    built = networks.build_networks(config).generator.state_dict()
    given = torch.load(root / "backbone.pth", weights_only=True)
    assert asked == [1]
    assert all(built[f"image_encoder.backbone.{name}"].equal(value) for name, value in given.items())

    def missing(_: object = None) -> Path:
        raise WeightsError("efficientnet_lite0: expected the package")

    networks.build_networks(config_of(root, {}, image_encoder_weights=None, inputs="tsdf"))
    networks.build_networks(config, is_resumed=True)
    assert asked == [1]
    monkeypatch.setattr(EfficientNetLite0, "installed_weights", missing)
    with pytest.raises(WeightsError, match="efficientnet_lite0"):
        networks.build_networks(config)
