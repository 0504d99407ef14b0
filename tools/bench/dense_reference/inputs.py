"""2D inputs on volumes, the plain counterpart of ``inputs.py``, which computes them at sites only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import UNMAPPED


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
    if batch.label_map is None:
        raise ValueError("batch.label_map: expected [B, rows, columns], found None")
    pixel = batch.mapping.clamp(min=UNMAPPED + 1).long()
    category = batch.label_map.flatten(1).gather(1, pixel).long()
    one_hot = F.one_hot(category, num_classes) * (batch.mapping != UNMAPPED)[..., None]
    # Contiguous: on a CPU torch normalizes channels-last volumes with four digits less precision.
    return one_hot.transpose(1, 2).reshape(batch.batch_size, num_classes, *batch.grid_shape).contiguous()
