"""Building blocks on site features: DDR blocks, stages, the stem and upsampling."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ammnet_sparse.sparse.convolutions import (
    PointwiseConv3d,
    SiteConv3d,
    SiteConvTranspose3d,
    average_pool,
)
from ammnet_sparse.sparse.kernel_maps import cells_read, strided_sites
from ammnet_sparse.sparse.normalization import SiteBatchNorm, unchanged_statistics
from ammnet_sparse.sparse.recipes import multiply, no_recipes, take_rows
from ammnet_sparse.sparse.sites import (
    AXIS_HEIGHT,
    AXIS_X,
    AXIS_Y,
    NEIGHBORHOOD,
    UP_KERNEL,
    SiteSet,
    Triple,
    axis_kernel,
    full_sites,
    half_shape,
    strided_shape,
)

RecomputeLevel = Literal["off", "elementwise", "blocks", "full"]
"""Levels of ``training.recompute``; each adds to the one before."""
_Result = TypeVar("_Result")


class Recomputable(nn.Module):
    """A module whose activations can be recomputed in the backward pass instead of kept.

    Batch normalization updates its running statistics in the first pass only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_recomputed = False

    def recomputed(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """``function(*arguments)``, whose activations are kept, or recomputed if ``is_recomputed``."""
        if not (self.is_recomputed and torch.is_grad_enabled()):
            return function(*arguments)

        def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
            return contextlib.nullcontext(), unchanged_statistics(self)

        with no_recipes():
            out: _Result = checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)
        return out


class _Dropout(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, features: Tensor, sites: SiteSet) -> Tensor:
        """[N, C] -> [N, C]; the identity in evaluation mode."""
        if not self.training or self.probability == 0.0:
            return features
        if self.probability == 1.0:
            return torch.zeros_like(features)
        return multiply(features, self._mask(features, sites))

    def _mask(self, features: Tensor, sites: SiteSet) -> Tensor:
        raise NotImplementedError

    def _drawn(self, mask: Tensor) -> Tensor:
        """``mask`` filled with 0, or what keeps the mean."""
        keep = 1.0 - self.probability
        return mask.bernoulli_(keep).div_(keep)


class ChannelDropout(_Dropout):
    """Dropout of whole channels, one draw per sample and channel, as ``nn.Dropout3d`` draws them."""

    def _mask(self, features: Tensor, sites: SiteSet) -> Tensor:
        return take_rows(self._drawn(features.new_empty(sites.batch_size, features.shape[1])), sites.batch_index)


class ElementDropout(_Dropout):
    """Dropout of single elements; if every cell is a site, the draws are those of ``nn.Dropout`` on the volume."""

    def _mask(self, features: Tensor, sites: SiteSet) -> Tensor:
        if not sites.is_full:
            return self._drawn(torch.empty_like(features))
        volume = self._drawn(features.new_empty(sites.batch_size, features.shape[1], sites.num_cells))
        return volume.transpose(1, 2).reshape(features.shape)


class Down(nn.Module):
    """Average pooling over full windows, 1x1x1 convolution and batch normalization (the block's shortcuts)."""

    def __init__(self, in_channels: int, out_channels: int, *, window: Triple) -> None:
        super().__init__()
        self.window = window
        self.conv = PointwiseConv3d(in_channels, out_channels, bias=False)
        self.norm = SiteBatchNorm(out_channels)

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet, *, num_groups: int = 1) -> Tensor:
        """[N_source, in] -> [N_target, out]; ``num_groups`` as in ``SiteBatchNorm``."""
        pooled = average_pool(features, source, target=target, window=self.window)
        normalized: Tensor = self.norm(self.conv(pooled), num_groups=num_groups)
        return normalized


class DDRBlock(Recomputable):
    """Dimensional decomposition residual block: 1x1x3, 1x3x1 and 3x1x1 convolutions in a bottleneck.

    Stride 1 keeps the sites. A strided block goes from any sites to every cell of the coarser grid; its
    intermediate cells are those that contain or touch a site.
    """

    def __init__(self, in_channels: int, planes: int, *, expansion: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        if stride > 1 and dilation > 1:
            raise ValueError(f"DDRBlock: a strided block has dilation 1, found stride {stride}, dilation {dilation}")
        out_channels = planes * expansion
        if stride == 1 and in_channels != out_channels:
            raise ValueError(f"DDRBlock: stride 1 keeps the channels, found {in_channels} -> {out_channels}")
        self.stride = stride
        self.conv1 = PointwiseConv3d(in_channels, planes, bias=False)
        self.norm1 = SiteBatchNorm(planes, with_relu=True)
        self.conv2 = SiteConv3d(planes, planes, axis_kernel(AXIS_Y, stride=stride, dilation=dilation))
        self.norm2 = SiteBatchNorm(planes)
        self.conv3 = SiteConv3d(planes, planes, axis_kernel(AXIS_HEIGHT, stride=stride, dilation=dilation))
        self.norm3 = SiteBatchNorm(planes)
        self.conv4 = SiteConv3d(planes, planes, axis_kernel(AXIS_X, stride=stride, dilation=dilation))
        self.norm4 = SiteBatchNorm(planes)
        self.conv5 = PointwiseConv3d(planes, out_channels, bias=False)
        self.norm5 = SiteBatchNorm(out_channels)
        if stride > 1:
            self.down2 = Down(planes, planes, window=(1, stride, 1))
            self.down3 = Down(planes, planes, window=(stride, 1, 1))
            self.down4 = Down(planes, planes, window=(stride, 1, 1))
            self.shortcut = Down(in_channels, out_channels, window=(stride, stride, stride))

    def forward(self, features: Tensor, sites: SiteSet, *, num_groups: int = 1) -> tuple[Tensor, SiteSet]:
        """[N, in] at ``sites`` -> ([M, out], its sites).

        The frames of a batch may form ``num_groups`` groups of equally many frames and sites: in training mode each is
        normalized by itself.
        """
        if self.stride == 1:
            return self.recomputed(self._same, features, sites, num_groups), sites
        y_sites = strided_sites(sites, self.conv2.kernel)
        height_sites = strided_sites(y_sites, self.conv3.kernel)
        x_sites = _every_cell(sites, strided_shape(height_sites.spatial_shape, self.conv4.kernel))
        route = (sites, y_sites, height_sites, x_sites)
        return self.recomputed(self._strided, features, route, num_groups), x_sites

    # Later layers read both the sums and their ReLUs of the second and third convolution: return both.

    def _same(self, features: Tensor, sites: SiteSet, num_groups: int) -> Tensor:
        out1 = self.norm1(self.conv1(features), num_groups=num_groups)
        activated2, out2 = self.norm2(
            self.conv2(out1, sites, sites), with_relu=True, with_sum=True, num_groups=num_groups
        )
        activated3, out3 = self.norm3(
            self.conv3(activated2, sites, sites), out2, with_relu=True, with_sum=True, num_groups=num_groups
        )
        out4 = self.norm4(self.conv4(activated3, sites, sites), out2, out3, with_relu=True, num_groups=num_groups)
        result: Tensor = self.norm5(self.conv5(out4), features, with_relu=True, num_groups=num_groups)
        return result

    def _strided(self, features: Tensor, route: tuple[SiteSet, SiteSet, SiteSet, SiteSet], num_groups: int) -> Tensor:
        sites, y_sites, height_sites, x_sites = route
        out1 = self.norm1(self.conv1(features), num_groups=num_groups)
        activated2, out2 = self.norm2(
            self.conv2(out1, sites, y_sites), with_relu=True, with_sum=True, num_groups=num_groups
        )
        out2_height = self.down2(out2, y_sites, height_sites, num_groups=num_groups)
        activated3, out3 = self.norm3(
            self.conv3(activated2, y_sites, height_sites),
            out2_height,
            with_relu=True,
            with_sum=True,
            num_groups=num_groups,
        )
        out2_x = self.down3(out2_height, height_sites, x_sites, num_groups=num_groups)
        out3_x = self.down4(out3, height_sites, x_sites, num_groups=num_groups)
        out4 = self.norm4(
            self.conv4(activated3, height_sites, x_sites), out2_x, out3_x, with_relu=True, num_groups=num_groups
        )
        shortcut = self.shortcut(features, sites, x_sites, num_groups=num_groups)
        result: Tensor = self.norm5(self.conv5(out4), shortcut, with_relu=True, num_groups=num_groups)
        return result


StaticBlocks = Callable[[Sequence[DDRBlock], Tensor, SiteSet, int], tuple[Tensor, SiteSet] | None]
"""Runs blocks on full grids: (blocks, features, sites, num_groups) -> as ``run_blocks``; None: they run as usual."""

_static_blocks: StaticBlocks | None = None


@contextlib.contextmanager
def static_blocks_by(run: StaticBlocks) -> Iterator[None]:
    """Within the block ``run_blocks`` lets ``run`` compute the blocks that have the same shapes in every step."""
    global _static_blocks
    before, _static_blocks = _static_blocks, run
    try:
        yield
    finally:
        _static_blocks = before


def run_blocks(
    blocks: Iterable[nn.Module], features: Tensor, sites: SiteSet, *, num_groups: int = 1
) -> tuple[Tensor, SiteSet]:
    """DDR blocks one after another: [N, in] at ``sites`` -> ([M, out], its sites)."""
    left = cast(list[DDRBlock], list(blocks))
    while left and not sites.is_full:
        features, sites = left.pop(0)(features, sites, num_groups=num_groups)
    if left and _static_blocks is not None:
        found = _static_blocks(left, features, sites, num_groups)
        if found is not None:
            return found
    for block in left:
        features, sites = block(features, sites, num_groups=num_groups)
    return features, sites


def _every_cell(sites: SiteSet, shape: Triple) -> SiteSet:
    """Every cell of a grid of another ``shape`` over the batch of ``sites``."""
    return full_sites(sites.batch_size, shape, sites.linear.device)


class Stage(Recomputable):
    """Four DDR blocks: one of stride 2, then dilations 1, 2 and 3 with a quarter of the channels as planes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        planes = in_channels // 4
        blocks = [DDRBlock(in_channels, planes, expansion=out_channels // planes, stride=2)]
        blocks += [DDRBlock(out_channels, out_channels // 4, expansion=4, dilation=dilation) for dilation in (1, 2, 3)]
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)

    def forward(self, features: Tensor, sites: SiteSet) -> tuple[Tensor, SiteSet]:
        """[N, in] at ``sites`` -> ([M, out], every cell of the grid at half the resolution)."""
        coarse = _every_cell(sites, half_shape(sites.spatial_shape))

        def run(features: Tensor) -> Tensor:
            return run_blocks(self.children(), features, sites)[0]

        return self.recomputed(run, features), coarse


class Stem(Recomputable):
    """Three 3x3x3 convolutions, each with batch normalization and ReLU, from voxel to voxel."""

    def __init__(self, in_channels: int, hidden: tuple[int, int], *, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SiteConv3d(in_channels, hidden[0], NEIGHBORHOOD)
        self.norm1 = SiteBatchNorm(hidden[0], with_relu=True)
        self.conv2 = SiteConv3d(hidden[0], hidden[1], NEIGHBORHOOD)
        self.norm2 = SiteBatchNorm(hidden[1], with_relu=True)
        self.conv3 = SiteConv3d(hidden[1], out_channels, NEIGHBORHOOD)
        self.norm3 = SiteBatchNorm(out_channels, with_relu=True)

    def forward(self, features: Tensor, sites: SiteSet) -> Tensor:
        """[N, in] -> [N, out]."""
        return self.recomputed(self._run, features, sites)

    def _run(self, features: Tensor, sites: SiteSet) -> Tensor:
        features = self.norm1(self.conv1(features, sites, sites))
        features = self.norm2(self.conv2(features, sites, sites))
        normalized: Tensor = self.norm3(self.conv3(features, sites, sites))
        return normalized


class Up(Recomputable):
    """Transposed convolution to twice the resolution, batch normalization, ReLU; only at the requested sites."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SiteConvTranspose3d(in_channels, out_channels)
        self.norm = SiteBatchNorm(out_channels, with_relu=True)

    def forward(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:
        """[N_source, in] -> [N_target, out]."""
        return self.recomputed(self._run, features, source, target)

    def _run(self, features: Tensor, source: SiteSet, target: SiteSet) -> Tensor:
        normalized: Tensor = self.norm(self.conv(features, source, target))
        return normalized


def set_recompute(network: nn.Module, level: RecomputeLevel, *, is_inside: bool = False) -> None:
    """Sets which parts of a network the backward pass recomputes as a whole (``training.recompute``).

    Args:
        level: ``blocks``: DDR blocks; ``full``: the outermost parts, that is stages, stems, upsampling, the head of an
            image encoder, and DDR blocks outside of stages.
        is_inside: the network is part of one that ``full`` recomputes.
    """
    for child in network.children():
        is_part = isinstance(child, Recomputable)
        if isinstance(child, Recomputable):
            is_block = level == "blocks" and isinstance(child, DDRBlock)
            child.is_recomputed = is_block or (level == "full" and not is_inside)
        set_recompute(child, level, is_inside=is_inside or is_part)


def cells_under(sites: SiteSet) -> SiteSet:
    """The cells at half the resolution that ``Up`` reads for these sites."""
    return cells_read(sites, UP_KERNEL, half_shape(sites.spatial_shape))
