"""The image network: SegFormer's backbone against recorded outputs, the head, freezing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import IMAGE_DEVIATION, IMAGE_MEAN
from ammnet_sparse.models.image_encoders import ENCODERS, ImageEncoder, encoder_class
from ammnet_sparse.models.image_encoders.efficientnet import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
from ammnet_sparse.models.image_encoders.encoder import ImageFeatures, ImageHead
from ammnet_sparse.models.image_encoders.segformer import published_to_timm, timm_to_published
from ammnet_sparse.models.image_encoders.timm_models import TimmEncoder
from ammnet_sparse.models.weights.backbones import load_backbone_weights
from ammnet_sparse.models.weights.checks import WeightsError
from tests.models.encoders import small_encoder

RECORDED = (
    (0.109721, 0.318488, 0.295032, 0.220144),
    (-0.162433, 0.210953, -0.276826, -0.247925),
    (0.009908, 0.300779, -0.243325, 0.522455),
    (-0.007843, 0.30195, 0.224134, 0.33144),
)
"""Mean, deviation, first and middle value of the four stages, from SegFormer's definition (its section 3.1)."""


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_the_backbone_is_that_of_segformer() -> None:
    """With weights by their published names; timm's layers must be those of the definition."""
    backbone = small_encoder().backbone
    shapes = {timm_to_published(name): value.shape for name, value in backbone.state_dict().items()}
    weights = {}
    for index, name in enumerate(sorted(shapes)):
        size = shapes[name].numel()
        wave = 0.3 * torch.linspace(index, index + size, size, dtype=torch.float64).sin()
        weights[published_to_timm(name)] = wave.view(shapes[name]).float()
    backbone.load_state_dict(weights, strict=True)
    image = (2 * torch.linspace(-2, 2, 3 * 72 * 100).view(1, 3, 72, 100)).sin()
    with torch.no_grad():
        stages = backbone.forward_intermediates(image, intermediates_only=True)
    for stage, expected in zip(stages, RECORDED, strict=True):
        values = stage.double().flatten()
        found = (values.mean(), values.std(), values[0], values[values.numel() // 2])
        assert [float(value) for value in found] == pytest.approx(expected, abs=1e-5)


def naive_head(head: ImageHead, stages: list[Tensor]) -> ImageFeatures:
    """The head as SegFormer describes it: upsample, concatenate, drop channels, fuse."""
    projections = (head.projection4, head.projection3, head.projection2, head.projection1)
    size = stages[0].shape[2:]
    upsampled = [
        F.interpolate(projection(stage.movedim(1, -1)).movedim(-1, 1), size=size, mode="bilinear", align_corners=False)
        for projection, stage in zip(projections, reversed(stages), strict=True)
    ]
    joined = head.dropout(torch.cat(upsampled, dim=1))
    features = F.relu(head.fuse_norm(head.fuse(joined)))
    return ImageFeatures(features, head.classifier(features))


@pytest.mark.parametrize(("is_training", "kind"), [(False, "element"), (True, "channel")])
def test_head_equals_concatenation(is_training: bool, kind: Literal["element", "channel"]) -> None:
    head = ImageHead((3, 4, 5, 6), width=8, num_classes=12, dropout=0.5, dropout_kind=kind)
    head = head.double().train(is_training)
    sizes = [(18, 25), (9, 13), (5, 7), (3, 4)]
    stages = [
        torch.randn(3, width, *size, dtype=torch.float64, requires_grad=True)
        for width, size in zip((3, 4, 5, 6), sizes, strict=True)
    ]
    results = []
    for run in (head, lambda stages: naive_head(head, stages)):
        torch.manual_seed(5)  # the same channels are dropped
        head.fuse_norm.reset_running_stats()
        output = run(stages)
        loss = (output.features**2).sum() + (output.class_logits**3).sum()
        gradients = torch.autograd.grad(loss, [*stages, *head.parameters()])
        results.append((output.features, output.class_logits, head.fuse_norm.running_var.clone(), *gradients))  # type: ignore[union-attr]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_backward_pass_drops_the_same_values() -> None:
    head = ImageHead((3, 4, 5, 6), width=8, num_classes=12, dropout=0.5)
    stages = [torch.randn(2, width, 16 // 2**index, 24 // 2**index) for index, width in enumerate((3, 4, 5, 6))]

    def plainly() -> Tensor:
        """The same draws in the same order, everything kept."""
        parts = []
        projections = (head.projection4, head.projection3, head.projection2, head.projection1)
        weights = head.fuse.weight.chunk(4, dim=1)
        for stage, projection, weight in zip(reversed(stages), projections, weights, strict=True):
            projected = projection(stage.movedim(1, -1)).movedim(-1, 1).contiguous()
            upsampled = F.interpolate(projected, size=(16, 24), mode="bilinear", align_corners=False)
            parts.append(F.conv2d(F.dropout(upsampled, 0.5), weight))
        return head.classifier(F.relu(head.fuse_norm(parts[0] + parts[1] + parts[2] + parts[3])))

    results = []
    for run in (lambda: head(stages).class_logits, plainly):
        torch.manual_seed(2)
        logits = run()
        results.append((logits, *torch.autograd.grad(logits.square().sum(), list(head.parameters()))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_wide_head_ends_in_the_networks_width() -> None:
    head = ImageHead((3, 4, 5, 6), width=16, num_classes=12, dropout=0.1, out_width=8).train()
    stages = [torch.randn(2, width, 16 // 2**index, 24 // 2**index) for index, width in enumerate((3, 4, 5, 6))]
    output = head(stages)
    assert output.features.shape == (2, 8, 16, 24) and output.class_logits.shape == (2, 12, 16, 24)
    assert float(output.features.detach().min()) >= 0
    (output.features.sum() + output.class_logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    as_wide = ImageHead((3, 4, 5, 6), width=8, num_classes=12, dropout=0.1, out_width=8)
    assert not any(name.startswith("reduce") for name in as_wide.state_dict())


def test_frozen_backbone_stays_in_evaluation_mode_without_gradients() -> None:
    encoder = small_encoder().train()
    assert encoder.training and encoder.head.training
    assert not any(module.training for module in encoder.backbone.modules())
    output = encoder(torch.randn(2, 3, 64, 96))
    (output.features.sum() + output.class_logits.square().sum()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in encoder.backbone.parameters())
    assert all(parameter.grad is not None for parameter in encoder.head.parameters())


def test_trained_backbone_gets_gradients_and_follows_train() -> None:
    encoder = small_encoder(is_frozen=False).train()
    assert all(module.training for module in encoder.backbone.modules())
    encoder(torch.randn(2, 3, 64, 96)).features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.backbone.parameters())
    assert not any(module.training for module in encoder.eval().modules())


def test_evaluation_is_deterministic_and_sizes_round_up() -> None:
    encoder = small_encoder().eval()
    image = torch.randn(1, 3, 70, 101)
    first, second = encoder(image), encoder(image)
    assert first.features.shape == (1, 8, 18, 26) and first.class_logits.shape == (1, 12, 18, 26)
    assert torch.equal(first.features, second.features) and torch.equal(first.class_logits, second.class_logits)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(1, 3, 28, 96),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(3, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    ],
)
def test_unusable_image_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match="image"):
        small_encoder()(image)


@pytest.mark.parametrize("kind", [name for name in ENCODERS if name != "seg2d"])
def test_published_sizes_build_and_load(kind: str, tmp_path: Path) -> None:
    config = ModelConfig(width=16, num_classes=7)
    encoder = ENCODERS[kind](config).eval()
    output = encoder(torch.randn(1, 3, 96, 128))
    assert output.features.shape == (1, 16, 24, 32) and output.class_logits.shape == (1, 7, 24, 32)
    assert torch.isfinite(output.class_logits).all() and output.features.std() > 0

    rename = timm_to_published if kind == "segformer_b2" else str
    path = tmp_path / "weights.pth"
    torch.save({rename(name): value for name, value in encoder.backbone.state_dict().items()}, path)
    again = ENCODERS[kind](config)
    assert load_backbone_weights(again, path) == ()
    for name, value in again.backbone.state_dict().items():
        assert torch.equal(value, encoder.backbone.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),  # for one size of image, channels last
        ("mvitv2_tiny", (96, 192, 384, 768)),
        ("mobilenetv3_small_050", (8, 16, 24, 288)),
    ],
)
def test_backbones_of_timm(name: str, widths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder = encoder_class(ModelConfig(width=16, image_encoder=f"timm:{name}"))(ModelConfig(width=16))
        assert isinstance(encoder, ImageEncoder) and encoder.stage_widths == widths
        assert encoder(torch.zeros(1, 3, 480, 640)).features.shape == (1, 16, 120, 160)
        published = timm.create_model(name).state_dict()
    own = {key for key_in_file in published if (key := encoder.timm_key(key_in_file)) is not None}
    assert own == encoder.backbone.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("timm:vit_tiny_patch16_224", "1/4 and 1/8 and 1/32"),
        ("timm:convnxt_tiny", "convnext_tiny"),
        ("timm:hf-hub:some/model", "image_encoder"),
        ("convnext_tiny", "timm:"),
    ],
)
def test_what_is_no_backbone_is_named(name: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        encoder_class(ModelConfig(image_encoder=name))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_is_timms(number: int) -> None:
    encoder = (EfficientNetLite0, EfficientNetLite1, EfficientNetLite2)[number]
    expected = timm.create_model(f"tf_efficientnet_lite{number}", features_only=True, out_indices=(1, 2, 3, 4))
    backbone = encoder.build_backbone()
    assert list(backbone.state_dict()) == list(expected.state_dict())
    backbone.load_state_dict(expected.state_dict())
    image = torch.randn(2, 3, 95, 128)
    for is_training in (True, False):
        found, wanted = backbone.train(is_training)(image), expected.train(is_training)(image)
        assert tuple(stage.shape[1] for stage in found) == encoder.stage_widths
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    sum(stage.sum() for stage in backbone(image)).backward()
    sum(stage.sum() for stage in expected(image)).backward()
    for one, other in zip(backbone.parameters(), expected.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)


def test_images_are_normalized_as_a_backbone_of_timm_expects_them() -> None:
    encoder = encoder_class(ModelConfig(image_encoder="timm:tf_efficientnet_lite0"))(ModelConfig(width=16))
    assert isinstance(encoder, TimmEncoder) and encoder.mean == (0.5, 0.5, 0.5)
    seen: list[Tensor] = []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.rand(1, 3, 64, 64)
    shape = (3, 1, 1)
    ours = (255 * pixels - torch.tensor(IMAGE_MEAN).view(shape)) / torch.tensor(IMAGE_DEVIATION).view(shape)
    encoder.eval().extract_stages(ours)
    torch.testing.assert_close(seen[0], 2 * pixels - 1)


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage_widths"):
        ImageHead((1, 2), width=8, num_classes=12, dropout=0.5)
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        load_backbone_weights(small_encoder(), tmp_path / "absent.pth")
