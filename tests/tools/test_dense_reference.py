"""The structure of the dense reference. Its values are compared with the sparse network in test_parity.py."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench.dense_reference.blocks import DDRBlock, Down, Stage, Up
from bench.dense_reference.network import DenseAMMNet, DenseDiscriminator
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from tests.models.scenes import small_config

X, HEIGHT, Y = 0, 1, 2


def transparent_block(*, stride: int = 1, dilation: int = 1) -> DDRBlock:
    """A block of one channel whose convolutions pass values on and whose shortcuts are silent."""
    block = DDRBlock(1, 1, expansion=1, stride=stride, dilation=dilation).double().eval()
    with torch.no_grad():
        for convolution in (block.conv1, block.conv5):
            convolution.weight.fill_(1)
        for convolution in (block.conv2, block.conv3, block.conv4):
            convolution.weight.zero_()
            convolution.weight.view(-1)[1] = 1
        for module in block.modules():
            if isinstance(module, Down):
                module.conv.weight.zero_()
    return block


def impulse() -> Tensor:
    volume = torch.zeros(1, 1, 13, 13, 13, dtype=torch.float64)
    volume[0, 0, 6, 6, 6] = 1
    return volume


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize(("name", "axis"), [("conv2", Y), ("conv3", HEIGHT), ("conv4", X)])
def test_each_convolution_spreads_along_its_own_axis(name: str, axis: int, dilation: int) -> None:
    block = transparent_block(dilation=dilation)
    with torch.no_grad():
        getattr(block, name).weight.fill_(1)
        reached = block(impulse())[0, 0].nonzero() - 6
    offsets = [0, 0, 0]
    expected = []
    for step in (-dilation, 0, dilation):
        offsets[axis] = step
        expected.append(list(offsets))
    assert reached.tolist() == expected


@pytest.mark.parametrize("stride", [2, 3])
def test_a_strided_block_divides_y_then_height_then_x(stride: int) -> None:
    block = DDRBlock(4, 2, expansion=4, stride=stride)
    extents: dict[str, tuple[int, ...]] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv3d | Down):

            def note(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
                extents[name] = tuple(out.shape[2:])

            module.register_forward_hook(note)
    x, height, y = 12, 6, 18
    out = block(torch.randn(1, 4, x, height, y))
    assert extents["conv2"] == (x, height, y // stride)
    assert extents["conv3"] == extents["down2"] == (x, height // stride, y // stride)
    assert extents["conv4"] == extents["down3"] == extents["down4"] == extents["shortcut"] == tuple(out.shape[2:])
    assert out.shape == (1, 8, x // stride, height // stride, y // stride)


def test_residuals_add_up_along_the_axes() -> None:
    """With the last two axis convolutions silent, o3 = o2 and o4 = o2 + o3: twice what conv2 gives."""
    block = transparent_block()
    with torch.no_grad():
        block.conv3.weight.zero_()
        block.conv4.weight.zero_()
        volume = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64)
        found = block(volume)
    torch.testing.assert_close(found, 3 * volume, rtol=1e-4, atol=0)


def test_the_shortcut_pools_full_windows_and_the_result_is_not_negative() -> None:
    block = DDRBlock(4, 2, expansion=4, stride=2).double().eval()
    volume = torch.randn(1, 4, 4, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        block.conv5.weight.zero_()
        pooled = volume.view(1, 4, 2, 2, 3, 2, 4, 2).mean(dim=(3, 5, 7))
        expected = F.relu(block.shortcut.norm(block.shortcut.conv(pooled)))
        torch.testing.assert_close(block(volume), expected)


def test_stages_and_ups_have_the_widths_and_extents_of_the_paper() -> None:
    stage = Stage(8, 16)
    assert [block.conv1.out_channels for block in stage] == [2, 4, 4, 4]
    assert [block.conv2.dilation for block in stage] == [(1, 1, 1), (1, 1, 1), (1, 1, 2), (1, 1, 3)]
    assert [block.conv4.padding for block in stage] == [(1, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert stage(torch.randn(1, 8, 12, 4, 8)).shape == (1, 16, 6, 2, 4)
    assert Up(16, 8)(torch.randn(1, 16, 6, 2, 4)).shape == (1, 8, 12, 4, 8)


def parts(**changes: Any) -> set[str]:
    """Names down to the second level of what has weights."""
    return {".".join(name.split(".")[:2]) for name in DenseAMMNet(small_config(**changes)).state_dict()}


def test_what_an_option_does_not_need_is_not_built() -> None:
    everything = parts()
    assert "decoder.tsdf_up" in everything and "label_map_stem.conv1" in everything
    assert everything - parts(modulation3=False) == {"decoder.modulation3", "decoder.tsdf_up"}
    assert everything - parts(modulation2=False) == {"decoder.modulation2"}
    tsdf_parts = {"decoder.tsdf_down", "decoder.tsdf_down_up", "decoder.tsdf_up"}
    later = tsdf_parts | {"decoder.modulation2", "decoder.modulation3"}
    assert everything - parts(modulation2=False, modulation3=False) == later
    assert everything - parts(modulation1=False) == {"decoder.modulation1"}
    of_image = {name for name in parts(inputs="image") if not name.startswith("decoder.")}
    assert of_image == {name for name in everything if name.startswith("label_map_stem.")}
    assert parts(inputs="image").isdisjoint(later | {"decoder.modulation1"})
    assert later <= parts(inputs="tsdf") and "decoder.modulation1" not in parts(inputs="tsdf")


def test_the_discriminator_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        discriminator = DenseDiscriminator(ModelConfig())
    assert tuple(discriminator.hidden.weight.shape) == (128, 128 * 5 * 3 * 5)
    assert [block.stride for block in discriminator.blocks] == [2, 2, 3, 1]
    assert [block.conv1.out_channels for block in discriminator.blocks] == [16, 16, 32, 32]
