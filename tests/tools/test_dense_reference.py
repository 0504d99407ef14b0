"""The dense reference: structure of its blocks, projection, options, and what it refuses."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench.dense_reference.blocks import DDRBlock, Down, Stage, Up
from bench.dense_reference.inputs import gather_label_map, project_densely
from bench.dense_reference.network import DenseAMMNet, DenseDiscriminator
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch

GRID = (12, 12, 24)
IMAGE = (64, 96)
X, HEIGHT, Y = 0, 1, 2


def small_config(**changes: Any) -> ModelConfig:
    values = {"width": 8, "grid_shape": GRID, "stem_widths": (2, 4), "discriminator_width": 8}
    return ModelConfig.model_validate(values | changes)


def random_batch(batch_size: int, *, grid: tuple[int, int, int] = GRID) -> Batch:
    generator = torch.Generator().manual_seed(batch_size)
    num_voxels = grid[0] * grid[1] * grid[2]
    mapping = torch.randint(IMAGE[0] * IMAGE[1], (batch_size, num_voxels), generator=generator)
    is_hit = torch.rand(batch_size, num_voxels, generator=generator) < 0.03
    return Batch(
        tsdf=torch.rand(batch_size, 1, *grid, generator=generator) * 2 - 1,
        mapping=torch.where(is_hit, mapping, -1).int(),
        label_weight=torch.rand(batch_size, num_voxels, generator=generator) < 0.2,
        image=torch.randn(batch_size, 3, *IMAGE, generator=generator),
        label_map=torch.randint(14, (batch_size, *IMAGE), generator=generator).byte(),
    )


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


def test_a_block_reaches_a_box_and_keeps_its_extents() -> None:
    block = transparent_block(dilation=2)
    with torch.no_grad():
        for convolution in (block.conv2, block.conv3, block.conv4):
            convolution.weight.fill_(1)
        reached = block(impulse())[0, 0].nonzero() - 6
    assert reached.tolist() == [list(offset) for offset in itertools.product((-2, 0, 2), repeat=3)]


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


def test_blocks_that_cannot_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="stride 1 or dilation 1, found stride 2, dilation 3"):
        DDRBlock(4, 2, expansion=2, stride=2, dilation=3)
    with pytest.raises(ValueError, match="in_channels must equal planes \\* expansion; found 4 and 2 \\* 4"):
        DDRBlock(4, 2, expansion=4)


def test_stages_and_ups_have_the_widths_and_extents_of_the_paper() -> None:
    stage = Stage(8, 16)
    assert [block.conv1.out_channels for block in stage] == [2, 4, 4, 4]
    assert [block.conv2.dilation for block in stage] == [(1, 1, 1), (1, 1, 1), (1, 1, 2), (1, 1, 3)]
    assert [block.conv4.padding for block in stage] == [(1, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert stage(torch.randn(1, 8, 12, 4, 8)).shape == (1, 16, 6, 2, 4)
    assert Up(16, 8)(torch.randn(1, 16, 6, 2, 4)).shape == (1, 8, 12, 4, 8)


def test_projection_interpolates_at_the_mapped_pixel_and_fills_its_neighborhood() -> None:
    grid = (12, 12, 12)
    batch = random_batch(1, grid=grid)
    mapping = torch.full_like(batch.mapping, -1).view(1, *grid)
    mapping[0, 5, 6, 7] = 20 * IMAGE[1] + 30
    mapping[0, 0, 0, 0] = 63 * IMAGE[1] + 95
    batch = dataclasses.replace(batch, mapping=mapping.view(1, -1))
    features = torch.rand(1, 3, 16, 24, dtype=torch.float64) + 0.5
    found = project_densely(features, batch)
    # Pixel (20, 30) has its center at ((20 + 0.5) / 4 - 0.5, (30 + 0.5) / 4 - 0.5) = (4.625, 7.125).
    rows = features[0, :, 4] * 0.375 + features[0, :, 5] * 0.625
    inside = rows[:, 7] * 0.875 + rows[:, 8] * 0.125
    corner = features[0, :, 15, 23]
    expected = torch.zeros(1, 3, *grid, dtype=torch.float64)
    expected[0, :, 4:7, 5:8, 6:9] = inside[:, None, None, None] / 27
    expected[0, :, :2, :2, :2] = corner[:, None, None, None] / 27
    expected[0, :, 5, 6, 7], expected[0, :, 0, 0, 0] = inside, corner
    torch.testing.assert_close(found, expected)


def test_label_map_features_are_one_hot_at_hit_voxels_only() -> None:
    batch = random_batch(2)
    found = gather_label_map(batch, num_classes=14).flatten(2)
    assert batch.label_map is not None
    for sample in range(2):
        hit = batch.hit_mask[sample]
        category = batch.label_map[sample].flatten()[batch.mapping[sample][hit].long()].long()
        assert torch.equal(found[sample][:, hit].argmax(dim=0), category)
        assert torch.equal(found[sample].sum(dim=0), hit.long())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inputs": "tsdf"},
        {"inputs": "image"},
        {"modulation1": False, "modulation2": False, "modulation3": False},
        {"modulation2": False},
        {"fusion": "add"},
        {"fusion": "cbam"},
    ],
    ids=str,
)
def test_every_option_trains_all_its_weights(changes: dict[str, Any]) -> None:
    network = DenseAMMNet(small_config(**changes)).double()
    prediction = network(random_batch(1))
    assert prediction.logits.shape == (1, 12, *GRID)
    assert prediction.logits.dtype == torch.float64
    assert prediction.logits_2d is None
    prediction.logits.square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_do_not_influence_each_other_in_evaluation(dtype: torch.dtype) -> None:
    config = small_config(grid_shape=(24, 12, 24))
    network = DenseAMMNet(config).to(dtype).eval()
    discriminator = DenseDiscriminator(config).to(dtype).eval()
    batch = random_batch(3, grid=(24, 12, 24))
    last = Batch(
        tsdf=batch.tsdf[2:],
        mapping=batch.mapping[2:],
        label_weight=batch.label_weight[2:],
        label_map=batch.label_map[2:],
    )
    with torch.no_grad():
        prediction = network(batch)
        score = discriminator(prediction.logits)
        torch.testing.assert_close(prediction.logits[2:], network(last).logits)
        torch.testing.assert_close(score[2:], discriminator(prediction.logits[2:]))
    assert prediction.logits.shape == (3, 12, 24, 12, 24) and prediction.logits.dtype == dtype
    assert score.shape == (3, 1)


def test_the_image_network_gives_logits_at_image_size() -> None:
    network = DenseAMMNet(small_config(image_encoder="segformer_b2", freeze_image_encoder=False))
    prediction = network(random_batch(2))
    assert prediction.logits_2d is not None
    assert prediction.logits_2d.shape == (2, 12, *IMAGE)
    assert prediction.logits.shape == (2, 12, *GRID)


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


def test_modulation_gradient_concerns_the_first_modulation() -> None:
    only_first = {"modulation2": False, "modulation3": False, "modulation_gradient": "detached"}
    for changes, is_reached in ((only_first, False), ({"modulation_gradient": "detached"}, True)):
        network = DenseAMMNet(small_config(**changes))
        network(random_batch(1)).logits.square().sum().backward()
        assert (network.tsdf_encoder.stem.conv1.weight.grad is not None) == is_reached


def test_frozen_encoders_keep_their_weights_and_statistics() -> None:
    network = DenseAMMNet(small_config(freeze_encoders=True)).train()
    encoders = (network.tsdf_encoder, network.label_map_stem)
    before = [value.clone() for encoder in encoders for value in encoder.state_dict().values()]
    network(random_batch(2)).logits.sum().backward()
    after = [value for encoder in encoders for value in encoder.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(value.grad is None for encoder in encoders for value in encoder.parameters())
    assert network.decoder.training and network.decoder.classifier.weight.grad is not None


def test_dropout_draws_one_value_per_sample_and_channel() -> None:
    network = DenseAMMNet(small_config(decoder_dropout=0.5)).train()
    seen: list[Tensor] = []
    network.decoder.dropout.register_forward_hook(lambda _module, inputs, out: seen.extend([inputs[0], out]))
    network(random_batch(3))
    volume, dropped = seen
    is_kept = (dropped != 0).flatten(2).any(dim=2)
    assert 0 < int(is_kept.sum()) < is_kept.numel()
    torch.testing.assert_close(dropped, volume * is_kept[:, :, None, None, None] * 2)


def test_the_discriminator_has_the_size_of_the_paper() -> None:
    with torch.device("meta"):
        discriminator = DenseDiscriminator(ModelConfig())
    assert tuple(discriminator.hidden.weight.shape) == (128, 128 * 5 * 3 * 5)
    assert [block.stride for block in discriminator.blocks] == [2, 2, 3, 1]
    assert [block.conv1.out_channels for block in discriminator.blocks] == [16, 16, 32, 32]


def test_batches_that_do_not_fit_are_refused() -> None:
    network = DenseAMMNet(small_config())
    batch = random_batch(1)
    with pytest.raises(ValueError, match=r"batch.label_map"):
        network(dataclasses.replace(batch, label_map=None))
    with pytest.raises(ValueError, match=r"expected grid_shape \(12, 12, 24\).*found \(12, 12, 12\)"):
        network(random_batch(1, grid=(12, 12, 12)))
    reads_images = DenseAMMNet(small_config(image_encoder="resnet50", freeze_image_encoder=False))
    with pytest.raises(ValueError, match=r"batch.image: .* found none"):
        reads_images(dataclasses.replace(batch, image=None))
