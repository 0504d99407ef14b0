"""Names of published weights, and files that do not fit."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.image_encoders import ImageEncoder, SegFormerB2
from ammnet_sparse.models.image_encoders.resnet import ResNet50
from ammnet_sparse.models.image_encoders.segformer import published_to_timm, timm_to_published
from ammnet_sparse.models.weights.backbones import load_backbone_weights, read_weights_file
from ammnet_sparse.models.weights.checks import WeightsError
from tests.models.encoders import small_encoder

DEPTHS, WIDTHS, REDUCTIONS = SegFormerB2.depths, SegFormerB2.stage_widths, SegFormerB2.reductions


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every name in the published mit_b2.pth but for the classifier, with its shape."""
    layers: dict[str, tuple[int, ...]] = {}
    for stage, (depth, width, reduction) in enumerate(zip(DEPTHS, WIDTHS, REDUCTIONS, strict=True), start=1):
        kernel, incoming = (7, 3) if stage == 1 else (3, WIDTHS[stage - 2])
        layers[f"patch_embed{stage}.proj"] = (width, incoming, kernel, kernel)
        layers[f"patch_embed{stage}.norm"] = (width,)
        for index in range(depth):
            block = f"block{stage}.{index}"
            layers[f"{block}.norm1"] = layers[f"{block}.norm2"] = (width,)
            layers[f"{block}.attn.q"] = layers[f"{block}.attn.proj"] = (width, width)
            layers[f"{block}.attn.kv"] = (2 * width, width)
            if reduction > 1:
                layers[f"{block}.attn.sr"] = (width, width, reduction, reduction)
                layers[f"{block}.attn.norm"] = (width,)
            layers[f"{block}.mlp.fc1"] = (4 * width, width)
            layers[f"{block}.mlp.dwconv.dwconv"] = (4 * width, 1, 3, 3)
            layers[f"{block}.mlp.fc2"] = (width, 4 * width)
        layers[f"norm{stage}"] = (width,)
    shapes = {}
    for layer, shape in layers.items():
        shapes[f"{layer}.weight"] = shape
        shapes[f"{layer}.bias"] = shape[:1]
    return shapes


def random_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Weights unlike those of any initialization, by timm's names."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.full_like(value, 7)
        for name, value in backbone.state_dict().items()
    }


def published_weights(encoder: ImageEncoder) -> dict[str, Tensor]:
    return {timm_to_published(name): value for name, value in random_weights(encoder.backbone).items()}


def huggingface_weights(encoder: ImageEncoder) -> dict[str, Tensor]:
    """The same under Hugging Face's names: stages counted from 0, key and value apart."""
    embedding = {"proj": "proj", "norm": "layer_norm"}
    renamed = {}
    for name, value in random_weights(encoder.backbone).items():
        layer, _, kind = name.rpartition(".")
        parts = layer.split(".")
        if parts[0] == "patch_embed":
            target = f"patch_embeddings.0.{embedding[parts[1]]}"
        elif parts[2] == "downsample":
            target = f"patch_embeddings.{parts[1]}.{embedding[parts[3]]}"
        elif parts[2] == "norm":
            target = f"layer_norm.{parts[1]}"
        else:
            target = (
                f"block.{parts[1]}.{parts[3]}."
                + {
                    "norm1": "layer_norm_1",
                    "norm2": "layer_norm_2",
                    "attn.q": "attention.self.query",
                    "attn.kv": "attention.self.KEY_OR_VALUE",
                    "attn.sr": "attention.self.sr",
                    "attn.norm": "attention.self.layer_norm",
                    "attn.proj": "attention.output.dense",
                    "mlp.fc1": "mlp.dense1",
                    "mlp.fc2": "mlp.dense2",
                    "mlp.dwconv": "mlp.dwconv.dwconv",
                }[".".join(parts[4:])]
            )
        full = f"segformer.encoder.{target}.{kind}"
        if "KEY_OR_VALUE" in full:
            half = value.shape[0] // 2
            renamed[full.replace("KEY_OR_VALUE", "key")] = value[:half].clone()
            renamed[full.replace("KEY_OR_VALUE", "value")] = value[half:].clone()
        else:
            renamed[full] = value
    return renamed


def assert_loaded(encoder: ImageEncoder) -> None:
    for name, expected in random_weights(encoder.backbone).items():
        torch.testing.assert_close(encoder.backbone.state_dict()[name], expected, rtol=0, atol=0, msg=name)


def test_published_names_are_those_of_timms_b2_with_the_same_shapes() -> None:
    with torch.device("meta"):
        backbone = SegFormerB2.build_backbone()
    renamed = {timm_to_published(name): tuple(value.shape) for name, value in backbone.state_dict().items()}
    assert renamed == published_shapes()
    assert len(renamed) == 332


@pytest.mark.parametrize("name", ["head.weight", "norm5.weight", "encoder.norm1.weight", "stages.0.norm.weight", ""])
def test_foreign_names_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        published_to_timm(name)
    if not name.startswith("stages"):
        with pytest.raises(WeightsError, match=name):
            timm_to_published(name)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "score", [np.float32(56.1), np.mean(np.array([56.1, 40.2])), np.array([1.0, 2.0]), np.int64(3), np.bool_(True)]
)
def test_numpy_scores_next_to_the_weights_are_read(tmp_path: Path, score: object, is_zip: bool) -> None:
    state = {"conv.weight": torch.ones(2)}
    checkpoint = {"model": state, "best_val": score}
    torch.save(checkpoint, tmp_path / "best.pth", _use_new_zipfile_serialization=is_zip)
    assert read_weights_file(tmp_path / "best.pth").keys() == state.keys()


def test_other_objects_next_to_the_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "best": np.array([Path()], dtype=object)}, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match="best.pth"):
        read_weights_file(tmp_path / "best.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": {f"module.encoder.{name}": value for name, value in weights.items()}},
        lambda weights: {"state_dict": OrderedDict((f"backbone.{name}", value) for name, value in weights.items())},
    ],
    ids=["plain", "state_dict", "model with module.encoder.", "state_dict with backbone."],
)
def test_published_file_is_loaded_and_the_classifier_listed(tmp_path: Path, wrap: Callable) -> None:
    encoder = small_encoder()
    head_before = {name: value.clone() for name, value in encoder.head.state_dict().items()}
    weights = published_weights(encoder) | {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    torch.save(wrap(weights), tmp_path / "mit.pth")
    unused = load_backbone_weights(encoder, tmp_path / "mit.pth")
    assert [".".join(name.split(".")[-2:]) for name in unused] == ["head.bias", "head.weight"]
    assert_loaded(encoder)
    for name, value in encoder.head.state_dict().items():
        assert torch.equal(value, head_before[name])


@pytest.mark.parametrize("prefix", ["segformer.encoder.", "encoder.", "module.segformer.encoder."])
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_huggingface_file_is_loaded(tmp_path: Path, ending: str, prefix: str) -> None:
    encoder = small_encoder()
    weights = {
        name.replace("segformer.encoder.", prefix): value.contiguous()
        for name, value in huggingface_weights(encoder).items()
    }
    weights["classifier.weight"] = torch.zeros(1000, 64)
    path = tmp_path / f"model.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    assert load_backbone_weights(encoder, path) == ("classifier.weight",)
    assert_loaded(encoder)


def test_timms_own_names_are_loaded(tmp_path: Path) -> None:
    encoder = small_encoder()
    safetensors.torch.save_file(random_weights(encoder.backbone), tmp_path / "mit.safetensors")
    assert load_backbone_weights(encoder, tmp_path / "mit.safetensors") == ()
    assert_loaded(encoder)


def test_resnet_file_is_loaded_with_or_without_counters(tmp_path: Path) -> None:
    encoder = ResNet50(ModelConfig(width=8))
    weights = random_weights(encoder.backbone) | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "resnet50.pth")
    assert load_backbone_weights(encoder, tmp_path / "resnet50.pth") == ("fc.bias", "fc.weight")
    assert_loaded(encoder)

    old = {name: value + 1 for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    load_backbone_weights(encoder, tmp_path / "old.pth")
    assert torch.equal(encoder.backbone.state_dict()["bn1.running_var"], old["bn1.running_var"])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"block3.1.attn.kv.bias": None}, "stages.2.blocks.1.attn.kv.bias"),
        ({"norm2.weight": torch.ones(17)}, "norm2.weight"),
        ({"norm2.weight": torch.full((16,), math.nan)}, "norm2.weight"),
        ({"norm2.weight": torch.ones(16).int()}, "norm2.weight"),
        ({"block1.1.norm1.weight": torch.ones(8)}, "block1.1.norm1"),
        ({"encoder.norm1.bias": torch.ones(8)}, "norm1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(
    tmp_path: Path, change: dict[str, Tensor | None], name: str
) -> None:
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    weights = {**published_weights(encoder), **change}
    torch.save({key: value for key, value in weights.items() if value is not None}, tmp_path / "mit_b2.pth")
    with pytest.raises(WeightsError, match=re.escape(name)) as raised:
        load_backbone_weights(encoder, tmp_path / "mit_b2.pth")
    assert "mit_b2.pth" in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [
        {"fc.weight": torch.ones(3)},
        {"state_dict": {"epoch": 3}},
        [torch.ones(3)],
        {"segformer.encoder.block.0.0.attention.self.key.bias": torch.ones(8)},  # without its value
    ],
    ids=["other names", "no tensors", "a list", "half a pair"],
)
def test_files_of_something_else_are_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        load_backbone_weights(small_encoder(), tmp_path / "other.pth")


class _Payload:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('executed')",))


def test_no_code_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": _Payload()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        read_weights_file(tmp_path / "bad.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors", "zip"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 damaged", "half", "folder", None])
def test_unreadable_files_are_named(tmp_path: Path, ending: str, content: bytes | str | None) -> None:
    path = tmp_path / f"damaged.{ending}"
    if content == "folder":
        path.mkdir()
    elif content == "half":
        torch.save({"norm1.weight": torch.ones(4096)}, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=path.name):
        read_weights_file(path)
