"""2D features of the color image: an ImageNet backbone and the four-layer head of SegFormer on its four stages.

Section 3.2 of the paper. Backbones are timm's and keep timm's names; ``weights/backbones.py`` reads published
weights into them.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ammnet_sparse.models.image_head import NUM_STAGES, ImageFeatures, ImageHead
from ammnet_sparse.models.weights.backbones import read_backbone_weights, read_weights_file

SMALLEST_IMAGE = 32
"""Pixels: the last stage is 1/32 of the image, and SegFormer's first attention reduces its keys to 1/32 too."""

if TYPE_CHECKING:
    from timm.models import EfficientNetFeatures
    from timm.models.pvt_v2 import PyramidVisionTransformerV2
    from timm.models.resnet import ResNet

    ImageBackbone = PyramidVisionTransformerV2 | ResNet | EfficientNetFeatures
else:
    ImageBackbone = nn.Module  # timm takes as long to import as PyTorch, so it is imported only to build a backbone
ImageEncoderKind = Literal["segformer_b2", "resnet50", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


class ImageEncoder(nn.Module):
    """A timm backbone with four stages (1/4 to 1/32 of the image) and the head on them.

    Frozen, the backbone has no gradients, stays in evaluation mode whatever ``train`` says, and keeps no
    activations. What the backward pass can recompute is the head.
    """

    def __init__(self, backbone: ImageBackbone, head: ImageHead, *, is_frozen: bool = True) -> None:
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
            image: [B, 3, h, w] floating point, normalized RGB, h and w at least 32.

        Raises:
            ValueError: an image of another shape or type.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < SMALLEST_IMAGE:
            raise ValueError(
                f"image: expected [B, 3, h, w] with h and w at least {SMALLEST_IMAGE}, found {list(image.shape)}"
            )
        if not image.is_floating_point():
            raise ValueError(f"image: expected normalized RGB in floating point, found {image.dtype}")
        from timm.models import EfficientNetFeatures

        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            if isinstance(self.backbone, EfficientNetFeatures):
                return cast(list[Tensor], self.backbone(image))
            # ResNet counts its stem as a stage: take the last four.
            stages = self.backbone.forward_intermediates(image, indices=NUM_STAGES, intermediates_only=True)
        return cast(list[Tensor], stages)

    def forward(self, image: Tensor) -> ImageFeatures:
        """2D features and class logits of normalized RGB images [B, 3, h, w]; errors as ``extract_stages``."""
        return self.join_stages(self.extract_stages(image))

    def join_stages(self, stages: Sequence[Tensor]) -> ImageFeatures:
        """The head's output for stages from ``extract_stages``, which may have been cached."""
        return self.head.recomputed(self.head, stages)


def build_segformer_backbone(
    *,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    widths: tuple[int, ...] = (64, 128, 320, 512),
    num_heads: tuple[int, ...] = (1, 2, 5, 8),
    reductions: tuple[int, ...] = (8, 4, 2, 1),
) -> "PyramidVisionTransformerV2":
    """SegFormer's Mix Transformer (MiT), by default B2, randomly initialized.

    timm has no MiT, but its PVT v2 with MLP ratio 4 throughout is one, the epsilons included: 1e-6 in the layer
    normalizations of blocks and stages, 1e-5 in those after patch embedding and key reduction.

    Args:
        depths: blocks per stage.
        widths: channels per stage.
        num_heads: attention heads per stage.
        reductions: edge in tokens of the square that becomes one key, per stage.
    """
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    return PyramidVisionTransformerV2(
        num_classes=0,
        depths=depths,
        embed_dims=widths,
        num_heads=num_heads,
        sr_ratios=reductions,
        mlp_ratios=(4.0,) * NUM_STAGES,
    )


def build_backbone(kind: ImageEncoderKind) -> ImageBackbone:
    """A randomly initialized backbone with four stages, at 1/4 to 1/32 of the image.

    Raises:
        ValueError: an unknown kind.
    """
    import timm

    if kind == "segformer_b2":
        return build_segformer_backbone()
    if kind == "resnet50":
        # Without classes and pooling it has exactly the weights of timm's features_only form, under the same names.
        return cast("ResNet", timm.create_model("resnet50", pretrained=False, num_classes=0, global_pool=""))
    if kind in get_args(ImageEncoderKind):
        backbone = timm.create_model(f"tf_{kind}", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
        return cast("EfficientNetFeatures", backbone)
    raise ValueError(f"kind: expected {' or '.join(map(repr, get_args(ImageEncoderKind)))}, found {kind!r}")


def build_image_encoder(
    *,
    kind: ImageEncoderKind,
    width: int,
    num_classes: int,
    dropout: float,
    is_frozen: bool,
    dropout_kind: Literal["element", "channel"] = "element",
    head_width: int | None = None,
) -> ImageEncoder:
    """The image network of configuration ``model.image_encoder``, randomly initialized.

    ``load_backbone_weights`` loads ImageNet weights, without which a frozen backbone is useless.

    Args:
        kind: the backbone.
        width: C, channels of the features.
        num_classes: classes of the 2D logits.
        dropout: probability of dropout in the head.
        is_frozen: the backbone is not trained.
        dropout_kind: what the head drops (``ImageHead``).
        head_width: channels in the head; None: ``width``.

    Raises:
        ValueError: an unknown kind.
    """
    backbone = build_backbone(kind)
    head = ImageHead(
        stage_widths(backbone),
        width=head_width or width,
        num_classes=num_classes,
        dropout=dropout,
        dropout_kind=dropout_kind,
        out_width=width,
    )
    return ImageEncoder(backbone, head, is_frozen=is_frozen)


def load_backbone_weights(encoder: ImageEncoder, path: str | Path) -> tuple[str, ...]:
    """Loads ImageNet weights into the backbone; the head is unchanged. Either all or nothing is loaded.

    Reads .safetensors, or .pth, .pt and .bin as ``torch.load(weights_only=True)`` does (no code is executed):
    ``mit_b2.pth`` as published, Hugging Face's nvidia/mit-b2, timm's or torchvision's resnet50; nested under
    'state_dict' or 'model' or not, with or without the prefixes ``module.``, ``encoder.``, ``segformer.``,
    ``backbone.``.

    Returns:
        The names in the file that are not part of the backbone (classifier heads), sorted.

    Raises:
        WeightsError: the file cannot be read, lacks a weight, has one of another shape or more than the backbone
            has, or has weights that are not finite. Names the file and the weights.
    """
    loaded = read_backbone_weights(encoder.backbone, path)
    # Only BatchNorm's counters may be missing, which evaluation does not read.
    encoder.backbone.load_state_dict(loaded.state_dict, strict=False)
    return loaded.unused_names


def load_encoder_weights(encoder: ImageEncoder, path: str | Path) -> bool:
    """Loads the backbone (``load_backbone_weights``), and the head from a file of ammnet train-encoder if it fits.

    A head fits if its widths and classes are the same; the layer that reduces its channels to the network's width is
    not part of that file and is unchanged.

    Returns:
        Whether the head was loaded.

    Raises:
        WeightsError: as ``load_backbone_weights``.
    """
    unused = load_backbone_weights(encoder, path)
    if not any(name.startswith(HEAD_PREFIX) for name in unused):
        return False
    expected = encoder.head.state_dict()
    found = {
        name.removeprefix(HEAD_PREFIX): value
        for name, value in read_weights_file(path).items()
        if name.startswith(HEAD_PREFIX)
    }
    needed = {name for name in expected if not name.startswith("reduce")}
    if found.keys() != needed or any(expected[name].shape != value.shape for name, value in found.items()):
        warnings.warn(
            f"{path}: its head has other widths or classes than this network's (model.head_width, model.num_classes) "
            "and is left out; the head starts untrained",
            UserWarning,
            stacklevel=2,
        )
        return False
    encoder.head.load_state_dict(found, strict=False)
    return True


HEAD_PREFIX = "head."
"""Prefix of the head's names in a file of ammnet train-encoder; the backbone's is ``backbone.``."""


def stage_widths(backbone: ImageBackbone) -> list[int]:
    """Channels of the four stages, finest first."""
    from timm.models import EfficientNetFeatures

    if isinstance(backbone, EfficientNetFeatures):
        return list(backbone.feature_info.channels())
    stages = cast(list[dict[str, int]], backbone.feature_info)[-NUM_STAGES:]
    return [stage["num_chs"] for stage in stages]
