"""The dense network in plain ``torch.nn``: what the sparse network is compared with, ablated against and measured by.

Names and shapes of its state dict are those of the sparse network. Volumes are [B, C, X, height, Y].
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.models.dense_blocks import DDRBlock, Stage, Stem, Up
from ammnet_sparse.models.fusion import (
    Addition,
    Fusion,
    ModulationGradient,
    build_fusion,
    modulation_inputs,
    select_gradient,
)
from ammnet_sparse.models.image_encoders import build_image_encoder
from ammnet_sparse.sparse.blocks import Recomputable
from ammnet_sparse.sparse.sites import full_sites


@dataclasses.dataclass(frozen=True)
class DensePrediction:
    """What the network says of a batch.

    Attributes:
        logits: [B, num_classes, X, height, Y].
        logits_2d: [B, num_classes, rows, columns] at image size; None without an image network.
    """

    logits: Tensor
    logits_2d: Tensor | None = None


class TSDFEncoder(nn.Module):
    """TSDF [B, 1, X, H, Y] -> features F_T [B, C, X, H, Y]."""

    def __init__(self, width: int, *, stem_widths: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.stem = Stem(1, stem_widths, out_channels=width)
        self.stage_half = Stage(width, width)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        self.dropout = nn.Dropout3d(dropout)
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
    """Features of the inputs -> logits [B, num_classes, X, H, Y].

    With both inputs M1 joins them (its switch off: addition, eq. 1). M2 and M3 need the TSDF features only: they
    stay, as their switches say, in a network that reads the TSDF alone, and vanish in one that reads images alone.
    ``modulation_gradient`` concerns M1: Table 5 studies the network that has M1 only, and detaching all three would
    leave the TSDF encoder without any gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.modulation1: nn.Module | None = None
        if config.inputs == "both":
            self.modulation1 = _build_dense_fusion(config, is_first=True) if config.modulation1 else Addition()
        self.stage_half = Stage(width, width)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        self.up_full = Up(width, width)
        has_modulation2 = config.modulation2 and config.inputs != "image"
        has_modulation3 = config.modulation3 and config.inputs != "image"
        self.modulation2 = _build_dense_fusion(config) if has_modulation2 else None
        self.modulation3 = _build_dense_fusion(config) if has_modulation3 else None
        if has_modulation2 or has_modulation3:
            self.tsdf_down = nn.Sequential(
                DDRBlock(width, width // 4, expansion=4, stride=2),
                DDRBlock(width, width // 4, expansion=8, stride=2),
            )
            self.tsdf_down_up = Up(2 * width, width)
        if has_modulation3:
            self.tsdf_up = Up(width, width)
        self.dropout = nn.Dropout3d(config.decoder_dropout)
        self.classifier = nn.Conv3d(width, config.num_classes, kernel_size=1)

    def forward(self, features: Tensor | None, tsdf_features: Tensor | None) -> Tensor:
        """Image features F_R and TSDF features F_T, each [B, C, X, H, Y]; None for an input that is not read."""
        half = self.stage_half(self._join_inputs(features, tsdf_features))
        volume = self.up_half(self.stage_quarter(half)) + half
        tsdf_half: Tensor | None = None
        if self.modulation2 is not None or self.modulation3 is not None:
            tsdf_half = self.tsdf_down_up(self.tsdf_down(tsdf_features))
        if self.modulation2 is not None and tsdf_half is not None:
            volume = _fuse(self.modulation2, volume, tsdf_half)
        volume = self.up_full(volume)
        if self.modulation3 is not None and tsdf_half is not None:
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


class Discriminator(nn.Module):
    """Scores volumes [B, num_classes, X, H, Y] of exactly ``grid_shape``, one-hot or logits -> logits [B, 1]."""

    def __init__(self, num_classes: int, *, width: int, grid_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.embed = nn.Conv3d(num_classes, width, kernel_size=1, bias=False)
        self.blocks = nn.Sequential(
            DDRBlock(width, width // 4, expansion=4, stride=2),
            DDRBlock(width, width // 4, expansion=8, stride=2),
            DDRBlock(2 * width, width // 2, expansion=4, stride=3),
            DDRBlock(2 * width, width // 2, expansion=4),
        )
        x, height, y = (size // 12 for size in grid_shape)
        self.hidden = nn.Linear(2 * width * x * height * y, 2 * width)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, volume: Tensor) -> Tensor:
        features = self.blocks(self.embed(volume))
        return self.score(F.relu(self.hidden(features.flatten(1))))


class DenseAMMNet(nn.Module):
    """AMMNet with every voxel computed, in any floating type.

    The discriminator is a child that ``forward`` does not use.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.inputs != "tsdf":
            if config.image_encoder == "seg2d":
                self.label_map_stem = Stem(config.num_label_map_classes, config.stem_widths, out_channels=config.width)
            else:
                self.image_encoder = build_image_encoder(
                    kind=config.image_encoder,
                    width=config.width,
                    num_classes=config.num_classes,
                    dropout=config.head_dropout,
                    is_frozen=config.freeze_image_encoder,
                    weights=config.image_encoder_weights,
                )
        if config.inputs != "image":
            self.tsdf_encoder = TSDFEncoder(
                config.width, stem_widths=config.stem_widths, dropout=config.encoder_dropout
            )
        self.decoder = Decoder(config)
        self.discriminator = Discriminator(
            config.num_classes, width=config.discriminator_width, grid_shape=config.grid_shape
        )
        if config.freeze_encoders:
            for encoder in self._encoders():
                encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DenseAMMNet":
        """As of ``nn.Module``, but frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoders:
            for encoder in self._encoders():
                encoder.eval()
        return self

    def set_recompute(self, is_recomputed: bool) -> None:
        """Whether the backward pass recomputes stems, DDR blocks, steps up and modulations from their inputs."""
        for module in self.modules():
            if isinstance(module, Recomputable):
                module.is_recomputed = is_recomputed

    def forward(self, batch: Batch) -> DensePrediction:
        """Predicts every voxel of a batch.

        Raises:
            ValueError: a batch of another grid than the configuration's, or without the 2D input that it names.
        """
        if batch.grid_shape != tuple(self.config.grid_shape):
            raise ValueError(
                f"batch.tsdf: expected grid_shape {tuple(self.config.grid_shape)} of the configuration, "
                f"found {batch.grid_shape}"
            )
        features, logits_2d = self._image_features(batch)
        tsdf_features = None
        if self.config.inputs != "image":
            tsdf_features = self.tsdf_encoder(batch.tsdf.to(self._dtype))
        return DensePrediction(logits=self.decoder(features, tsdf_features), logits_2d=logits_2d)

    def _image_features(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        if self.config.inputs == "tsdf":
            return None, None
        if self.config.image_encoder == "seg2d":
            if batch.label_map is None:
                raise ValueError("batch.label_map: image_encoder seg2d reads 2D label maps, found None")
            one_hot = gather_label_map(batch, num_classes=self.config.num_label_map_classes)
            return self.label_map_stem(one_hot.to(self._dtype)), None
        if batch.image is None:
            raise ValueError(f"batch.image: image_encoder {self.config.image_encoder} reads images, found None")
        found = self.image_encoder(batch.image.to(self._dtype))
        image_size = batch.image.shape[2:]
        logits_2d = F.interpolate(found.class_logits, size=image_size, mode="bilinear", align_corners=True)
        return project_densely(found.features, batch), logits_2d

    def _encoders(self) -> list[nn.Module]:
        names = ("image_encoder", "label_map_stem", "tsdf_encoder")
        return [module for name, module in self.named_children() if name in names]

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.classifier.weight.dtype


def project_densely(features: Tensor, batch: Batch) -> Tensor:
    """Features [B, C, h, w] brought to image size, taken at the mapped pixels, filled where 0 -> [B, C, X, H, Y].

    The plain way (section 2 of the architecture page): the full-size map exists. Zeros where no pixel maps; then a
    channel that is exactly 0 gets the sum over its 3x3x3 neighbourhood divided by 27.
    """
    if batch.image is None:
        raise ValueError("batch.image: its size is needed to project features, found None")
    full = F.interpolate(features, size=batch.image.shape[2:], mode="bilinear", align_corners=False)
    is_hit = batch.hit_mask[:, None]
    pixel = batch.mapping.clamp(min=UNMAPPED + 1).long()[:, None].expand(-1, features.shape[1], -1)
    taken = torch.where(is_hit, full.flatten(2).gather(2, pixel), 0.0)
    volume = taken.view(*taken.shape[:2], *batch.grid_shape)
    neighbourhood = F.avg_pool3d(volume, kernel_size=3, stride=1, padding=1, count_include_pad=True)
    return volume + torch.where(volume == 0, neighbourhood, 0.0)


def gather_label_map(batch: Batch, *, num_classes: int) -> Tensor:
    """The 2D class of each voxel's mapped pixel, one-hot [B, num_classes, X, H, Y] int64; zeros where unmapped."""
    if batch.label_map is None:
        raise ValueError("batch.label_map: expected [B, rows, columns], found None")
    pixel = batch.mapping.clamp(min=UNMAPPED + 1).long()
    category = batch.label_map.flatten(1).gather(1, pixel).long()
    one_hot = F.one_hot(category, num_classes) * batch.hit_mask[..., None]
    # Contiguous: torch normalises channels-last volumes on a CPU with four digits less.
    return one_hot.transpose(1, 2).reshape(batch.batch_size, num_classes, *batch.grid_shape).contiguous()


def _fuse(fusion: nn.Module, features: Tensor, tsdf_features: Tensor) -> Tensor:
    if not isinstance(fusion, Fusion):
        return fusion(features, tsdf_features)
    if isinstance(fusion, Addition):
        return features + tsdf_features
    batch_size, _, x, height, y = features.shape
    sites = full_sites(batch_size, (x, height, y), features.device)
    joined = fusion(sites.gather(features), sites.gather(tsdf_features), sites=sites)
    return sites.densify(joined).contiguous()


def _build_dense_fusion(config: ModelConfig, *, is_first: bool = False) -> nn.Module:
    gradient = config.modulation_gradient if is_first else "full"
    if config.fusion == "modulation":
        return DenseModulation(config.width, gradient=gradient)
    return build_fusion(config.fusion, width=config.width, gradient=gradient)
