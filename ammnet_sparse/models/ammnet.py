"""AMMNet on sparse convolutions: dense coarse, sparse fine (sections 2 and 4 of the design)."""

import dataclasses
import functools
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import EMPTY_LABEL
from ammnet_sparse.models.decoder import Decoder
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.image_encoders import build_image_encoder
from ammnet_sparse.models.inputs import (
    STATE_CHANNELS,
    encoder_sites,
    label_map_features,
    not_free_mask,
    pooled_state,
)
from ammnet_sparse.models.tsdf_encoder import TSDFEncoder
from ammnet_sparse.ops import fill_empty, project_features
from ammnet_sparse.sparse.blocks import DDRBlock, Recomputable, RecomputeLevel, Stem
from ammnet_sparse.sparse.kernel_maps import neighbor_rows
from ammnet_sparse.sparse.recipes import recipes_kept
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask

Voxels = Literal["scored", "not_free", "all"]
EMPTY_LOGIT = 20.0
"""Logit of class empty at voxels that were not computed, the others being 0: empty with probability 1 - 2e-8."""
CHUNK_SIZE = 16384
"""Voxels decoded at a time outside training."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of a batch.

    Attributes:
        voxel_logits: [N, num_classes] at the voxels computed.
        sites: which voxels those are.
        class_logits_2d: [B, num_classes, rows / 4, columns / 4]; None without an image network.
        image_size: rows and columns of the image; None without one.
    """

    voxel_logits: Tensor
    sites: SiteSet
    class_logits_2d: Tensor | None = None
    image_size: tuple[int, int] | None = None

    @functools.cached_property
    def logits(self) -> Tensor:
        """[B, num_classes, X, H, Y]; voxels that were not computed are empty."""
        if self.sites.is_full:
            return self.sites.densify(self.voxel_logits).contiguous()
        volume = self.voxel_logits.new_zeros(self.sites.batch_size * self.sites.num_cells, self.voxel_logits.shape[1])
        volume[:, EMPTY_LABEL] = EMPTY_LOGIT
        volume = volume.index_copy(0, self.sites.linear, self.voxel_logits)
        shape = (self.sites.batch_size, *self.sites.spatial_shape, -1)
        return volume.view(shape).permute(0, 4, 1, 2, 3).contiguous()

    @property
    def probabilities(self) -> Tensor:
        """[B, num_classes, X, H, Y] float32, of each class; voxels that were not computed are empty."""
        return self.logits.float().softmax(dim=1)

    @functools.cached_property
    def logits_2d(self) -> Tensor | None:
        """[B, num_classes, rows, columns] at image size, bilinear with aligned corners; None without images."""
        if self.class_logits_2d is None:
            return None
        return F.interpolate(self.class_logits_2d, size=self.image_size, mode="bilinear", align_corners=True)

    @functools.cached_property
    def labels(self) -> Tensor:
        """[B, X, H, Y] uint8: the most likely class; voxels that were not computed are empty."""
        labels = self.voxel_logits.argmax(dim=1).to(torch.uint8)
        volume = labels.new_full((self.sites.batch_size * self.sites.num_cells,), EMPTY_LABEL)
        volume[self.sites.linear] = labels
        return volume.view(self.sites.batch_size, *self.sites.spatial_shape)


class AMMNet(nn.Module):
    """The generator, with the discriminator as a child that ``forward`` does not use."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Without the TSDF, sites where a pixel hits leave nothing out.
        self.has_state = config.sites == "sparse" and config.inputs != "image"
        state_channels = STATE_CHANNELS if self.has_state else 0
        if config.inputs != "tsdf":
            if config.image_encoder == "seg2d":
                self.label_map_stem = Stem(config.num_label_map_classes, config.stem_widths, out_channels=config.width)
            else:
                self.image_encoder = build_image_encoder(
                    kind=config.image_encoder,
                    width=config.width,
                    num_classes=config.num_classes,
                    dropout=config.head_dropout,
                    dropout_kind=config.dropout_kind,
                    head_width=config.head_width,
                    is_frozen=config.freeze_image_encoder,
                    weights=config.image_encoder_weights,
                )
        if config.inputs != "image":
            self.tsdf_encoder = TSDFEncoder(
                config.width,
                stem_widths=config.stem_widths,
                dropout=config.encoder_dropout,
                dropout_kind=config.dropout_kind,
                state_channels=state_channels,
            )
        self.decoder = Decoder(config, state_channels=state_channels)
        self.discriminator = Discriminator(
            config.num_classes, width=config.discriminator_width, grid_shape=config.grid_shape
        )
        self.keeps_recipes = False
        if config.freeze_encoders:
            for encoder in self._encoders():
                encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "AMMNet":
        """As of ``nn.Module``, but frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoders:
            for encoder in self._encoders():
                encoder.eval()
        return self

    def set_recompute(self, level: RecomputeLevel) -> None:
        """Which activations the backward pass recomputes, each level more than the one before.

        ``elementwise``: normalisation, ReLU, addition and dropout, no convolution; ``blocks``: whole DDR blocks;
        ``full``: whole stages, stems, steps up and the head of an image encoder.
        """
        self.keeps_recipes = self.discriminator.keeps_recipes = level != "off"
        for module in self.modules():
            if isinstance(module, Recomputable):
                is_block = isinstance(module, DDRBlock)
                module.is_recomputed = level == "full" and not is_block or level == "blocks" and is_block
        if level == "full":
            # These blocks stand in no stage.
            standing_alone = [*self.discriminator.blocks, *getattr(self.decoder, "tsdf_down", [])]
            for block in standing_alone:
                block.is_recomputed = True

    def generator_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of all but the discriminator."""
        own = {id(parameter) for parameter in self.discriminator.parameters()}
        return [value for value in self.parameters() if value.requires_grad and id(value) not in own]

    def forward(self, batch: Batch, *, voxels: Voxels | SiteSet | None = None) -> Prediction:
        """Predicts the classes of a batch's voxels.

        Args:
            batch: frames on the configuration's grid, with the 2D input that it names.
            voxels: what to compute: the scored voxels (default in training mode; without labels, those of label
                weight), all that are not observed to be free (default in evaluation mode), all, or given sites of
                the full grid. ``sites: dense``, SENet and CBAM compute all.

        Raises:
            ValueError: another grid, a missing 2D input, one that does not fit the mapping, no voxel to work on,
                or ``voxels`` that mean nothing here.
        """
        expected = tuple(self.config.grid_shape)
        if batch.grid_shape != expected:
            raise ValueError(f"batch.tsdf: expected the grid {expected}, found {batch.grid_shape}")
        with recipes_kept(self.keeps_recipes):
            return self._predict(batch, voxels)

    def _predict(self, batch: Batch, voxels: Voxels | SiteSet | None) -> Prediction:
        config = self.config
        sites = encoder_sites(batch, is_dense=config.sites == "dense", with_band=config.encoder_band)
        state = pooled_state(batch).to(self._dtype) if self.has_state else None
        features, class_logits_2d = self._image_features(batch, sites)
        tsdf_features = None
        if config.inputs != "image":
            tsdf = sites.gather(batch.tsdf.to(self._dtype))
            tsdf_features = self.tsdf_encoder(tsdf, sites, state=state)
        targets = self._targets(batch, voxels)
        chunk_size = None if self.training or torch.is_grad_enabled() else CHUNK_SIZE
        voxel_logits = self.decoder(
            features, tsdf_features, sites=sites, voxels=targets, state=state, chunk_size=chunk_size
        )
        image_size = None if class_logits_2d is None else batch.image_shape
        return Prediction(voxel_logits, targets, class_logits_2d=class_logits_2d, image_size=image_size)

    def _targets(self, batch: Batch, voxels: Voxels | SiteSet | None) -> SiteSet:
        if isinstance(voxels, SiteSet):
            found, expected = (voxels.batch_size, *voxels.spatial_shape), (batch.batch_size, *batch.grid_shape)
            if found != expected:
                raise ValueError(f"voxels: expected sites of the batch's grid {expected}, found sites of {found}")
        elif voxels is None:
            voxels = "scored" if self.training else "not_free"
        elif voxels not in get_args(Voxels):
            raise ValueError(f"voxels: expected {', '.join(get_args(Voxels))}, sites or None, found {voxels!r}")
        if self.config.sites == "dense" or voxels == "all" or self.decoder.reads_whole_volume:
            return full_sites(batch.batch_size, batch.grid_shape, batch.tsdf.device)
        if isinstance(voxels, SiteSet):
            return voxels
        mask = batch.scored_mask if voxels == "scored" else not_free_mask(batch)
        targets = sites_from_mask(mask.view(batch.batch_size, *batch.grid_shape))
        if len(targets) == 0:
            raise ValueError(f"frames {', '.join(batch.frame_ids) or '(unnamed)'}: no {voxels} voxel to predict")
        return targets

    def _image_features(self, batch: Batch, sites: SiteSet) -> tuple[Tensor | None, Tensor | None]:
        """F_R [N, C] at the encoder sites and the 2D class logits at a quarter of the image size."""
        if self.config.inputs == "tsdf":
            return None, None
        if self.config.image_encoder == "seg2d":
            if batch.label_map is None:
                raise ValueError(
                    "batch.label_map: the model reads 2D label maps (image_encoder: seg2d), found none; "
                    "give the set a Seg2D folder or use a model with an image encoder"
                )
            num_classes = self.config.num_label_map_classes
            one_hot = label_map_features(batch, sites, num_classes=num_classes, dtype=self._dtype)
            return self.label_map_stem(one_hot, sites), None
        if batch.image_stages is not None:
            encoded = self.image_encoder.join_stages([stage.to(self._dtype) for stage in batch.image_stages])
        elif batch.image is not None:
            encoded = self.image_encoder(batch.image.to(self._dtype))
        else:
            raise ValueError(f"batch.image: image_encoder {self.config.image_encoder} reads images, found none")
        pixel = batch.mapping.flatten().index_select(0, sites.linear)
        image_size = batch.image_shape
        features = project_features(encoded.features, pixel, sites.batch_index, image_size=image_size)
        return fill_empty(features, neighbor_rows(sites)), encoded.class_logits

    def _encoders(self) -> list[nn.Module]:
        names = ("image_encoder", "label_map_stem", "tsdf_encoder")
        return [module for name, module in self.named_children() if name in names]

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.classifier.weight.dtype
