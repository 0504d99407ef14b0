"""From a batch to the network's inputs: encoder sites, state channels, one-hot label maps."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch, unflipped_tsdf
from ammnet_sparse.data.grid import FREE_TSDF, UNMAPPED
from ammnet_sparse.ops import fill_empty, one_hot_sites, project_features
from ammnet_sparse.sparse.kernel_maps import neighbor_rows, planned_sites
from ammnet_sparse.sparse.kernels import dilated
from ammnet_sparse.sparse.sites import SiteSet, full_sites

STATE_CHANNELS = 4
"""Fractions free, occluded, unobserved, and mean TSDF."""


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """The sites of a batch at full resolution, planned together (``kernel_maps.planned_sites``).

    Attributes:
        encoder: the sites of the encoders' inputs and outputs.
        voxels: the decoded voxels.
    """

    encoder: SiteSet
    voxels: SiteSet


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


def label_map_features(batch: Batch, sites: SiteSet, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, num_classes]: one-hot 2D class of each site's mapped pixel, zeros where no pixel maps.

    Raises:
        ValueError: a batch without label maps; on the CPU also classes out of range.
    """
    if batch.label_map is None:
        raise ValueError(
            "batch.label_map: the model reads 2D label maps (image_encoder: seg2d), found none; "
            "give the set a Seg2D folder or use a model with an image encoder"
        )
    pixel = batch.mapping.flatten().index_select(0, sites.linear).long()
    num_pixels = batch.label_map.shape[1] * batch.label_map.shape[2]
    linear = (sites.batch_index * num_pixels + pixel).masked_fill_(pixel < 0, UNMAPPED)
    try:
        return one_hot_sites(batch.label_map.flatten(1), linear, num_classes, dtype)
    except IndexError as error:
        names = ", ".join(batch.frame_ids) or "(unnamed)"
        raise ValueError(
            f"batch.label_map, frames {names}: expected classes below num_label_map_classes {num_classes} ({error})"
        ) from error


def project_to_sites(features: Tensor, batch: Batch, sites: SiteSet) -> Tensor:
    """2D features [B, C, rows / 4, columns / 4] at the mapped pixel of each site, empty channels filled -> [N, C]."""
    pixel = batch.mapping.flatten().index_select(0, sites.linear)
    projected = project_features(features, pixel, sites.batch_index, image_size=batch.image_shape)
    return fill_empty(projected, neighbor_rows(sites))
