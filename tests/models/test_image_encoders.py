"""The image network: timm's backbone against SegFormer's published definition, the head, freezing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.image_encoders import ENCODERS
from ammnet_sparse.models.image_encoders.head import ImageFeatures, ImageHead
from ammnet_sparse.models.image_encoders.segformer import published_to_timm, timm_to_published
from ammnet_sparse.models.weights.backbones import load_backbone_weights
from ammnet_sparse.models.weights.errors import WeightsError
from tests.models.encoders import SmallSegFormer, small_encoder

DEPTHS, WIDTHS = SmallSegFormer.depths, SmallSegFormer.stage_widths
NUM_HEADS, REDUCTIONS = SmallSegFormer.num_heads, SmallSegFormer.reductions


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class EfficientAttention(nn.Module):
    """Multi-head attention to keys reduced by a strided convolution (SegFormer, section 3.1)."""

    def __init__(self, width: int, *, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, tokens: Tensor, rows: int) -> Tensor:
        reduced = tokens
        if hasattr(self, "sr"):
            reduced = self.norm(_to_tokens(self.sr(_to_map(tokens, rows))))
        key, value = self.kv(reduced).chunk(2, dim=-1)
        results = []
        heads = zip(*(part.chunk(self.num_heads, dim=-1) for part in (self.q(tokens), key, value)), strict=True)
        for query_head, key_head, value_head in heads:
            scores = query_head @ key_head.transpose(1, 2) / query_head.shape[-1] ** 0.5
            results.append(scores.softmax(dim=-1) @ value_head)
        out: Tensor = self.proj(torch.cat(results, dim=-1))
        return out


class MixFeedForward(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)})
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, rows: int) -> Tensor:
        hidden = self.dwconv["dwconv"](_to_map(self.fc1(tokens), rows))
        out: Tensor = self.fc2(F.gelu(_to_tokens(hidden)))
        return out


class MixBlock(nn.Module):
    def __init__(self, width: int, *, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EfficientAttention(width, num_heads=num_heads, reduction=reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFeedForward(width)

    def forward(self, tokens: Tensor, rows: int) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), rows)
        out: Tensor = tokens + self.mlp(self.norm2(tokens), rows)
        return out


class MixTransformerReference(nn.Module):
    """SegFormer's encoder by its definition, with the published names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        incoming = 3
        for index, width in enumerate(WIDTHS):
            kernel, stride = (7, 4) if index == 0 else (3, 2)
            embedding = nn.ModuleDict(
                {
                    "proj": nn.Conv2d(incoming, width, kernel, stride=stride, padding=kernel // 2),
                    "norm": nn.LayerNorm(width, eps=1e-5),
                }
            )
            blocks = [
                MixBlock(width, num_heads=NUM_HEADS[index], reduction=REDUCTIONS[index]) for _ in range(DEPTHS[index])
            ]
            self.add_module(f"patch_embed{index + 1}", embedding)
            self.add_module(f"block{index + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{index + 1}", nn.LayerNorm(width, eps=1e-6))
            incoming = width

    def forward(self, image: Tensor) -> list[Tensor]:
        stages = []
        features = image
        for stage in range(1, 5):
            embedding = self.get_submodule(f"patch_embed{stage}")
            projected = embedding["proj"](features)  # type: ignore[index]
            rows = projected.shape[2]
            tokens = embedding["norm"](_to_tokens(projected))  # type: ignore[index]
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, rows)
            features = _to_map(self.get_submodule(f"norm{stage}")(tokens), rows)
            stages.append(features)
        return stages


def _to_tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def _to_map(tokens: Tensor, rows: int) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (rows, -1))


@pytest.mark.parametrize("size", [(64, 96), (72, 100)])
def test_timms_backbone_is_segformers(size: tuple[int, int]) -> None:
    reference = MixTransformerReference()
    for parameter in reference.parameters():  # normalizations too, whose first weights hide a missing one
        parameter.data.normal_(std=0.2)
    backbone = small_encoder().backbone
    renamed = {published_to_timm(name): value for name, value in reference.state_dict().items()}
    backbone.load_state_dict(renamed, strict=True)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = reference(image)
        found = backbone.forward_intermediates(image, intermediates_only=True)
    for expected_stage, found_stage in zip(expected, found, strict=True):
        torch.testing.assert_close(
            found_stage, expected_stage, rtol=2e-6, atol=2e-6 * expected_stage.abs().max().item()
        )


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


class SameDropout(nn.Module):
    """In place of ``nn.Dropout``: drops the same single values of every stage, whenever it is called."""

    p = 0.5

    def forward(self, features: Tensor) -> Tensor:
        width = 8
        mask = torch.rand(1, width, *features.shape[2:], generator=torch.Generator().manual_seed(1)) > self.p
        return features * mask.repeat(1, features.shape[1] // width, 1, 1) / self.p


@pytest.mark.parametrize(
    ("is_training", "kind"), [(False, "element"), (False, "channel"), (True, "element"), (True, "channel")]
)
def test_head_equals_concatenation(is_training: bool, kind: Literal["element", "channel"]) -> None:
    head = ImageHead((3, 4, 5, 6), width=8, num_classes=12, dropout=0.5, dropout_kind=kind)
    head = head.double().train(is_training)
    if kind == "element" and is_training:
        head.dropout = SameDropout()  # type: ignore[assignment]
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


def test_backward_pass_drops_the_same_values_again() -> None:
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


def test_head_state_dict_has_the_documented_names_and_shapes() -> None:
    head = ImageHead((64, 128, 320, 512), width=256, num_classes=12, dropout=0.5)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {
        "fuse.weight": (256, 1024, 1, 1),
        "fuse_norm.num_batches_tracked": (),
        "classifier.weight": (12, 256, 1, 1),
        "classifier.bias": (12,),
    }
    expected |= {f"fuse_norm.{name}": (256,) for name in ("weight", "bias", "running_mean", "running_var")}
    for stage, width in enumerate((64, 128, 320, 512), start=1):
        expected |= {f"projection{stage}.weight": (256, width), f"projection{stage}.bias": (256,)}
    assert shapes == expected


def test_dropout_acts_in_training_only() -> None:
    head = ImageHead((2, 2, 2, 2), width=4, num_classes=3, dropout=1.0)
    stages = [torch.randn(2, 2, 8 // 2**index, 8 // 2**index) for index in range(4)]
    assert head.eval()(stages).features.std() > 0
    assert torch.equal(head.train()(stages).features, torch.zeros(2, 4, 8, 8))


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


def test_head_alone_can_be_recomputed() -> None:
    encoder = small_encoder().train()
    image = torch.randn(2, 3, 64, 96)
    backbone_runs: list[nn.Module] = []
    encoder.get_submodule("backbone.patch_embed").register_forward_pre_hook(
        lambda module, _: backbone_runs.append(module)
    )
    gradients = []
    for is_recomputed in (False, True):
        torch.manual_seed(3)
        stages = encoder.extract_stages(image)
        assert not any(stage.requires_grad for stage in stages)
        output = checkpoint(encoder.head, stages, use_reentrant=False) if is_recomputed else encoder.head(stages)
        gradients.append(torch.autograd.grad(output.class_logits.square().sum(), list(encoder.head.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)
    assert len(backbone_runs) == 2


def test_evaluation_is_deterministic_and_sizes_round_up() -> None:
    encoder = small_encoder().eval()
    image = torch.randn(1, 3, 70, 101)
    first, second = encoder(image), encoder(image)
    assert first.features.shape == (1, 8, 18, 26) and first.class_logits.shape == (1, 12, 18, 26)
    assert torch.equal(first.features, second.features) and torch.equal(first.class_logits, second.class_logits)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 28, 96), r"at least 32, found \[1, 3, 28, 96\]"),
        (torch.zeros(1, 1, 64, 64), r"found \[1, 1, 64, 64\]"),
        (torch.zeros(3, 64, 64), r"found \[3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point, found torch.uint8"),
    ],
)
def test_unusable_image_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
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


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage_widths"):
        ImageHead((1, 2), width=8, num_classes=12, dropout=0.5)
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        load_backbone_weights(small_encoder(), tmp_path / "absent.pth")
