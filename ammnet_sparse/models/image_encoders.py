"""2D features of the colour image: an ImageNet backbone and the four-layer head of SegFormer on its four stages.

Section 3.2 of the paper. Backbones are timm's and keep timm's names; ``weights/backbones.py`` reads published
weights into them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import timm
import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ammnet_sparse.models.weights.backbones import read_backbone_weights
from ammnet_sparse.sparse.blocks import Recomputable

NUM_STAGES = 4
SMALLEST_IMAGE = 32
"""Pixels: the last stage is 1/32 of the image, and SegFormer's first attention reduces its keys to 1/32 too."""


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """What the image network makes of an image [B, 3, h, w]; h/4 and w/4 are rounded up.

    Attributes:
        features: [B, C, h/4, w/4], not negative (they end in a ReLU), float32 or the type of autocast.
        class_logits: [B, num_classes, h/4, w/4], not normalised. For the 2D loss the consumer brings them to
            image size with align_corners true.
    """

    features: Tensor
    class_logits: Tensor


class ImageHead(Recomputable):
    """SegFormer's all-MLP head: projects four stages to one width, joins them at 1/4 image size and classifies.

    Concatenating the upsampled stages (order c4 c3 c2 c1) and applying ``fuse`` equals applying the slice of
    ``fuse`` that belongs to a stage at the stage's own size, upsampling the result and adding up, because a 1x1
    convolution without bias, bilinear interpolation and channel dropout commute. The head computes the latter:
    a third of the multiplications, and the concatenation of 4C channels at 1/4 image size never exists.

    Args:
        stage_widths: channels of the four stages, finest (1/4) first.
        width: C, channels of the features.
        num_classes: classes of the 2D logits.
        dropout: probability with which a channel of the concatenation is dropped for a sample.
    """

    def __init__(self, stage_widths: Sequence[int], *, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        if len(stage_widths) != NUM_STAGES:
            raise ValueError(
                f"ImageHead stage_widths: expected {NUM_STAGES} channel counts, found {list(stage_widths)}"
            )
        width1, width2, width3, width4 = stage_widths
        self.width = width
        self.projection1 = nn.Linear(width1, width)
        self.projection2 = nn.Linear(width2, width)
        self.projection3 = nn.Linear(width3, width)
        self.projection4 = nn.Linear(width4, width)
        self.dropout = nn.Dropout2d(dropout)
        self.fuse = nn.Conv2d(NUM_STAGES * width, width, kernel_size=1, bias=False)
        self.fuse_norm = nn.BatchNorm2d(width, momentum=0.1)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> ImageFeatures:
        """Joins stages c1 c2 c3 c4, each [B, channels, rows, columns], finest first; differentiable in all."""
        finest = stages[0]
        coarse_to_fine = (self.projection4, self.projection3, self.projection2, self.projection1)
        # One mask over the channels of the concatenation: the random numbers are those of dropout on it.
        channel_mask = self.dropout(finest.new_ones(finest.shape[0], NUM_STAGES * self.width, 1, 1))
        masks = channel_mask.chunk(NUM_STAGES, dim=1)
        fuse_weights = self.fuse.weight.chunk(NUM_STAGES, dim=1)

        parts = []
        for stage, projection, mask, weight in zip(reversed(stages), coarse_to_fine, masks, fuse_weights, strict=True):
            projected = F.conv2d(stage, projection.weight[:, :, None, None], projection.bias)
            if self.training and self.dropout.p > 0:
                projected = projected * mask.to(projected.dtype)  # autocast: the mask has the stages' type
            part = F.conv2d(projected, weight)
            if part.shape[2:] != finest.shape[2:]:
                part = F.interpolate(part, size=finest.shape[2:], mode="bilinear", align_corners=False)
            parts.append(part)

        features = F.relu(self.fuse_norm(parts[0] + parts[1] + parts[2] + parts[3]), inplace=True)
        return ImageFeatures(features=features, class_logits=self.classifier(features))


class ImageEncoder(nn.Module):
    """A timm backbone with four stages (1/4 to 1/32 of the image) and the head on them.

    Frozen, the backbone has no gradients, stays in evaluation mode whatever ``train`` says, and keeps no
    activations. What the backward pass can recompute is the head.
    """

    def __init__(
        self, backbone: PyramidVisionTransformerV2 | ResNet, head: ImageHead, *, is_frozen: bool = True
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.is_frozen = is_frozen
        if is_frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Sets training mode of the head, and of the backbone unless it is frozen."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def extract_stages(self, image: Tensor) -> list[Tensor]:
        """The backbone's four stages [B, channels, h/s, w/s], s = 4, 8, 16, 32, sizes rounded up.

        Args:
            image: [B, 3, h, w] floating point, normalised RGB, h and w at least 32.

        Raises:
            ValueError: an image of another shape or type.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < SMALLEST_IMAGE:
            raise ValueError(
                f"image: expected [B, 3, h, w] with h and w at least {SMALLEST_IMAGE}, found {list(image.shape)}"
            )
        if not image.is_floating_point():
            raise ValueError(f"image: expected normalised RGB in floating point, found {image.dtype}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            # ResNet counts its stem as a stage of its own: the last four are wanted of either.
            stages = self.backbone.forward_intermediates(image, indices=NUM_STAGES, intermediates_only=True)
        return cast(list[Tensor], stages)

    def forward(self, image: Tensor) -> ImageFeatures:
        """2D features and class logits of normalised RGB images [B, 3, h, w]; errors as ``extract_stages``."""
        stages = self.extract_stages(image)
        return self.head.recomputed(self.head, stages)


def build_segformer_backbone(
    *,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    widths: tuple[int, ...] = (64, 128, 320, 512),
    num_heads: tuple[int, ...] = (1, 2, 5, 8),
    reductions: tuple[int, ...] = (8, 4, 2, 1),
) -> PyramidVisionTransformerV2:
    """SegFormer's Mix Transformer (MiT), by default B2, randomly initialised.

    timm has no MiT, but its PVT v2 with MLP ratio 4 throughout is one, the epsilons included: 1e-6 in the layer
    normalisations of blocks and stages, 1e-5 in those after patch embedding and key reduction.

    Args:
        depths: blocks per stage.
        widths: channels per stage.
        num_heads: attention heads per stage.
        reductions: edge in tokens of the square that becomes one key, per stage.
    """
    return PyramidVisionTransformerV2(
        num_classes=0,
        depths=depths,
        embed_dims=widths,
        num_heads=num_heads,
        sr_ratios=reductions,
        mlp_ratios=(4.0,) * NUM_STAGES,
    )


def build_image_encoder(
    *,
    kind: Literal["segformer_b2", "resnet50"],
    width: int,
    num_classes: int,
    dropout: float,
    is_frozen: bool,
) -> ImageEncoder:
    """The image network of configuration ``model.image_encoder``, randomly initialised.

    ``load_backbone_weights`` gives the backbone its ImageNet weights; a frozen one means nothing without.

    Args:
        kind: the backbone.
        width: C, channels of the features.
        num_classes: classes of the 2D logits.
        dropout: probability of channel dropout in the head.
        is_frozen: the backbone is not trained.

    Raises:
        ValueError: an unknown kind.
    """
    backbone: PyramidVisionTransformerV2 | ResNet
    if kind == "segformer_b2":
        backbone = build_segformer_backbone()
    elif kind == "resnet50":
        # Without classes and pooling it has exactly the weights of timm's features_only form, under the same names.
        backbone = cast(ResNet, timm.create_model("resnet50", pretrained=False, num_classes=0, global_pool=""))
    else:
        raise ValueError(f"kind: expected 'segformer_b2' or 'resnet50', found {kind!r}")
    head = ImageHead(_stage_widths(backbone), width=width, num_classes=num_classes, dropout=dropout)
    return ImageEncoder(backbone, head, is_frozen=is_frozen)


def load_backbone_weights(encoder: ImageEncoder, path: str | Path) -> tuple[str, ...]:
    """Loads ImageNet weights into the backbone; the head is left as it is. Either all or nothing is loaded.

    Reads .safetensors, or .pth, .pt and .bin as ``torch.load(weights_only=True)`` does (no code is executed):
    ``mit_b2.pth`` as published, Hugging Face's nvidia/mit-b2, timm's or torchvision's resnet50; nested under
    'state_dict' or 'model' or not, with or without the prefixes ``module.``, ``encoder.``, ``segformer.``,
    ``backbone.``.

    Returns:
        The names in the file that are no part of the backbone (classifier heads), sorted.

    Raises:
        WeightsError: the file cannot be read, lacks a weight, has one of another shape or more than the backbone
            has, or has weights that are not finite. Names the file and the weights.
    """
    loaded = read_backbone_weights(encoder.backbone, path)
    # The only entries that may be lacking are BatchNorm's counters, which evaluation does not read.
    encoder.backbone.load_state_dict(loaded.state_dict, strict=False)
    return loaded.unused_names


def _stage_widths(backbone: PyramidVisionTransformerV2 | ResNet) -> list[int]:
    stages = cast(list[dict[str, int]], backbone.feature_info)[-NUM_STAGES:]
    return [stage["num_chs"] for stage in stages]
