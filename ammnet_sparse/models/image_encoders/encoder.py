"""2D features of the color image: an ImageNet backbone and the four-layer head of SegFormer on its four stages.

Section 3.2 of the paper. Backbones are timm's and keep timm's names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.image_encoders.head import ImageFeatures, ImageHead
from ammnet_sparse.models.inputs import project_to_sites
from ammnet_sparse.sparse.sites import SiteSet

SMALLEST_IMAGE = 32
"""Pixels: the last stage is 1/32 of the image, and SegFormer's first attention reduces its keys to 1/32 too."""


class ImageEncoder(nn.Module):
    """A backbone with four stages (1/4 to 1/32 of the image) and the head on them; a subclass names the backbone.

    Frozen, the backbone has no gradients, stays in evaluation mode whatever ``train`` says, and keeps no
    activations. What the backward pass can recompute is the head.

    Attributes:
        name: of the module in ``AMMNet`` and in files of weights.
        title: of the backbone, for messages.
        timm_name: the model that timm builds.
        stage_widths: channels of the four stages, finest first.
    """

    name: ClassVar[str] = "image_encoder"
    title: ClassVar[str]
    timm_name: ClassVar[str]
    stage_widths: ClassVar[tuple[int, int, int, int]]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = self.build_backbone()
        self.head = ImageHead(
            self.stage_widths,
            width=config.head_width or config.width,
            num_classes=config.num_classes,
            dropout=config.head_dropout,
            dropout_kind=config.dropout_kind,
            out_width=config.width,
        )
        self.is_frozen = config.freeze_image_encoder
        if self.is_frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    @classmethod
    def build_backbone(cls) -> nn.Module:
        """The backbone, randomly initialized."""
        import timm  # takes as long to import as PyTorch

        return timm.create_model(cls.timm_name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))

    @classmethod
    def installed_weights(cls) -> Path | None:
        """The file of ImageNet weights that an extra of this package installs; None if no extra has any.

        Raises:
            WeightsError: the extra is not installed, or its file is missing.
        """
        return None

    def timm_key(self, name: str) -> str | None:
        """timm's name of a weight of the backbone, from that in a published file; None if it is not part of it."""
        raise NotImplementedError

    @staticmethod
    def joined_weights(tensors: dict[str, Tensor], *, source: str | Path) -> dict[str, Tensor]:
        """The tensors of a published file, with those joined that the backbone keeps in one."""
        return tensors

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
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return self.run_backbone(image)

    def run_backbone(self, image: Tensor) -> list[Tensor]:
        """The backbone's four stages."""
        stages: list[Tensor] = self.backbone(image)
        return stages

    def forward(self, image: Tensor) -> ImageFeatures:
        """2D features and class logits of normalized RGB images [B, 3, h, w]; errors as ``extract_stages``."""
        return self.join_stages(self.extract_stages(image))

    def join_stages(self, stages: Sequence[Tensor]) -> ImageFeatures:
        """The head's output for stages from ``extract_stages``, which may have been cached."""
        return self.head.recomputed(self.head, stages)

    def encode(self, batch: Batch, *, dtype: torch.dtype) -> ImageFeatures:
        """2D features and class logits of a batch's images, or of their stages. Raises ValueError without either."""
        if batch.image_stages is not None:
            return self.join_stages([stage.to(dtype) for stage in batch.image_stages])
        if batch.image is None:
            raise ValueError(f"batch.image: the model reads color images ({self.title}), found none")
        encoded: ImageFeatures = self(batch.image.to(dtype))
        return encoded

    def features_at(self, batch: Batch, sites: SiteSet, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """F_R [N, C] at the sites, and class logits [B, num_classes, h/4, w/4] of the images."""
        encoded = self.encode(batch, dtype=dtype)
        return project_to_sites(encoded.features, batch, sites), encoded.class_logits
