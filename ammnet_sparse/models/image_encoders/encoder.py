"""2D features of the color image: an ImageNet backbone and the four-layer head of SegFormer on its four stages.

Section 3.2 of the paper. Weights of backbones have timm's names.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.ops import fill_empty, project_features
from ammnet_sparse.sparse.blocks import Recomputable
from ammnet_sparse.sparse.kernel_maps import neighbor_rows
from ammnet_sparse.sparse.recipes import no_recipes
from ammnet_sparse.sparse.sites import SiteSet

NUM_STAGES = 4
SMALLEST_IMAGE = 32
"""Pixels: the last stage is 1/32 of the image, and SegFormer's first attention reduces its keys to 1/32 too."""


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """Output of the image network for an image [B, 3, h, w]; h/4 and w/4 are rounded up.

    Attributes:
        features: [B, C, h/4, w/4], not negative (they end in a ReLU), float32 or the type of autocast.
        class_logits: [B, num_classes, h/4, w/4], not normalized. For the 2D loss the caller resizes them to
            image size with align_corners true.
    """

    features: Tensor
    class_logits: Tensor


class ImageEncoder(nn.Module):
    """A backbone with four stages (1/4 to 1/32 of the image) and the head on them; a subclass names the backbone.

    Frozen, the backbone has no gradients, stays in evaluation mode whatever ``train`` says, and keeps no
    activations. What the backward pass can recompute is the head.

    Attributes:
        name: of the module in ``AMMNet`` and in files of weights.
        title: of the backbone, for messages.
        stage_widths: channels of the four stages, finest first.
    """

    name: ClassVar[str] = "image_encoder"
    title: ClassVar[str]
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
        """The backbone, randomly initialized. timm, slow to import, is imported only here."""
        raise NotImplementedError

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
        """The tensors of a published file; those that the backbone keeps as one tensor are joined."""
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


def project_to_sites(features: Tensor, batch: Batch, sites: SiteSet) -> Tensor:
    """2D features [B, C, rows / 4, columns / 4] at the mapped pixel of each site, empty channels filled -> [N, C]."""
    pixel = batch.mapping.flatten().index_select(0, sites.linear)
    projected = project_features(features, pixel, sites.batch_index, image_size=batch.image_shape)
    return fill_empty(projected, neighbor_rows(sites))


class ImageHead(Recomputable):
    """SegFormer's all-MLP head: projects four stages to one width, joins them at 1/4 image size and classifies.

    The concatenation of the upsampled stages (order c4 c3 c2 c1) is never built: the slice of ``fuse`` belonging to a
    stage is applied to that stage alone, and the results are added up. Without dropout, and with that of whole
    channels, the slice is applied at the stage's own size, before upsampling: a 1x1 convolution without bias, bilinear
    interpolation and channel dropout commute, and this takes a third of the multiplications. Dropout of single elements
    does not commute. Then each stage is upsampled, dropped from and convolved in turn, and the backward pass recomputes
    the upsampled stage and its mask; only the stage at its own size is kept.

    Args:
        stage_widths: channels of the four stages, finest (1/4) first.
        width: channels that the stages are projected to and joined in; the classifier reads them.
        num_classes: classes of the 2D logits.
        dropout: probability with which a value of the concatenation is dropped.
        dropout_kind: ``element`` drops values one by one, ``channel`` whole channels of a sample.
        out_width: C, channels of the features, reduced by a 1x1 convolution, BN and ReLU; None: ``width``.
    """

    def __init__(
        self,
        stage_widths: Sequence[int],
        *,
        width: int,
        num_classes: int,
        dropout: float,
        dropout_kind: Literal["element", "channel"] = "element",
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        if len(stage_widths) != NUM_STAGES:
            raise ValueError(
                f"ImageHead stage_widths: expected {NUM_STAGES} channel counts, found {list(stage_widths)}"
            )
        width1, width2, width3, width4 = stage_widths
        self.width = width
        self.drops_channels = dropout_kind == "channel"
        self.projection1 = nn.Linear(width1, width)
        self.projection2 = nn.Linear(width2, width)
        self.projection3 = nn.Linear(width3, width)
        self.projection4 = nn.Linear(width4, width)
        self.dropout: nn.Dropout | nn.Dropout2d = nn.Dropout2d(dropout) if self.drops_channels else nn.Dropout(dropout)
        self.fuse = nn.Conv2d(NUM_STAGES * width, width, kernel_size=1, bias=False)
        self.fuse_norm = nn.BatchNorm2d(width, momentum=0.1)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        has_reduction = out_width is not None and out_width != width
        self.reduce = nn.Conv2d(width, out_width or width, kernel_size=1, bias=False) if has_reduction else None
        self.reduce_norm = nn.BatchNorm2d(out_width or width, momentum=0.1) if has_reduction else None

    def forward(self, stages: Sequence[Tensor]) -> ImageFeatures:
        """Joins stages c1 c2 c3 c4, each [B, channels, rows, columns], finest first; differentiable in all."""
        coarse_to_fine = (self.projection4, self.projection3, self.projection2, self.projection1)
        fuse_weights = self.fuse.weight.chunk(NUM_STAGES, dim=1)
        channel_masks = self._channel_masks(stages[0])
        size = (stages[0].shape[2], stages[0].shape[3])

        parts = []
        for index, (stage, projection) in enumerate(zip(reversed(stages), coarse_to_fine, strict=True)):
            projected = F.conv2d(stage, projection.weight[:, :, None, None], projection.bias)
            weight = fuse_weights[index]
            if self.training and self.dropout.p > 0 and not self.drops_channels:
                parts.append(self._dropped_part(projected, weight, size))
                continue
            if channel_masks is not None:
                projected = projected * channel_masks[index].to(projected.dtype)  # autocast: the stages' type
            parts.append(_upsampled(F.conv2d(projected, weight), size))

        joined = F.relu(self.fuse_norm(parts[0] + parts[1] + parts[2] + parts[3]), inplace=True)
        features = joined
        if self.reduce is not None and self.reduce_norm is not None:
            features = F.relu(self.reduce_norm(self.reduce(joined)), inplace=True)
        return ImageFeatures(features=features, class_logits=self.classifier(joined))

    def _channel_masks(self, like: Tensor) -> Sequence[Tensor] | None:
        """One mask over the channels of the concatenation, by stage; None unless channels are dropped."""
        if not (self.drops_channels and self.training and self.dropout.p > 0):
            return None
        # The random numbers are those of dropout on the concatenation.
        return self.dropout(like.new_ones(like.shape[0], NUM_STAGES * self.width, 1, 1)).chunk(NUM_STAGES, dim=1)

    def _dropped_part(self, projected: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
        """A stage's contribution to the joined features, dropping single elements of the upsampled stage."""

        def part(projected: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(self.dropout(_upsampled(projected, size)), weight)

        if not torch.is_grad_enabled():
            return part(projected, weight)
        with no_recipes():  # recomputed as a whole
            result: Tensor = checkpoint(part, projected, weight, use_reentrant=False)
        return result


def _upsampled(features: Tensor, size: tuple[int, int]) -> Tensor:
    if (features.shape[2], features.shape[3]) == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
