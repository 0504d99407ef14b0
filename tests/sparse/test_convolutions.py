"""Every way of computing a convolution on sites, against torch's dense layers."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ammnet_sparse.sparse import convolutions, spconv_engine
from ammnet_sparse.sparse.convolutions import (
    UP_KERNEL,
    Backend,
    SiteConv3d,
    SiteConvTranspose3d,
    convolve,
    use_backend,
)
from ammnet_sparse.sparse.kernel_maps import Kernel, KernelMap, cells_read, strided_sites
from ammnet_sparse.sparse.sites import SiteSet, filters_of, full_sites, sites_from_mask

SHAPE = (12, 6, 12)
KERNELS = {
    "3x3x3": Kernel((3, 3, 3), padding=(1, 1, 1)),
    "along Y, dilation 3": Kernel((1, 1, 3), padding=(0, 0, 3), dilation=(1, 1, 3)),
    "along height, dilation 2": Kernel((1, 3, 1), padding=(0, 2, 0), dilation=(1, 2, 1)),
    "along X, stride 2": Kernel((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)),
    "along Y, stride 3": Kernel((1, 1, 3), stride=(1, 1, 3), padding=(0, 0, 1)),
}


BACKENDS = pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("gather", torch.float64, 1e-12), ("dense", torch.float64, 1e-12)],
)


def random_sites(density: float, *, shape: tuple[int, int, int] = SHAPE, batch_size: int = 2) -> SiteSet:
    generator = torch.Generator().manual_seed(int(density * 1000))
    return sites_from_mask(torch.rand(batch_size, *shape, generator=generator) < density)


def map_of(name: str, *, density: float = 0.3) -> KernelMap:
    """A kernel of ``KERNELS`` from random sites, or ``up`` to random sites of twice the shape."""
    if name == "up":
        target = random_sites(density, shape=(24, 12, 24))
        return KernelMap(cells_read(target, UP_KERNEL, SHAPE), target, UP_KERNEL)
    kernel, source = KERNELS[name], random_sites(density)
    target = source if kernel.stride == (1, 1, 1) else strided_sites(source, kernel)
    return KernelMap(source, target, kernel)


def check(out: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...], tolerance: float) -> None:
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, inputs, upstream)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    for found, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@BACKENDS
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("density", [0.002, 0.3, 1.0])
def test_convolution_equals_dense(
    name: str, density: float, backend: Backend, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    kernel_map = map_of(name, density=density)
    source, target, kernel = kernel_map.source, kernel_map.target, kernel_map.kernel
    features = torch.randn(len(source), 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(7, 5, *kernel.size, dtype=dtype, requires_grad=True)
    with use_backend(backend):
        out = convolve(features, weight, kernel_map)
    volume = F.conv3d(
        source.densify(features), weight, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation
    )
    check(out, target.gather(volume), (features, weight), tolerance)


@BACKENDS
@pytest.mark.parametrize("density", [0.002, 0.2, 1.0])
def test_transposed_convolution_equals_dense_at_its_target(
    density: float, backend: Backend, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    target = random_sites(density, shape=(24, 12, 24))
    source = cells_read(target, UP_KERNEL, SHAPE)
    layer = SiteConvTranspose3d(5, 7).to(dtype)
    assert layer.bias is not None
    features = torch.randn(len(source), 5, dtype=dtype, requires_grad=True)
    with use_backend(backend):
        out = layer(features, source, target)
    volume = F.conv_transpose3d(
        source.densify(features), layer.weight, layer.bias, stride=2, padding=1, output_padding=1
    )
    check(out, target.gather(volume), (features, layer.weight, layer.bias), tolerance)


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 3e-2)])
@pytest.mark.parametrize("channels", [(1, 3), (3, 64), (16, 16), (64, 128)])
@pytest.mark.parametrize("name", [*KERNELS, "up"])
def test_spconv_on_cuda_equals_gathering_on_the_cpu(
    name: str, channels: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    """On a GPU spconv has a kernel for each type and number of channels, and float16 is summed in float16."""
    torch.manual_seed(0)
    kernel_map = map_of(name)
    source, target, kernel = kernel_map.source, kernel_map.target, kernel_map.kernel
    shape = channels if kernel.is_transposed else channels[::-1]
    features, weight = torch.randn(len(source), channels[0]), torch.randn(*shape, *kernel.size)
    upstream = torch.randn(len(target), channels[1])
    results = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        first, second = (SiteSet(s.batch_size, s.spatial_shape, s.linear.to(device)) for s in (source, target))
        inputs = [value.to(dtype).to(device, kind).requires_grad_() for value in (features, weight)]
        out = convolve(*inputs, KernelMap(first, first if source is target else second, kernel))
        gradients = torch.autograd.grad(out, inputs, upstream.to(dtype).to(device, kind))
        results.append([value.detach().cpu().double() for value in (out, *gradients)])
    for wanted, found in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("name", [*KERNELS, "up"])
def test_weights_and_their_gradients_keep_the_order_that_products_read(name: str) -> None:
    kernel_map = map_of(name)
    layer = SiteConvTranspose3d(4, 6) if name == "up" else SiteConv3d(4, 6, kernel_map.kernel)
    expected = torch.nn.ConvTranspose3d(4, 6, 3) if name == "up" else torch.nn.Conv3d(4, 6, kernel_map.kernel.size)
    layer = copy.deepcopy(layer)
    layer.load_state_dict(expected.state_dict(), strict=False)
    assert torch.equal(layer.weight, expected.weight)
    layer(torch.randn(len(kernel_map.source), 4), kernel_map.source, kernel_map.target).square().sum().backward()
    for value in (layer.weight, layer.weight.grad):
        assert filters_of(value, kernel_map.kernel).is_contiguous()


def test_cells_read_are_all_that_the_transposed_convolution_needs() -> None:
    """A cell outside does not change the result; with any cell inside left out, it does."""
    target = random_sites(0.01, shape=(24, 12, 24))
    source = cells_read(target, UP_KERNEL, SHAPE)
    everything = full_sites(2, SHAPE, torch.device("cpu"))
    features = torch.randn(len(everything), 1, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 1, 3, 3, 3, dtype=torch.float64) + 0.1
    out = convolve(features, weight, KernelMap(everything, target, UP_KERNEL))
    (gradient,) = torch.autograd.grad(out.sum(), features)
    assert torch.equal(gradient.squeeze(1).nonzero().squeeze(1), source.linear)


def test_rows_that_do_not_fit_the_sites_are_refused() -> None:
    sites = random_sites(0.2)
    layer = SiteConv3d(3, 4, KERNELS["3x3x3"])
    with pytest.raises(ValueError, match=str(len(sites))):
        layer(torch.zeros(2, 3), sites, sites)


@pytest.mark.parametrize(("in_channels", "out_channels"), [(2, 9), (9, 2), (4, 4)])
@pytest.mark.parametrize("name", [*KERNELS, "up"])
def test_chunks_and_orders_of_products_change_nothing(
    name: str, in_channels: int, out_channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    kernel_map = map_of(name)
    source, kernel = kernel_map.source, kernel_map.kernel
    channels = (in_channels, out_channels) if kernel.is_transposed else (out_channels, in_channels)
    features = torch.randn(len(source), in_channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*channels, *kernel.size, dtype=torch.float64, requires_grad=True)
    whole = convolve(features, weight, kernel_map)
    monkeypatch.setattr(convolutions, "chunk_elements", lambda device: 27 * 9 * 5)
    monkeypatch.setattr(convolutions, "_FEWEST_CHUNK_ELEMENTS", 27 * 9 * 5)
    check(convolve(features, weight, kernel_map), whole, (features, weight), 1e-12)


@pytest.mark.parametrize("name", [*KERNELS, "up"])
def test_half_precision_sums_in_float32(name: str) -> None:
    """The result and each gradient are rounded once, gathered values never: bfloat16 has 8 bits."""
    torch.manual_seed(0)
    kernel_map = map_of(name)
    source, kernel = kernel_map.source, kernel_map.kernel
    features = torch.randn(len(source), 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, 8, *kernel.size, dtype=torch.bfloat16, requires_grad=True)
    with use_backend("gather"):
        out = convolve(features, weight, kernel_map)
        expected = convolve(features.double(), weight.double(), kernel_map).to(torch.bfloat16)
    check(out, expected, (features, weight), 2**-7)


def test_autocast_computes_in_its_type_and_returns_float32_gradients() -> None:
    torch.manual_seed(0)
    sites = random_sites(0.3)
    layer = SiteConv3d(8, 8, KERNELS["3x3x3"])
    features = torch.randn(len(sites), 8, requires_grad=True)
    for backend in ("gather", "dense"):
        with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
            out = layer(features, sites, sites)
        assert out.dtype == torch.bfloat16
        gradients = torch.autograd.grad(out.float().sum(), (features, layer.weight))
        assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]


def test_an_engine_that_differs_is_not_used() -> None:
    """The check that runs on a card before spconv is used, with engines that are wrong in one way each."""

    def expected(features: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
        with use_backend("gather"):
            return convolve(features, weight, kernel_map)

    def wrong_taps(features: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
        return expected(features, weight.flip(4), kernel_map)

    def wrong_gradient(features: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
        out = expected(features, weight, kernel_map)
        return out.detach() + (out - out.detach()) * 1.1

    def no_engine(features: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
        raise RuntimeError("no kernel image")

    cpu = torch.device("cpu")
    assert spconv_engine.is_sound(cpu, torch.float32, expected, expected)
    for engine, what in ((wrong_taps, "result"), (wrong_gradient, "gradient"), (no_engine, "no kernel image")):
        with pytest.warns(UserWarning, match=what):
            assert not spconv_engine.is_sound(cpu, torch.float32, engine, expected)


def test_masks_have_a_bit_for_every_tap_that_reads() -> None:
    sites = random_sites(0.2)
    kernel_map = KernelMap(sites, sites, KERNELS["3x3x3"])
    masked = spconv_engine.masked_pairs(kernel_map)
    assert torch.equal(masked.pairs, kernel_map.table.t()) and torch.equal(
        masked.backward_pairs, kernel_map.inverse.t()
    )
    for table, mask, order in (
        (kernel_map.table, masked.mask, masked.order),
        (kernel_map.inverse, masked.backward_mask, masked.backward_order),
    ):
        masks = [sum(1 << tap for tap, row in enumerate(rows) if row >= 0) for rows in table.tolist()]
        assert mask.flatten().tolist() == sorted(masks) and mask.dtype == order.dtype == torch.int32
        assert [masks[row] for row in order.tolist()] == sorted(masks)


@pytest.mark.parametrize("name", sorted(spconv_engine._KINDS))
def test_tiles_that_skip_taps_by_their_masks_miss_none(name: str) -> None:
    """As in the implicit product's kernel, a tile joins the masks of its rows and skips all other taps."""
    kernel = spconv_engine._KINDS[name]
    fine = random_sites(0.2)
    source = cells_read(fine, kernel, (4, 3, 5)) if kernel.is_transposed else fine
    target = fine if kernel.is_transposed or kernel.stride == (1, 1, 1) else strided_sites(fine, kernel)
    kernel_map = KernelMap(source, target, kernel)
    masked = spconv_engine.masked_pairs(kernel_map)
    read = torch.full_like(kernel_map.table, -1)
    tile = 4
    for begin in range(0, len(target), tile):
        rows = masked.order[begin : begin + tile].long()
        joined = 0
        for mask in masked.mask[begin : begin + tile].flatten().tolist():
            joined |= mask
        for tap in range(len(masked.pairs)):
            if joined >> tap & 1:
                read[rows, tap] = masked.pairs[tap, rows]
    assert torch.equal(read, kernel_map.table)
