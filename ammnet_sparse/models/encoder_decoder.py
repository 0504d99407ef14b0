"""The 3D part of the network: the TSDF encoder, and the decoder that completes and classifies."""

import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.fusion import build_fusion, kinds_of_fusion
from ammnet_sparse.sparse.blocks import (
    ChannelDropout,
    DDRBlock,
    ElementDropout,
    Stage,
    Stem,
    Up,
    cells_under,
    run_blocks,
)
from ammnet_sparse.sparse.convolutions import Linear, PointwiseConv3d
from ammnet_sparse.sparse.kernel_maps import pieces_by_residue
from ammnet_sparse.sparse.recipes import add, take_rows
from ammnet_sparse.sparse.sites import UP_KERNEL, SiteSet

STATE_CHANNELS = 4
"""Fractions free, occluded, unobserved, and mean TSDF."""


class StateProjection(Linear):
    """1x1x1 convolution without bias of the state channels of every 1/2 cell.

    Weights start with standard deviation 1. With PyTorch's initialization, the state would have a sixth of the scale
    of the features it is added to, and a short training predicts too little of what is occluded.
    """

    def __init__(self, state_channels: int, width: int) -> None:
        super().__init__(state_channels, width, bias=False)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # no values to initialize, and PyTorch would import its compiler
            nn.init.normal_(self.weight)


def _state_projection(config: ModelConfig) -> StateProjection | None:
    """None without state channels: on dense sites, and in networks that read images alone."""
    has_state = config.sites == "sparse" and config.inputs != "image"
    return StateProjection(STATE_CHANNELS, config.width) if has_state else None


class TSDFEncoder(nn.Module):
    """TSDF at the encoder sites -> features F_T at the encoder sites, with spatial context at 1/2 and 1/4."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = Stem(1, config.stem_widths, out_channels=width)
        self.stage_half = Stage(width, width)
        self.state_projection = _state_projection(config)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        dropout = ChannelDropout if config.dropout_kind == "channel" else ElementDropout
        self.dropout = dropout(config.encoder_dropout)
        self.up_full = Up(width, width)

    def forward(self, tsdf: Tensor, sites: SiteSet, *, state: Tensor | None) -> Tensor:
        """TSDF [N, 1] at ``sites`` and the state [M, state_channels] of every 1/2 cell -> [N, C]."""
        half, half_sites = self.stage_half(self.stem(tsdf, sites), sites)
        half = _add_state(half, state, self.state_projection)
        quarter, quarter_sites = self.stage_quarter(half, half_sites)
        read = cells_under(sites)
        raised = self.up_half(quarter, quarter_sites, read)
        raised = add(self.dropout(raised, read), _take_sites(half, read))
        features: Tensor = self.up_full(raised, read, sites)
        return features


class Decoder(nn.Module):
    """Features of the inputs at the encoder sites -> class logits at any voxels.

    It joins the modalities, completes at 1/2 and 1/4, and classifies only the requested voxels.

    ``modulation_gradient`` concerns M1: Table 5 studies the network that has M1 only, and detaching all three would
    leave the TSDF encoder without any gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        first, second, third = kinds_of_fusion(config)
        gradient = config.modulation_gradient if config.modulation1 else "full"
        self.modulation1 = build_fusion(first, width=width, gradient=gradient) if first else None
        self.stage_half = Stage(width, width)
        self.state_projection = _state_projection(config)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        self.up_full = Up(width, width)
        self.modulation2 = build_fusion(second, width=width) if second else None
        self.modulation3 = build_fusion(third, width=width) if third else None
        self.tsdf_down: nn.ModuleList | None = None
        self.tsdf_down_up: Up | None = None
        if second or third:
            self.tsdf_down = nn.ModuleList(
                [
                    DDRBlock(width, width // 4, expansion=4, stride=2),
                    DDRBlock(width, width // 4, expansion=8, stride=2),
                ]
            )
            self.tsdf_down_up = Up(2 * width, width)
        self.tsdf_up = Up(width, width) if third else None
        self.dropout = ChannelDropout(config.decoder_dropout)
        self.classifier = PointwiseConv3d(width, config.num_classes, bias=True)

    @property
    def reads_whole_volume(self) -> bool:
        """Whether a voxel's logits depend on which other voxels are requested (SENet, CBAM)."""
        fusions = (self.modulation2, self.modulation3)
        return any(fusion is not None and fusion.reads_whole_volume for fusion in fusions)

    def forward(
        self,
        features: Tensor | None,
        tsdf_features: Tensor | None,
        *,
        sites: SiteSet,
        voxels: SiteSet,
        state: Tensor | None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Class logits [M, num_classes] at ``voxels``.

        Args:
            features: F_R [N, C] at ``sites``; None for a network that reads the TSDF alone.
            tsdf_features: F_T [N, C] at ``sites``; None for a network that reads images alone.
            sites: the encoder sites.
            voxels: voxels at full resolution to compute logits for.
            state: [B * cells, state_channels] of every 1/2 cell, or None.
            chunk_size: voxels computed at a time at full resolution; None for all (as training needs).
        """
        joined = self._join_inputs(features, tsdf_features, sites)
        half, half_sites = self.stage_half(joined, sites)
        half = _add_state(half, state, self.state_projection)
        quarter, quarter_sites = self.stage_quarter(half, half_sites)
        read = cells_under(voxels)
        raised = add(self.up_half(quarter, quarter_sites, read), _take_sites(half, read))
        tsdf_half = self._tsdf_half(tsdf_features, sites, read)
        if self.modulation2 is not None and tsdf_half is not None:
            raised = self.modulation2(raised, tsdf_half, sites=read)
        if chunk_size is None or self.reads_whole_volume:
            return self._classify(raised, tsdf_half, read, voxels)
        pieces, position = pieces_by_residue(voxels, UP_KERNEL.stride, size=chunk_size)
        logits = [self._classify(raised, tsdf_half, read, piece) for piece in pieces]
        return torch.cat(logits).index_select(0, position)

    def _join_inputs(self, features: Tensor | None, tsdf_features: Tensor | None, sites: SiteSet) -> Tensor:
        if features is not None and tsdf_features is not None and self.modulation1 is not None:
            joined: Tensor = self.modulation1(features, tsdf_features, sites=sites)
            return joined
        if features is not None:
            return features
        if tsdf_features is not None:
            return tsdf_features
        raise ValueError("Decoder: expected image features, TSDF features or both, found neither")

    def _tsdf_half(self, tsdf_features: Tensor | None, sites: SiteSet, read: SiteSet) -> Tensor | None:
        """T2 [R, C] at the 1/2 cells that later layers read."""
        if tsdf_features is None or self.tsdf_down is None or self.tsdf_down_up is None:
            return None
        features, here = run_blocks(self.tsdf_down, tsdf_features, sites)
        raised: Tensor = self.tsdf_down_up(features, here, read)
        return raised

    def _classify(self, raised: Tensor, tsdf_half: Tensor | None, read: SiteSet, voxels: SiteSet) -> Tensor:
        features = self.up_full(raised, read, voxels)
        if self.modulation3 is not None and self.tsdf_up is not None and tsdf_half is not None:
            features = self.modulation3(features, self.tsdf_up(tsdf_half, read, voxels), sites=voxels)
        logits: Tensor = self.classifier(self.dropout(features, voxels))
        return logits


def _add_state(features: Tensor, state: Tensor | None, projection: StateProjection | None) -> Tensor:
    """Features of every 1/2 cell plus the projected state; unchanged without a projection."""
    if projection is None:
        return features
    if state is None:
        raise ValueError("state: the network has a state projection, found no state channels")
    projected: Tensor = projection(state.to(features.dtype))
    return features + projected


def _take_sites(features: Tensor, sites: SiteSet) -> Tensor:
    """Rows of features of every cell [M, C] at some of the cells -> [N, C]."""
    return features if sites.is_full else take_rows(features, sites.linear)
