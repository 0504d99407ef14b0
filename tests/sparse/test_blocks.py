"""Blocks on some sites against dense formulas with the other cells masked; test_parity.py has them on every cell."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.sparse.blocks import ChannelDropout, DDRBlock
from ammnet_sparse.sparse.sites import SiteSet, sites_from_mask
from tests.models.scenes import assert_near, unsettle

SHAPE = (12, 12, 12)


def random_sites(density: float, *, seed: int = 0) -> SiteSet:
    generator = torch.Generator().manual_seed(seed)
    return sites_from_mask(torch.rand(2, *SHAPE, generator=generator) < density)


def assert_equal(found: Tensor, expected: Tensor, features: Tensor, modules: tuple[nn.Module, nn.Module]) -> None:
    """The same values and gradients, of the input and of every weight."""
    assert_near(found, expected, tolerance=1e-10, name="output")
    upstream = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((value * upstream).sum(), (features, *module.parameters()))
        for value, module in zip((found, expected), modules, strict=True)
    ]
    largest = max(float(value.abs().max()) for value in gradients[1])
    names = ["features", *(name for name, _ in modules[0].named_parameters())]
    for name, value, wanted in zip(names, *gradients, strict=True):
        scale = largest if name == "conv.bias" else None  # before a normalization: rounding alone
        assert_near(value, wanted, tolerance=1e-8, name=name, scale=scale)


def masked(volume: Tensor, is_site: Tensor) -> Tensor:
    return torch.where(is_site, volume, 0.0)


def dense_block_on_sites(block: DDRBlock, volume: Tensor, is_site: Tensor) -> Tensor:
    """The formulas of section 2 on volumes, with cells that neither contain nor touch a site held at zero."""
    stride = block.stride

    def normalize(values: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        values = F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return values.relu() if getattr(norm, "with_relu", False) else values

    def convolve(values: Tensor, convolution: nn.Conv3d, norm: nn.BatchNorm1d) -> Tensor:
        return normalize(F.conv3d(values, convolution.weight, None, convolution.stride, convolution.padding), norm)

    def down(values: Tensor, module: nn.Module, window: tuple[int, int, int]) -> Tensor:
        return normalize(F.conv3d(F.avg_pool3d(values, window), module.conv.weight), module.norm)

    def strided(mask: Tensor, convolution: nn.Conv3d) -> Tensor:
        values = mask.double()
        ones = torch.ones_like(convolution.weight[:1, :1])
        touched = F.conv3d(values, ones, None, convolution.stride, convolution.padding)
        return (touched > 0) | (F.max_pool3d(values, convolution.stride) > 0)

    y_mask = strided(is_site, block.conv2)
    height_mask = strided(y_mask, block.conv3)
    first = masked(convolve(volume, block.conv1, block.norm1), is_site)
    second = masked(convolve(first, block.conv2, block.norm2), y_mask)
    second_height = down(second, block.down2, (1, stride, 1))
    third = masked(convolve(second.relu(), block.conv3, block.norm3) + second_height, height_mask)
    second_x = down(masked(second_height, height_mask), block.down3, (stride, 1, 1))
    fourth = convolve(third.relu(), block.conv4, block.norm4) + second_x + down(third, block.down4, (stride, 1, 1))
    shortcut = down(volume, block.shortcut, (stride, stride, stride))
    return (convolve(fourth.relu(), block.conv5, block.norm5) + shortcut).relu()


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_a_strided_block_on_some_sites_follows_the_formulas(stride: int, density: float) -> None:
    torch.manual_seed(0)
    block = DDRBlock(8, 4, expansion=4, stride=stride).double().eval()
    unsettle(block)
    sites = random_sites(density)
    features = torch.randn(len(sites), 8, dtype=torch.float64, requires_grad=True)
    found, target = block(features, sites)
    assert target.is_full and target.spatial_shape == (12 // stride, 12 // stride, 12 // stride)
    is_site = sites.densify(torch.ones(len(sites), 1)) > 0
    expected = target.gather(dense_block_on_sites(block, sites.densify(features), is_site))
    assert_equal(found, expected, features, (block, block))


def test_a_strided_block_normalizes_over_the_cells_that_touch_a_site() -> None:
    block = DDRBlock(8, 4, expansion=4, stride=2).train()
    # (0, 0, 0) lies in one window of each axis; (6, 9, 4) in one along Y and in two along height.
    sites = SiteSet(1, SHAPE, torch.tensor([0, 976]))
    counted: list[int] = []
    for norm in (block.norm1, block.norm2, block.norm3, block.norm4, block.shortcut.norm):
        norm.register_forward_hook(lambda _module, inputs, _out: counted.append(len(inputs[0])))
    block(torch.randn(2, 8), sites)
    assert counted == [2, 2, 3, 216, 216]


def test_dropout_draws_one_value_per_sample_and_channel_as_torch() -> None:
    sites = random_sites(0.2)
    features = torch.randn(len(sites), 16)
    dropout = ChannelDropout(0.3).train()
    torch.manual_seed(5)
    found = dropout(features, sites)
    torch.manual_seed(5)
    expected = sites.gather(F.dropout3d(sites.densify(features), 0.3))
    torch.testing.assert_close(found, expected)
    assert 0 < int((found == 0).sum()) < found.numel()


def test_blocks_that_cannot_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="dilation"):
        DDRBlock(8, 4, expansion=2, stride=2, dilation=3)
    with pytest.raises(ValueError, match="channels"):
        DDRBlock(8, 4, expansion=4)
