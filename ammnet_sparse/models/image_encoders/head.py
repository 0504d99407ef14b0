"""SegFormer's all-MLP head on the four stages of an image backbone (section 3.2 of the paper)."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ammnet_sparse.sparse.blocks import Recomputable
from ammnet_sparse.sparse.recipes import no_recipes

NUM_STAGES = 4


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
