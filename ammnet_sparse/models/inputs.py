"""From a batch to the network's inputs: encoder sites, state channels, one-hot label maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import FREE_TSDF, UNMAPPED
from ammnet_sparse.ops import fill_empty, one_hot_sites, project_features
from ammnet_sparse.sparse.kernel_maps import neighbor_rows
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask

STATE_CHANNELS = 4
"""Fractions free, occluded, unobserved, and mean TSDF."""


def unflipped_tsdf(batch: Batch) -> Tensor:
    """[B, 1, X, H, Y] t, about +1 free and -1 occluded, whatever the convention of the file.

    From the flipped f: t = s (1 - |f|), where far free and unobserved space cannot be told apart.
    """
    if not batch.tsdf_is_flipped:
        return batch.tsdf
    sign = torch.where(batch.tsdf < 0, -1.0, 1.0).to(batch.tsdf.dtype)
    return sign * (1 - batch.tsdf.abs())


def encoder_sites(batch: Batch, *, is_dense: bool, with_band: bool = False) -> SiteSet:
    """Hit voxels dilated by 3x3x3, with the band 0 < |t| < 0.999 on request; every voxel if ``is_dense``.

    Raises:
        ValueError: no voxel of the batch is hit by a pixel.
    """
    if is_dense:
        return full_sites(batch.batch_size, batch.grid_shape, batch.tsdf.device)
    hit = batch.hit_mask.view(batch.batch_size, 1, *batch.grid_shape).to(torch.float32)
    mask = F.max_pool3d(hit, kernel_size=3, stride=1, padding=1) > 0
    if with_band:
        distance = unflipped_tsdf(batch).abs()
        mask |= (distance > 0) & (distance < FREE_TSDF)
    sites = sites_from_mask(mask.squeeze(1))
    if len(sites) == 0:
        names = ", ".join(batch.frame_ids) or "(unnamed)"
        raise ValueError(f"frames {names}: expected voxels that a pixel hits, found none in the mapping")
    return sites


def not_free_mask(batch: Batch) -> Tensor:
    """[B, V] bool: voxels that are not observed to be free (t < 0.999, or hit)."""
    return (unflipped_tsdf(batch).flatten(1) < FREE_TSDF) | batch.hit_mask


def pooled_state(batch: Batch) -> Tensor:
    """[B * cells, 4] of every 1/2 cell: fractions free, occluded and unobserved, and mean TSDF (section 4)."""
    tsdf = unflipped_tsdf(batch)
    state = torch.cat([(tsdf > 0).to(tsdf.dtype), (tsdf < 0).to(tsdf.dtype), (tsdf == 0).to(tsdf.dtype), tsdf], dim=1)
    pooled = F.avg_pool3d(state, kernel_size=2)
    return pooled.permute(0, 2, 3, 4, 1).reshape(-1, STATE_CHANNELS)


def label_map_features(batch: Batch, sites: SiteSet, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, num_classes]: one-hot 2D class of each site's mapped pixel, zeros where no pixel maps.

    Raises:
        ValueError: a batch without label maps; on the CPU also pixels outside of them and classes out of range.
    """
    if batch.label_map is None:
        raise ValueError("batch.label_map: expected [B, rows, columns], found None")
    pixel = batch.mapping.flatten().index_select(0, sites.linear).long()
    num_pixels = batch.label_map.shape[1] * batch.label_map.shape[2]
    _check_below(pixel, num_pixels, what="batch.mapping: pixels of batch.label_map", frame_ids=batch.frame_ids)
    linear = (sites.batch_index * num_pixels + pixel).masked_fill_(pixel < 0, UNMAPPED)
    try:
        return one_hot_sites(batch.label_map.flatten(1), linear, num_classes, dtype)
    except IndexError as error:
        names = ", ".join(batch.frame_ids) or "(unnamed)"
        raise ValueError(
            f"batch.label_map, frames {names}: expected classes below num_label_map_classes {num_classes} ({error})"
        ) from error


def project_to_sites(features: Tensor, batch: Batch, sites: SiteSet, *, image_size: tuple[int, int]) -> Tensor:
    """2D features [B, C, rows / 4, columns / 4] at the mapped pixel of each site, empty channels filled -> [N, C]."""
    pixel = batch.mapping.flatten().index_select(0, sites.linear)
    projected = project_features(features, pixel, sites.batch_index, image_size=image_size)
    return fill_empty(projected, neighbor_rows(sites))


def _check_below(values: Tensor, bound: int, *, what: str, frame_ids: tuple[str, ...]) -> None:
    """Raises ValueError where a value on the CPU is ``bound`` or larger (elsewhere that would wait for the device)."""
    if values.device.type != "cpu" or len(values) == 0:
        return
    largest = int(values.max())
    if largest >= bound:
        names = ", ".join(frame_ids) or "(unnamed)"
        raise ValueError(f"{what}, frames {names}: expected values below {bound}, found {largest}")
