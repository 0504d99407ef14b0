"""AMMNet on sparse convolutions: dense coarse, sparse fine."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch, unflipped_tsdf
from ammnet_sparse.data.grid import EMPTY_LABEL, FREE_TSDF
from ammnet_sparse.devices import Precision, dtype_of
from ammnet_sparse.models.encoder_decoder import STATE_CHANNELS, Decoder, TSDFEncoder
from ammnet_sparse.models.image_encoders import ImageEncoder, LabelMapStem, encoder_class
from ammnet_sparse.sparse.blocks import RecomputeLevel, set_recompute
from ammnet_sparse.sparse.kernel_maps import planned_sites
from ammnet_sparse.sparse.recipes import recipes_kept
from ammnet_sparse.sparse.sites import SiteSet, dilated, full_sites, sites_from_mask

Voxels = Literal["scored", "not_free", "all"]
EMPTY_LOGIT = 20.0
"""Logit of class empty at voxels that were not computed, the others being 0: empty with probability 1 - 2e-8."""
CHUNK_SIZE = 16384
"""Voxels decoded at a time outside training."""
ENCODER_NAMES = (LabelMapStem.name, ImageEncoder.name, "tsdf_encoder")
"""Names of the encoders in the network's state dict; it has at most two of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """The sites of a batch at full resolution, planned together (``kernel_maps.planned_sites``).

    Attributes:
        encoder: the sites of the encoders' inputs and outputs.
        voxels: the decoded voxels.
    """

    encoder: SiteSet
    voxels: SiteSet


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The network's output for a batch.

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
    """The network that completes scenes, randomly initialized; no file is read and nothing is downloaded.

    ``from_pretrained`` loads trained weights. In a run the weights follow from torch's random state, those of the
    ``Discriminator`` after these.

    Args:
        config: the configuration of its parts, stored in files of weights.

    Attributes:
        precision: of predictions in evaluation mode; float32 weights stay as they are.
        metadata: origin of loaded weights: training configuration, data, epochs, figures, version, as text; empty for
            a newly built network.
        label_map_stem, image_encoder: the encoder of the 2D input under its name in files; at most one is not None.
        tsdf_encoder: None for a network that reads images alone.
    """

    label_map_stem: LabelMapStem | None
    image_encoder: ImageEncoder | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.label_map_stem = self.image_encoder = None
        if config.inputs != "tsdf":
            encoder = encoder_class(config)(config)
            setattr(self, encoder.name, encoder)
        self.tsdf_encoder = TSDFEncoder(config) if config.inputs != "image" else None
        self.decoder = Decoder(config)
        self.keeps_recipes = False
        self.metadata: dict[str, str] = {}
        self.precision: Precision = "float32"
        if config.freeze_encoders:
            freeze_encoders(self)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, sites: Literal["sparse", "dense"] | None = None, device: torch.device | str = "cpu"
    ) -> "AMMNet":
        """A trained network in evaluation mode, by the name of shipped weights (``list_models``) or from a file."""
        from ammnet_sparse.models.weights.loading import load_model

        return load_model(name, sites=sites, device=device)

    def train(self, mode: bool = True) -> "AMMNet":
        """As ``nn.Module.train``, but frozen encoders stay in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoders:
            freeze_encoders(self)
        return self

    def set_recompute(self, level: RecomputeLevel) -> None:
        """Chooses which activations the backward pass recomputes; each level adds to the one before.

        ``elementwise``: normalization, ReLU, addition and dropout, no convolution; ``blocks``: whole DDR blocks;
        ``full``: whole stages, stems, upsampling and the head of an image encoder.
        """
        self.keeps_recipes = level != "off"
        set_recompute(self, level)

    def forward(self, batch: Batch, *, voxels: Voxels | SitePlan | None = None) -> Prediction:
        """Predicts the classes of a batch's voxels.

        Args:
            batch: frames on the configuration's grid, with the 2D input that it names.
            voxels: which to compute: the scored voxels (default in training mode; without labels, those with label
                weight), all that are not observed to be free (default in evaluation mode), all, or sites planned
                before. With ``sites: dense``, SENet or CBAM all voxels are computed and predicted, whatever is given;
                only "not_free", which is not the default there, leaves out those observed to be free.

        Raises:
            ValueError: another grid, a missing 2D input, one that contradicts the mapping, no voxel to compute,
                or unknown ``voxels``.
        """
        expected = tuple(self.config.grid_shape)
        if batch.grid_shape != expected:
            raise ValueError(f"batch.tsdf: expected the grid {expected}, found {batch.grid_shape}")
        with recipes_kept(self.keeps_recipes), self._autocast(batch.tsdf.device):
            return self._predict(batch, voxels)

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Within the block predictions are computed in ``precision``; training chooses its own."""
        dtype = torch.float32 if self.training else dtype_of(self.precision, device)
        return contextlib.nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)

    def _predict(self, batch: Batch, voxels: Voxels | SitePlan | None) -> Prediction:
        dtype = self.decoder.classifier.weight.dtype
        plan = self._plan(batch, voxels)
        sites, targets = plan.encoder, plan.voxels
        state = pooled_state(batch).to(dtype) if self.decoder.state_projection is not None else None
        features = class_logits = tsdf_features = None
        if (encoder := self.label_map_stem or self.image_encoder) is not None:
            features, class_logits = encoder.features_at(batch, sites, dtype=dtype)
        if self.tsdf_encoder is not None:
            tsdf_features = self.tsdf_encoder(sites.gather(batch.tsdf.to(dtype)), sites, state=state)
        voxel_logits = self.decoder(
            features,
            tsdf_features,
            sites=sites,
            voxels=targets,
            state=state,
            chunk_size=None if self.training or torch.is_grad_enabled() else CHUNK_SIZE,
        )
        if voxels == "not_free" and targets.is_full:
            targets = sites_from_mask(not_free_mask(batch).view(batch.batch_size, *batch.grid_shape))
            voxel_logits = voxel_logits.index_select(0, targets.linear)
        image_size = None if class_logits is None else batch.image_shape
        return Prediction(voxel_logits, targets, class_logits_2d=class_logits, image_size=image_size)

    def _plan(self, batch: Batch, voxels: Voxels | SitePlan | None) -> SitePlan:
        """The encoder sites, and the voxels to decode."""
        if isinstance(voxels, SitePlan):
            sites, expected = voxels.voxels, (batch.batch_size, *batch.grid_shape)
            found = (sites.batch_size, *sites.spatial_shape)
            if found != expected:
                raise ValueError(f"voxels: expected sites of the batch's grid {expected}, found sites of {found}")
            if not self.decoder.reads_whole_volume:
                return voxels
            return SitePlan(voxels.encoder, full_sites(batch.batch_size, batch.grid_shape, batch.tsdf.device))
        voxels = voxels or ("scored" if self.training else "not_free")
        if voxels not in get_args(Voxels):
            raise ValueError(f"voxels: expected {', '.join(get_args(Voxels))}, a plan or None, found {voxels!r}")
        if voxels == "all" or self.decoder.reads_whole_volume:
            return plan_sites(batch, None, self.config)
        plan = plan_sites(batch, batch.scored_mask if voxels == "scored" else not_free_mask(batch), self.config)
        if len(plan.voxels) == 0:
            raise ValueError(f"frames {', '.join(batch.frame_ids) or '(unnamed)'}: no {voxels} voxel to predict")
        return plan


def freeze_encoders(network: nn.Module) -> None:
    """The encoders get no gradients and stay in evaluation mode until ``train`` is called (Figure 2)."""
    for name, encoder in network.named_children():
        if name in ENCODER_NAMES:
            encoder.requires_grad_(False).eval()


def plan_sites(batch: Batch, voxels: Tensor | None, config: ModelConfig) -> SitePlan:
    """Plans the encoder sites and the voxels to decode, with one wait for the device.

    Args:
        voxels: [B, V] bool, those to decode; None: every voxel.
        config: with ``sites: dense`` every voxel is a site and decoded; ``encoder_band`` as in ``encoder_mask``.

    Raises:
        ValueError: no voxel of the batch is hit by a pixel.
    """
    shape = (batch.batch_size, *batch.grid_shape)
    every = full_sites(batch.batch_size, batch.grid_shape, batch.tsdf.device)
    if config.sites == "dense":
        return SitePlan(every, every)
    masks = [encoder_mask(batch, with_band=config.encoder_band)]
    if voxels is not None:
        masks.append(voxels.view(shape))
    encoder, *decoded = planned_sites(masks)
    if len(encoder) == 0:
        names = ", ".join(batch.frame_ids) or "(unnamed)"
        raise ValueError(f"frames {names}: expected voxels that a pixel hits, found none in the mapping")
    return SitePlan(encoder, decoded[0] if decoded else every)


def encoder_mask(batch: Batch, *, with_band: bool = False) -> Tensor:
    """[B, X, H, Y] bool: hit voxels dilated by 3x3x3, with the band 0 < |t| < 0.999 on request."""
    mask = dilated(batch.hit_mask.view(batch.batch_size, *batch.grid_shape))
    if with_band:
        distance = unflipped_tsdf(batch).abs().squeeze(1)
        mask = mask | ((distance > 0) & (distance < FREE_TSDF))
    return mask


def not_free_mask(batch: Batch) -> Tensor:
    """[B, V] bool: voxels that are not observed to be free (t < 0.999, or hit)."""
    return (unflipped_tsdf(batch).flatten(1) < FREE_TSDF) | batch.hit_mask


def pooled_state(batch: Batch) -> Tensor:
    """[B * cells, 4] of every 1/2 cell: fractions free, occluded and unobserved, and mean TSDF."""
    tsdf = unflipped_tsdf(batch)
    state = torch.cat([(tsdf > 0).to(tsdf.dtype), (tsdf < 0).to(tsdf.dtype), (tsdf == 0).to(tsdf.dtype), tsdf], dim=1)
    pooled = F.avg_pool3d(state, kernel_size=2)
    return pooled.permute(0, 2, 3, 4, 1).reshape(-1, STATE_CHANNELS)
