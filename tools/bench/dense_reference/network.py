"""The dense network in plain ``torch.nn``: the yardstick of tests and benchmarks.

Every voxel is computed. Names and shapes of its state dict are those of ``AMMNet``, but it has no state projections.
Volumes are [B, C, X, height, Y].
"""

import dataclasses

import torch
import torch.nn.functional as F
from bench.dense_reference.blocks import DDRBlock, Stage, Stem, Up
from torch import Tensor, nn

from ammnet_sparse.config import Fusion as FusionKind
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.models.ammnet import freeze_encoders
from ammnet_sparse.models.fusion import (
    Addition,
    Fusion,
    ModulationGradient,
    build_fusion,
    kinds_of_fusion,
    modulation_inputs,
    select_gradient,
)
from ammnet_sparse.models.image_encoders import ImageEncoder, image_encoder_class
from ammnet_sparse.sparse.blocks import Recomputable
from ammnet_sparse.sparse.sites import full_sites


@dataclasses.dataclass(frozen=True)
class DensePrediction:
    """The network's output for a batch.

    Attributes:
        logits: [B, num_classes, X, height, Y].
        logits_2d: [B, num_classes, rows, columns] at image size; None without an image network.
    """

    logits: Tensor
    logits_2d: Tensor | None = None


class TSDFEncoder(nn.Module):
    """TSDF [B, 1, X, H, Y] -> features F_T [B, C, X, H, Y]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = Stem(1, config.stem_widths, out_channels=width)
        self.stage_half = Stage(width, width)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        dropout = nn.Dropout3d if config.dropout_kind == "channel" else nn.Dropout
        self.dropout = dropout(config.encoder_dropout)
        self.up_full = Up(width, width)

    def forward(self, tsdf: Tensor) -> Tensor:
        half = self.stage_half(self.stem(tsdf))
        raised = self.dropout(self.up_half(self.stage_quarter(half)))
        return self.up_full(raised + half)


class DenseModulation(Recomputable):
    """Eq. 2 on volumes, written with ``Conv3d`` so that it checks ``fusion.Modulation`` and the operator in it."""

    def __init__(self, width: int, *, gradient: ModulationGradient = "full") -> None:
        super().__init__()
        self.gradient = gradient
        self.scale = nn.Conv3d(width, width, kernel_size=1)
        self.bias = nn.Conv3d(width, width, kernel_size=1)

    def forward(self, features: Tensor, tsdf_features: Tensor) -> Tensor:
        return self.recomputed(self._run, features, tsdf_features)

    def _run(self, features: Tensor, tsdf_features: Tensor) -> Tensor:
        modulated_features, source = modulation_inputs(features, tsdf_features, gradient=self.gradient)
        modulated = modulated_features * (1 + torch.sigmoid(self.scale(source))) + self.bias(source)
        return select_gradient(modulated, features, tsdf_features, gradient=self.gradient)


class Decoder(nn.Module):
    """Features of the inputs -> logits [B, num_classes, X, H, Y]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        first, second, third = kinds_of_fusion(config)
        gradient = config.modulation_gradient if config.modulation1 else "full"
        self.modulation1 = _build_dense_fusion(first, width=width, gradient=gradient) if first else None
        self.stage_half = Stage(width, width)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        self.up_full = Up(width, width)
        self.modulation2 = _build_dense_fusion(second, width=width) if second else None
        self.modulation3 = _build_dense_fusion(third, width=width) if third else None
        self.tsdf_down: nn.Sequential | None = None
        self.tsdf_down_up: Up | None = None
        if second or third:
            self.tsdf_down = nn.Sequential(
                DDRBlock(width, width // 4, expansion=4, stride=2),
                DDRBlock(width, width // 4, expansion=8, stride=2),
            )
            self.tsdf_down_up = Up(2 * width, width)
        self.tsdf_up = Up(width, width) if third else None
        self.dropout = nn.Dropout3d(config.decoder_dropout)
        self.classifier = nn.Conv3d(width, config.num_classes, kernel_size=1)

    def forward(self, features: Tensor | None, tsdf_features: Tensor | None) -> Tensor:
        """Image features F_R and TSDF features F_T, each [B, C, X, H, Y]; None for an input that is not read."""
        half = self.stage_half(self._join_inputs(features, tsdf_features))
        volume = self.up_half(self.stage_quarter(half)) + half
        tsdf_half: Tensor | None = None
        if self.tsdf_down is not None and self.tsdf_down_up is not None:
            tsdf_half = self.tsdf_down_up(self.tsdf_down(tsdf_features))
        if self.modulation2 is not None and tsdf_half is not None:
            volume = _fuse(self.modulation2, volume, tsdf_half)
        volume = self.up_full(volume)
        if self.modulation3 is not None and self.tsdf_up is not None and tsdf_half is not None:
            volume = _fuse(self.modulation3, volume, self.tsdf_up(tsdf_half))
        return self.classifier(self.dropout(volume))

    def _join_inputs(self, features: Tensor | None, tsdf_features: Tensor | None) -> Tensor:
        if features is not None and tsdf_features is not None and self.modulation1 is not None:
            return _fuse(self.modulation1, features, tsdf_features)
        if features is not None:
            return features
        if tsdf_features is not None:
            return tsdf_features
        raise ValueError("Decoder: expected image features, TSDF features or both, found neither")


class DenseDiscriminator(nn.Module):
    """Scores volumes [B, num_classes, X, H, Y] of the configuration's grid, one-hot or logits -> logits [B, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.discriminator_width
        self.embed = nn.Conv3d(config.num_classes, width, kernel_size=1, bias=False)
        self.blocks = nn.Sequential(
            DDRBlock(width, width // 4, expansion=4, stride=2),
            DDRBlock(width, width // 4, expansion=8, stride=2),
            DDRBlock(2 * width, width // 2, expansion=4, stride=3),
            DDRBlock(2 * width, width // 2, expansion=4),
        )
        x, height, y = (size // 12 for size in config.grid_shape)
        self.hidden = nn.Linear(2 * width * x * height * y, 2 * width)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, volume: Tensor) -> Tensor:
        features = self.blocks(self.embed(volume))
        return self.score(F.relu(self.hidden(features.flatten(1))))


class DenseAMMNet(nn.Module):
    """AMMNet with every voxel computed, in any floating type."""

    label_map_stem: Stem | None
    image_encoder: ImageEncoder | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.label_map_stem = self.image_encoder = None
        if config.reads_label_map:
            self.label_map_stem = Stem(config.num_label_map_classes, config.stem_widths, out_channels=config.width)
        elif config.reads_image:
            self.image_encoder = image_encoder_class(config)(config)
        self.tsdf_encoder = TSDFEncoder(config) if config.inputs != "image" else None
        self.decoder = Decoder(config)
        if config.freeze_encoders:
            freeze_encoders(self)

    def train(self, mode: bool = True) -> "DenseAMMNet":
        """As ``nn.Module.train``, but frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoders:
            freeze_encoders(self)
        return self

    def forward(self, batch: Batch) -> DensePrediction:
        """Predicts every voxel of a batch."""
        dtype = self.decoder.classifier.weight.dtype
        features = tsdf_features = logits_2d = None
        if self.label_map_stem is not None:
            features = self.label_map_stem(
                gather_label_map(batch, num_classes=self.config.num_label_map_classes).to(dtype)
            )
        elif self.image_encoder is not None:
            encoded = self.image_encoder.encode(batch, dtype=dtype)
            features = project_densely(encoded.features, batch)
            logits_2d = F.interpolate(encoded.class_logits, size=batch.image_shape, mode="bilinear", align_corners=True)
        if self.tsdf_encoder is not None:
            tsdf_features = self.tsdf_encoder(batch.tsdf.to(dtype))
        return DensePrediction(logits=self.decoder(features, tsdf_features), logits_2d=logits_2d)


def project_densely(features: Tensor, batch: Batch) -> Tensor:
    """Features [B, C, h, w] brought to image size, taken at the mapped pixels, filled where 0 -> [B, C, X, H, Y].

    The plain way: the full-size map exists. Zeros where no pixel maps; then a
    channel that is exactly 0 gets the sum over its 3x3x3 neighborhood divided by 27.
    """
    full = F.interpolate(features, size=batch.image_shape, mode="bilinear", align_corners=False)
    is_mapped = (batch.mapping != UNMAPPED)[:, None]
    pixel = batch.mapping.clamp(min=UNMAPPED + 1).long()[:, None].expand(-1, features.shape[1], -1)
    taken = torch.where(is_mapped, full.flatten(2).gather(2, pixel), 0.0)
    volume = taken.view(*taken.shape[:2], *batch.grid_shape)
    neighborhood = F.avg_pool3d(volume, kernel_size=3, stride=1, padding=1, count_include_pad=True)
    return volume + torch.where(volume == 0, neighborhood, 0.0)


def gather_label_map(batch: Batch, *, num_classes: int) -> Tensor:
    """The 2D class of each voxel's mapped pixel, one-hot [B, num_classes, X, H, Y] int64; zeros where unmapped."""
    assert batch.label_map is not None
    pixel = batch.mapping.clamp(min=UNMAPPED + 1).long()
    category = batch.label_map.flatten(1).gather(1, pixel).long()
    one_hot = F.one_hot(category, num_classes) * (batch.mapping != UNMAPPED)[..., None]
    # Contiguous: on a CPU torch normalizes channels-last volumes with four digits less precision.
    return one_hot.transpose(1, 2).reshape(batch.batch_size, num_classes, *batch.grid_shape).contiguous()


def set_dense_recompute(network: nn.Module, is_recomputed: bool) -> None:
    """Whether the backward pass recomputes stems, DDR blocks, upsampling and modulations from their inputs."""
    for module in network.modules():
        if isinstance(module, Recomputable):
            module.is_recomputed = is_recomputed


def _fuse(fusion: nn.Module, features: Tensor, tsdf_features: Tensor) -> Tensor:
    if not isinstance(fusion, Fusion):
        return fusion(features, tsdf_features)
    if isinstance(fusion, Addition):
        return features + tsdf_features
    batch_size, _, x, height, y = features.shape
    sites = full_sites(batch_size, (x, height, y), features.device)
    joined = fusion(sites.gather(features), sites.gather(tsdf_features), sites=sites)
    return sites.densify(joined).contiguous()


def _build_dense_fusion(kind: FusionKind, *, width: int, gradient: ModulationGradient = "full") -> nn.Module:
    if kind == "modulation":
        return DenseModulation(width, gradient=gradient)
    return build_fusion(kind, width=width, gradient=gradient)
