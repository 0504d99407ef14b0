"""The decoder: joins the modalities, completes at 1/2 and 1/4, classifies only the voxels asked for."""

import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.fusion import Addition, Fusion, build_fusion
from ammnet_sparse.models.tsdf_encoder import StateProjection, add_state, take_sites
from ammnet_sparse.sparse.blocks import ChannelDropout, DDRBlock, Stage, Up, cells_under
from ammnet_sparse.sparse.convolutions import PointwiseConv3d
from ammnet_sparse.sparse.recipes import add
from ammnet_sparse.sparse.sites import SiteSet


class Decoder(nn.Module):
    """Features of the inputs at the encoder sites -> class logits at any voxels (names: section 2 of the design).

    M1 joins two inputs (off: addition, eq. 1). M2 and M3 need the TSDF features only: they stay in a network
    that reads the TSDF alone and vanish in one that reads images alone.
    """

    def __init__(self, config: ModelConfig, *, state_channels: int) -> None:
        super().__init__()
        width = config.width
        self.modulation1: Fusion | None = None
        if config.inputs == "both":
            gradient = config.modulation_gradient
            self.modulation1 = (
                build_fusion(config.fusion, width=width, gradient=gradient) if config.modulation1 else Addition()
            )
        self.stage_half = Stage(width, width)
        self.state_projection = StateProjection(state_channels, width) if state_channels else None
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        self.up_full = Up(width, width)
        reads_tsdf = config.inputs != "image"
        self.modulation2 = build_fusion(config.fusion, width=width) if config.modulation2 and reads_tsdf else None
        self.modulation3 = build_fusion(config.fusion, width=width) if config.modulation3 and reads_tsdf else None
        if self.modulation2 is not None or self.modulation3 is not None:
            self.tsdf_down = nn.ModuleList(
                [
                    DDRBlock(width, width // 4, expansion=4, stride=2),
                    DDRBlock(width, width // 4, expansion=8, stride=2),
                ]
            )
            self.tsdf_down_up = Up(2 * width, width)
        if self.modulation3 is not None:
            self.tsdf_up = Up(width, width)
        self.dropout = ChannelDropout(config.decoder_dropout)
        self.classifier = PointwiseConv3d(width, config.num_classes, bias=True)

    @property
    def reads_whole_volume(self) -> bool:
        """A voxel's logits depend on which other voxels are asked for (SENet, CBAM)."""
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
            voxels: voxels of the full resolution whose logits are wanted.
            state: [B * cells, state_channels] of every 1/2 cell, or None.
            chunk_size: voxels computed at a time at full resolution; None for all (as training needs).
        """
        joined = self._join_inputs(features, tsdf_features, sites)
        half, half_sites = self.stage_half(joined, sites)
        half = add_state(half, state, self.state_projection)
        quarter, quarter_sites = self.stage_quarter(half, half_sites)
        read = cells_under(voxels)
        raised = add(self.up_half(quarter, quarter_sites, read), take_sites(half, read))
        tsdf_half = self._tsdf_half(tsdf_features, sites, read)
        if self.modulation2 is not None and tsdf_half is not None:
            raised = self.modulation2(raised, tsdf_half, sites=read)
        if chunk_size is None or self.reads_whole_volume:
            return self._classify(raised, tsdf_half, read, voxels)
        pieces = [self._classify(raised, tsdf_half, read, chunk) for chunk in voxels.chunks(chunk_size)]
        return torch.cat(pieces)

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
        """T2 [R, C] at the 1/2 cells that are read."""
        if tsdf_features is None or (self.modulation2 is None and self.modulation3 is None):
            return None
        features, here = tsdf_features, sites
        for block in self.tsdf_down:
            features, here = block(features, here)
        raised: Tensor = self.tsdf_down_up(features, here, read)
        return raised

    def _classify(self, raised: Tensor, tsdf_half: Tensor | None, read: SiteSet, voxels: SiteSet) -> Tensor:
        features = self.up_full(raised, read, voxels)
        if self.modulation3 is not None and tsdf_half is not None:
            features = self.modulation3(features, self.tsdf_up(tsdf_half, read, voxels), sites=voxels)
        logits: Tensor = self.classifier(self.dropout(features, voxels))
        return logits
