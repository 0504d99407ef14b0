"""The TSDF encoder: spatial context at 1/2 and 1/4, features at the encoder sites."""

from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.inputs import STATE_CHANNELS
from ammnet_sparse.sparse.blocks import ChannelDropout, ElementDropout, Stage, Stem, Up, cells_under
from ammnet_sparse.sparse.recipes import add, take_rows
from ammnet_sparse.sparse.sites import SiteSet


class StateProjection(nn.Linear):
    """1x1x1 convolution without bias of the state channels of every 1/2 cell.

    Weights start with standard deviation 1. With PyTorch's initialization, the state would have a sixth of the scale
    of the features it is added to, and a short training predicts too little of what is occluded.
    """

    def __init__(self, state_channels: int, width: int) -> None:
        super().__init__(state_channels, width, bias=False)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # no values to initialize, and PyTorch would import its compiler
            nn.init.normal_(self.weight)


def state_projection(config: ModelConfig) -> StateProjection | None:
    """None where there is no state: on dense sites, and without the TSDF, where hit voxels are all of the input."""
    has_state = config.sites == "sparse" and config.inputs != "image"
    return StateProjection(STATE_CHANNELS, config.width) if has_state else None


class TSDFEncoder(nn.Module):
    """TSDF at the encoder sites -> features F_T at the encoder sites."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = Stem(1, config.stem_widths, out_channels=width)
        self.stage_half = Stage(width, width)
        self.state_projection = state_projection(config)
        self.stage_quarter = Stage(width, 2 * width)
        self.up_half = Up(2 * width, width)
        dropout = ChannelDropout if config.dropout_kind == "channel" else ElementDropout
        self.dropout = dropout(config.encoder_dropout)
        self.up_full = Up(width, width)

    def forward(self, tsdf: Tensor, sites: SiteSet, *, state: Tensor | None) -> Tensor:
        """TSDF [N, 1] at ``sites`` and the state [M, state_channels] of every 1/2 cell -> [N, C]."""
        half, half_sites = self.stage_half(self.stem(tsdf, sites), sites)
        half = add_state(half, state, self.state_projection)
        quarter, quarter_sites = self.stage_quarter(half, half_sites)
        read = cells_under(sites)
        raised = self.up_half(quarter, quarter_sites, read)
        raised = add(self.dropout(raised, read), take_sites(half, read))
        features: Tensor = self.up_full(raised, read, sites)
        return features


def add_state(features: Tensor, state: Tensor | None, projection: StateProjection | None) -> Tensor:
    """Features of every 1/2 cell plus the projected state; unchanged without a projection."""
    if projection is None:
        return features
    if state is None:
        raise ValueError("state: the network has a state projection, found no state channels")
    projected: Tensor = projection(state.to(features.dtype))
    return features + projected


def take_sites(features: Tensor, sites: SiteSet) -> Tensor:
    """Rows of features of every cell [M, C] at some of the cells -> [N, C]."""
    return features if sites.is_full else take_rows(features, sites.linear)
