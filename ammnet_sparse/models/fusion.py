"""How features of the image and of the TSDF are joined: the paper's modulation and the alternatives of Table S2.

Every module works on site-major features [N, C].
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.config import Fusion as FusionKind
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.ops import modulate
from ammnet_sparse.sparse.convolutions import PointwiseConv3d
from ammnet_sparse.sparse.sites import SiteSet

ModulationGradient = Literal["full", "gradient_only", "fusion_only", "detached"]

SQUEEZE_REDUCTION = 16
"""Channels per hidden channel of the squeeze of SENet and CBAM (the value of both papers)."""


class Fusion(nn.Module):
    """Joins features with the TSDF features of the same sites.

    ``reads_whole_volume``: the result at a site depends on the other sites of its sample. Such a fusion
    cannot be evaluated in chunks, and its result depends on which cells are sites.
    """

    reads_whole_volume: bool = False

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        """Features [N, C] of the image or decoder, TSDF features [N, C], rows in the order of ``sites`` -> [N, C]."""
        raise NotImplementedError(f"{type(self).__name__}: a fusion defines forward; use one of build_fusion")


class Modulation(Fusion):
    """Cross-modal modulation, eq. 2: ``features * (1 + sigmoid(scale(tsdf))) + bias(tsdf)``.

    ``gradient`` chooses the variants of Table 5, with add(F_R, F_T) = F_R + F_T (eq. 1), mod(F_R, F_T) = eq. 2 and
    sg = stop-gradient (the paper gives no formulas, these are ours):

    * ``full``: mod;
    * ``gradient_only`` keeps the interdependent gradient: mod + sg(add - mod), the value of addition with the
      gradients of modulation;
    * ``fusion_only`` keeps the feature fusion: add + mod(sg F_R, sg F_T) - sg(add), the value of modulation; F_R
      and F_T get the gradients of addition, the convolutions of scale and bias those of eq. 2;
    * ``detached``: mod with scale and bias of sg(F_T). Through M1 the TSDF features then get no gradient at all: in a
      network that has M1 alone the TSDF encoder stays as initialized. Not a row of Table 5.
    """

    def __init__(self, width: int, *, gradient: ModulationGradient = "full") -> None:
        super().__init__()
        self.gradient = gradient
        self.scale = PointwiseConv3d(width, width, bias=True)
        self.bias = PointwiseConv3d(width, width, bias=True)

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        modulated_features, source = modulation_inputs(features, tsdf_features, gradient=self.gradient)
        # Under autocast the 1x1x1 convolutions may return another type than the features have.
        scale = self.scale(source).to(features.dtype)
        bias = self.bias(source).to(features.dtype)
        modulated = modulate(modulated_features, scale, bias)
        return select_gradient(modulated, features, tsdf_features, gradient=self.gradient)


class Addition(Fusion):
    """The baseline, eq. 1: ``features + tsdf``."""

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        return features + tsdf_features


class Concatenation(Fusion):
    """Both features concatenated and reduced to C channels by a 1x1x1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = PointwiseConv3d(2 * width, width, bias=True)

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        return self.conv(torch.cat([features, tsdf_features], dim=1))


class SqueezeExcitation(Fusion):
    """Addition refined as in SENet: channels weighted by their means over the sites of the sample.

    The sites are those the fusion is evaluated at: every voxel in place of M2 and M3, but the encoder sites in place of
    M1, where features exist nowhere else. With ``model.sites=dense`` it is the whole volume everywhere.
    """

    reads_whole_volume = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = _channel_mlp(width)

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        added = features + tsdf_features
        mean = sample_mean(added, sites)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return added * gate.to(added.dtype)[sites.batch_index]


class CBAM(Fusion):
    """Addition refined as in CBAM: channel attention, then spatial attention with a 7x7x7 convolution.

    Means and maxima run over the sites of the sample, as in ``SqueezeExcitation``. The spatial maps (mean and maximum
    over the channels) are 0 in cells that are not sites.
    """

    reads_whole_volume = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = _channel_mlp(width)
        self.spatial = nn.Conv3d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        added = features + tsdf_features
        mean = sample_mean(added, sites)
        largest = sample_max(added, sites).to(mean.dtype)
        attention = self.excite(F.relu(self.squeeze(mean))) + self.excite(F.relu(self.squeeze(largest)))
        refined = added * torch.sigmoid(attention).to(added.dtype)[sites.batch_index]
        maps = torch.stack([refined.mean(dim=1), refined.amax(dim=1)], dim=1)
        gate = torch.sigmoid(sites.gather(self.spatial(sites.densify(maps))))
        return refined * gate.to(added.dtype)


class Highway(Fusion):
    """Soft selection: ``gate * features + (1 - gate) * tsdf``, the gate a sigmoid of a 1x1x1 convolution of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = PointwiseConv3d(2 * width, width, bias=True)

    def forward(self, features: Tensor, tsdf_features: Tensor, *, sites: SiteSet) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([features, tsdf_features], dim=1)))
        return gate * features + (1 - gate) * tsdf_features


def build_fusion(kind: FusionKind, *, width: int, gradient: ModulationGradient = "full") -> Fusion:
    """The fusion of a configuration for ``width`` channels.

    Raises:
        ValueError: an unknown kind, or a gradient other than ``full`` for a fusion that is not modulation.
    """
    if gradient != "full" and kind != "modulation":
        raise ValueError(
            f"modulation_gradient: {gradient!r} is defined for fusion: modulation only, found fusion: {kind}; "
            "set modulation_gradient: full"
        )
    if kind == "modulation":
        return Modulation(width, gradient=gradient)
    if kind == "add":
        return Addition()
    if kind == "concat":
        return Concatenation(width)
    if kind == "senet":
        return SqueezeExcitation(width)
    if kind == "cbam":
        return CBAM(width)
    if kind == "highway":
        return Highway(width)
    raise ValueError(f"fusion: expected modulation, add, concat, senet, cbam or highway, found {kind!r}")


def kinds_of_fusion(config: ModelConfig) -> tuple[FusionKind | None, FusionKind | None, FusionKind | None]:
    """The kinds of M1, M2 and M3, None for one that is left out.

    M1 joins two inputs (off: addition, eq. 1); M2 and M3 need the TSDF features.
    """
    reads_tsdf = config.inputs != "image"
    first: FusionKind = config.fusion if config.modulation1 else "add"
    return (
        first if config.inputs == "both" else None,
        config.fusion if config.modulation2 and reads_tsdf else None,
        config.fusion if config.modulation3 and reads_tsdf else None,
    )


def modulation_inputs(
    features: Tensor, tsdf_features: Tensor, *, gradient: ModulationGradient
) -> tuple[Tensor, Tensor]:
    """F_R and F_T as eq. 2 reads them, any shape, with gradients stopped by the variant; see ``Modulation``."""
    if gradient == "fusion_only":
        return features.detach(), tsdf_features.detach()
    return features, tsdf_features.detach() if gradient == "detached" else tsdf_features


def select_gradient(
    modulated: Tensor, features: Tensor, tsdf_features: Tensor, *, gradient: ModulationGradient
) -> Tensor:
    """The variants of Table 5 made of eq. 2's result and eq. 1's, any shape; see ``Modulation``.

    Args:
        modulated: eq. 2 of ``modulation_inputs``.
    """
    if gradient == "gradient_only":
        added = features + tsdf_features
        return modulated + (added - modulated).detach()
    if gradient == "fusion_only":
        added = features + tsdf_features
        return modulated + (added - added.detach())  # a zero that carries the gradients of addition
    return modulated


def sample_mean(features: Tensor, sites: SiteSet) -> Tensor:
    """Means of [N, C] over the sites of each sample -> [B, C], at least float32; zeros for a sample without sites."""
    # In fp16 a sum over a hundred thousand sites overflows and a count stops at 2048.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    total = features.new_zeros(sites.batch_size, features.shape[1]).index_add(0, sites.batch_index, features)
    count = features.new_zeros(sites.batch_size).index_add(0, sites.batch_index, features.new_ones(len(sites)))
    return total / count.clamp(min=1)[:, None]


def sample_max(features: Tensor, sites: SiteSet) -> Tensor:
    """Maxima of [N, C] over the sites of each sample -> [B, C]; zeros for a sample without sites."""
    index = sites.batch_index[:, None].expand_as(features)
    start = features.new_zeros(sites.batch_size, features.shape[1])
    return start.scatter_reduce(0, index, features, reduce="amax", include_self=False)


def _channel_mlp(width: int) -> tuple[nn.Linear, nn.Linear]:
    hidden = max(width // SQUEEZE_REDUCTION, 1)
    return nn.Linear(width, hidden), nn.Linear(hidden, width)
