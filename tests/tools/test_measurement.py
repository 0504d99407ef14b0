"""Counting multiplications, kept memory, peak memory and seconds."""

from collections.abc import Callable

import pytest
import torch
from bench.dense_reference.network import DenseAMMNet, DenseDiscriminator
from bench.measurement import (
    Allocations,
    counted_layers,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.sparse.convolutions import SiteConv3d
from ammnet_sparse.sparse.kernel_maps import Kernel
from ammnet_sparse.sparse.sites import sites_from_mask
from tests.models.scenes import GRID, both, small_config, some_scene


def random_sites(share: float):
    return sites_from_mask(torch.rand(2, *GRID, generator=torch.Generator().manual_seed(1)) < share)


def test_products_on_sites_are_the_pairs_that_exist() -> None:
    sites = random_sites(0.1)
    layer = SiteConv3d(3, 5, Kernel((1, 1, 3), padding=(0, 0, 2), dilation=(1, 1, 2)))
    with counted_layers(nn.ModuleDict({"conv": layer})) as counts:
        layer(torch.randn(len(sites), 3), sites, sites)
    frames, x, height, y = (axis.tolist() for axis in (sites.batch_index, *sites.coordinates))
    cells = set(zip(frames, x, height, y, strict=True))
    pairs = sum((b, x, h, y + shift) in cells for b, x, h, y in cells for shift in (-2, 0, 2))
    assert counts.products == {"conv": pairs}
    assert counts.multiplications(nn.ModuleDict({"conv": layer})) == {"conv": pairs * 3 * 5}


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_narrow_network_counts_for_a_wide_one(is_dense: bool) -> None:
    batch = some_scene(1)
    found = []
    builders = (AMMNet, Discriminator)
    if is_dense:
        builders = (DenseAMMNet, DenseDiscriminator)  # type: ignore[assignment]
    wide = both(*(build(small_config(width=16)) for build in builders))
    narrow = [build(small_config(width=4, stem_widths=(1, 2))) for build in builders]
    for generator, discriminator in ([build(small_config(width=16)) for build in builders], narrow):
        with torch.no_grad(), counted_layers(both(generator, discriminator)) as counts:
            prediction = generator(batch)
            if is_dense:
                discriminator(prediction.logits)
            else:
                discriminator(prediction.voxel_logits, prediction.sites)
        found.append(counts.multiplications(wide))
    assert found[0] == found[1]
    layers = {name for name, module in wide.named_modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)}
    assert found[0].keys() == layers, "a layer does its work where no hook sees it"


def test_dense_multiplications_are_those_that_torch_counts() -> None:
    network, batch = DenseAMMNet(small_config()), some_scene(2)
    with torch.no_grad(), counted_layers(network) as counts, FlopCounterMode(display=False) as flops:
        network(batch)
    assert 2 * sum(counts.multiplications(network).values()) == flops.get_total_flops()


@pytest.mark.parametrize("build", [AMMNet, DenseAMMNet])
def test_kept_activations_are_those_that_autograd_saves(build: Callable[[ModelConfig], nn.Module]) -> None:
    """What is alive after the forward pass against what saved tensors' hooks see, where neither misses anything."""
    network, batch = build(small_config(width=16)), some_scene(2)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    allocations = Allocations(network)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), allocations:
        prediction = network(batch)
    logits = prediction.logits if isinstance(network, DenseAMMNet) else prediction.voxel_logits
    kept = allocations.kept([logits])
    saved = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    found = kept.num_bytes("activations") + kept.num_bytes("weights")
    assert found == pytest.approx(saved, rel=0.02)
    assert sum(kept.by_layer().values()) == kept.num_bytes()
    assert any(name.startswith("decoder.stage_half") for name in kept.by_layer())
