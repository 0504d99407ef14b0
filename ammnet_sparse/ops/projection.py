"""2D-3D projection: image features at the voxels that pixels hit, and the mean of neighbors in their empty channels.

The bilinear samples are taken directly from the low-resolution feature map, so that features at the size of the
image (480 x 640 x C) never exist.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.ops._library import (
    accumulation_dtype,
    check_features,
    check_integers,
    check_range,
    check_same_device,
    checked,
    define_operator,
    forbid_autograd,
    register_autograd,
)

NUM_NEIGHBORS = 27
"""Sites of a 3x3x3 neighborhood, the site itself included."""


def project_features(
    features: Tensor,
    pixel_of_site: Tensor,
    batch_of_site: Tensor,
    *,
    image_size: tuple[int, int],
    align_corners: bool = False,
) -> Tensor:
    """Features at the pixel that hits each site, as after bilinear upsampling to the size of the image.

    Equals ``F.interpolate(features, image_size, mode="bilinear", align_corners=align_corners)`` at the pixel.
    float16 and bfloat16 are summed in float32 and rounded once.

    Args:
        features: [B, C, h, w], any strides.
        pixel_of_site: [N] integer, ``row * width + column`` in an image of ``image_size``; -1 for a site
            without a pixel.
        batch_of_site: [N] integer, the sample of each site, 0 .. B - 1, also for sites without a pixel.
        image_size: (height, width) in pixels of the image that ``pixel_of_site`` refers to.
        align_corners: as in ``F.interpolate``.

    Returns:
        [N, C] contiguous, type of ``features``; zeros for sites without a pixel. Differentiable once in ``features``;
        the gradient is [B, C, h, w] in channels-last layout. Its sums are always formed in the same order on the CPU,
        and on CUDA under ``torch.use_deterministic_algorithms``.

    Raises:
        IndexError: a pixel or a sample out of range (on the CPU; elsewhere such a site gets zeros).
        ValueError: shapes, devices or ``image_size`` that do not fit.
        TypeError: features without floating type, indices without integer type.
    """
    check_features("project_features: features", features, ndim=4)
    check_integers("project_features: pixel_of_site", pixel_of_site)
    check_integers("project_features: batch_of_site", batch_of_site)
    if pixel_of_site.ndim != 1 or batch_of_site.shape != pixel_of_site.shape:
        raise ValueError(
            "project_features: expected pixel_of_site and batch_of_site [N], "
            f"found {list(pixel_of_site.shape)} and {list(batch_of_site.shape)}"
        )
    image_height, image_width = image_size
    if min(image_height, image_width, features.shape[2], features.shape[3]) < 1:
        raise ValueError(
            "project_features: expected a feature map and an image of at least one pixel, "
            f"found features {list(features.shape)} and image_size {tuple(image_size)}"
        )
    if features.shape[0] == 0 and pixel_of_site.shape[0] > 0:
        raise ValueError(f"project_features: expected features of a sample for {pixel_of_site.shape[0]} sites, found 0")
    check_same_device(features, pixel_of_site=pixel_of_site, batch_of_site=batch_of_site)
    return checked(_project_features(features, pixel_of_site, batch_of_site, image_height, image_width, align_corners))


class _Reads(NamedTuple):
    """The four cells of the feature map that each site reads; cells of sites without a pixel must be masked."""

    is_hit: Tensor  # [N, 1] bool
    cells: Tensor  # [N, 4] int64, (sample * h + row) * w + column; 0 for sites without a pixel
    weights: Tensor  # [N, 4] float32 or float64


def _reads(
    pixel_of_site: Tensor,
    batch_of_site: Tensor,
    map_shape: tuple[int, int, int],
    image_size: tuple[int, int],
    *,
    align_corners: bool,
    dtype: torch.dtype,
) -> _Reads:
    (batch_size, *map_size), (height, width) = map_shape, image_size
    check_range("project_features: pixel_of_site", pixel_of_site, low=-1, high=height * width - 1)
    check_range("project_features: batch_of_site", batch_of_site, low=0, high=batch_size - 1)
    pixel, batch = pixel_of_site.long(), batch_of_site.long()
    is_hit = (pixel >= 0) & (pixel < height * width) & (batch >= 0) & (batch < batch_size)
    pixel, batch = pixel.where(is_hit, 0), batch.where(is_hit, 0)
    rows, row_weights = _line_reads(pixel // width, map_size[0], height, align_corners=align_corners, dtype=dtype)
    columns, column_weights = _line_reads(pixel % width, map_size[1], width, align_corners=align_corners, dtype=dtype)
    cells = ((batch[:, None] * map_size[0] + rows) * map_size[1])[:, :, None] + columns[:, None, :]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return _Reads(is_hit[:, None], cells.flatten(1), weights.flatten(1))


def _line_reads(
    position: Tensor, size: int, image_size: int, *, align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """[N, 2] cells along one axis and [N, 2] weights of a pixel at ``position`` [N], as F.interpolate has them."""
    if align_corners:
        scale = (size - 1) / (image_size - 1) if image_size > 1 else 0.0
        source = position.to(dtype) * scale
    else:
        source = ((position.to(dtype) + 0.5) * (size / image_size) - 0.5).clamp_min(0)
    lower = source.long().clamp_max(size - 1)
    upper = (lower + 1).clamp_max(size - 1)
    fraction = (source - lower).clamp(0, 1)
    return torch.stack([lower, upper], 1), torch.stack([1 - fraction, fraction], 1)


def _project_features_reference(
    features: Tensor,
    pixel_of_site: Tensor,
    batch_of_site: Tensor,
    image_height: int,
    image_width: int,
    align_corners: bool,
) -> Tensor:
    batch_size, channels, height, width = features.shape
    dtype = accumulation_dtype(features.dtype)
    sizes = (batch_size, height, width), (image_height, image_width)
    is_hit, cells, weights = _reads(pixel_of_site, batch_of_site, *sizes, align_corners=align_corners, dtype=dtype)
    if cells.numel() == 0:
        return features.new_zeros((cells.shape[0], channels))
    rows_of_channels = features.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype)
    projected = F.embedding_bag(cells, rows_of_channels, mode="sum", per_sample_weights=weights)
    # Not by a weight of zero, because the placeholder cell may hold an infinity.
    return projected.masked_fill_(~is_hit, 0).to(features.dtype)


def _project_features_fake(features: Tensor, pixel_of_site: Tensor, *others: Any) -> Tensor:
    return features.new_empty((pixel_of_site.shape[0], features.shape[1]))


def _project_features_backward_reference(
    grad: Tensor,
    pixel_of_site: Tensor,
    batch_of_site: Tensor,
    batch_size: int,
    height: int,
    width: int,
    image_height: int,
    image_width: int,
    align_corners: bool,
    deterministic: bool,
) -> Tensor:
    """Gradient of the feature map, [B, C, h, w] as a view of [B, h, w, C]: each site adds whole rows of channels."""
    dtype = accumulation_dtype(grad.dtype)
    sizes = (batch_size, height, width), (image_height, image_width)
    is_hit, cells, weights = _reads(pixel_of_site, batch_of_site, *sizes, align_corners=align_corners, dtype=dtype)
    channels = grad.shape[1]
    wide = grad.to(dtype).masked_fill(~is_hit, 0)
    grad_map = wide.new_zeros((batch_size * height * width, channels))
    for corner in range(cells.shape[1]):
        contribution = wide * weights[:, corner, None]
        if deterministic and grad.device.type != "cpu":
            # It sorts; index_add_ is sequential on the CPU, but atomic on CUDA.
            grad_map.index_put_((cells[:, corner],), contribution, accumulate=True)
        else:
            grad_map.index_add_(0, cells[:, corner], contribution)
    return grad_map.to(grad.dtype).view(batch_size, height, width, channels).permute(0, 3, 1, 2)


def _project_features_backward_fake(
    grad: Tensor, pixel_of_site: Tensor, batch_of_site: Tensor, batch_size: int, height: int, width: int, *others: Any
) -> Tensor:
    return grad.new_empty((batch_size, height, width, grad.shape[1])).permute(0, 3, 1, 2)


_project_features = define_operator(
    "project_features",
    "(Tensor features, Tensor pixel_of_site, Tensor batch_of_site, SymInt image_height, SymInt image_width, "
    "bool align_corners) -> Tensor",
    reference=_project_features_reference,
    fake=_project_features_fake,
)
_project_features_backward = define_operator(
    "project_features_backward",
    "(Tensor grad, Tensor pixel_of_site, Tensor batch_of_site, SymInt batch_size, SymInt height, SymInt width, "
    "SymInt image_height, SymInt image_width, bool align_corners, bool deterministic) -> Tensor",
    reference=_project_features_backward_reference,
    fake=_project_features_backward_fake,
)


def _save_projection(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, pixel_of_site, batch_of_site, image_height, image_width, align_corners = inputs
    ctx.save_for_backward(pixel_of_site, batch_of_site)
    batch_size, _, height, width = features.shape
    ctx.sizes = (batch_size, height, width, image_height, image_width, align_corners)


def _projection_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_features = _project_features_backward(grad, *ctx.saved_tensors, *ctx.sizes, deterministic)
    return grad_features, None, None, None, None, None


register_autograd(_project_features, _projection_gradient, setup_context=_save_projection)
forbid_autograd(_project_features_backward)


def fill_empty(features: Tensor, neighbors: Tensor) -> Tensor:
    """Adds the mean of the 3x3x3 neighborhood where a channel is exactly zero.

    The mean is the sum over the neighborhood divided by 27: zeros and absent sites count. float16 and bfloat16 are
    summed in float32 and rounded once.

    Args:
        features: [N, C].
        neighbors: [N, 27] integer, the rows of the neighboring sites in C order of the offsets (-1, 0, 1) along
            X, height and Y, so that column 13 is the site itself; -1 where there is no site. The relation must be
            symmetric: ``neighbors[i, k] == j`` if and only if ``neighbors[j, 26 - k] == i``. The gradient relies on it.

    Returns:
        [N, C] contiguous, type of ``features``. Differentiable once in ``features``; the set of zero
        channels is treated as constant, so a zero channel has the gradient of adding the mean.

    Raises:
        IndexError: a row out of range (on the CPU; elsewhere such a neighbor counts as absent).
        ValueError: shapes or devices that do not fit.
        TypeError: features without floating type, rows without integer type.
    """
    check_features("fill_empty: features", features, ndim=2)
    check_integers("fill_empty: neighbors", neighbors)
    if neighbors.ndim != 2 or neighbors.shape[0] != features.shape[0] or neighbors.shape[1] != NUM_NEIGHBORS:
        raise ValueError(
            f"fill_empty: expected neighbors [{features.shape[0]}, {NUM_NEIGHBORS}] to match features "
            f"{list(features.shape)}, found {list(neighbors.shape)}"
        )
    check_same_device(features, neighbors=neighbors)
    return checked(_fill_empty(features, neighbors))


def _sum_of_neighbors(values: Tensor, neighbors: Tensor) -> Tensor:
    """[N, C]: the sum of ``values`` [N, C] over each site's neighborhood; rows out of range count as absent."""
    num_sites = values.shape[0]
    if values.numel() == 0:
        return values
    absent = values.new_zeros((1, values.shape[1]))
    rows = neighbors.long()
    rows = rows.where((rows >= 0) & (rows < num_sites), num_sites)
    return F.embedding_bag(rows, torch.cat([values, absent]), mode="sum")


def _fill_empty_reference(features: Tensor, neighbors: Tensor) -> Tensor:
    check_range("fill_empty: neighbors", neighbors, low=-1, high=features.shape[0] - 1)
    values = features.to(accumulation_dtype(features.dtype))
    mean = _sum_of_neighbors(values, neighbors) / NUM_NEIGHBORS
    return values.where(values != 0, mean).to(features.dtype).contiguous()


def _fill_empty_backward_reference(grad: Tensor, features: Tensor, neighbors: Tensor) -> Tensor:
    """``grad`` plus, from every neighbor, a 27th of its ``grad`` where its channel was filled.

    A site contributes to the sites that have it as a neighbor. The relation is symmetric, so these are its own
    neighbors (column k there is column 26 - k here), and the backward pass gathers instead of scattering.
    """
    check_range("fill_empty: neighbors", neighbors, low=-1, high=features.shape[0] - 1)
    wide = grad.to(accumulation_dtype(grad.dtype))
    filled = wide.masked_fill(features != 0, 0)
    return (wide + _sum_of_neighbors(filled, neighbors) / NUM_NEIGHBORS).to(grad.dtype).contiguous()


_fill_empty = define_operator(
    "fill_empty",
    "(Tensor features, Tensor neighbors) -> Tensor",
    reference=_fill_empty_reference,
    fake=lambda features, neighbors: torch.empty_like(features, memory_format=torch.contiguous_format),
)
_fill_empty_backward = define_operator(
    "fill_empty_backward",
    "(Tensor grad, Tensor features, Tensor neighbors) -> Tensor",
    reference=_fill_empty_backward_reference,
    fake=lambda grad, features, neighbors: torch.empty_like(grad, memory_format=torch.contiguous_format),
)


def _save_filling(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _filling_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _fill_empty_backward(grad, *ctx.saved_tensors), None


register_autograd(_fill_empty, _filling_gradient, setup_context=_save_filling)
forbid_autograd(_fill_empty_backward)
