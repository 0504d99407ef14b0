"""fill_empty against a dense convolution, and autograd of the same written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.ops import fill_empty
from tests.generated import given, settings, st
from tests.ops.support import DEVICE_KERNELS, DEVICES, FLOAT_TYPES, OPS, no_synchronization, saved_tensors
from tests.tolerances import tolerances

OFFSETS = [(x, h, y) for x in (-1, 0, 1) for h in (-1, 0, 1) for y in (-1, 0, 1)]
Sites = list[tuple[int, int, int]]


def random_sites(fraction: float, shape: tuple[int, int, int] = (4, 3, 5)) -> Sites:
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < fraction
    return [tuple(site) for site in chosen.nonzero().tolist()]


def neighbors_of(sites: Sites) -> Tensor:
    rows = {site: row for row, site in enumerate(sites)}
    columns = [[rows.get((x + a, h + b, y + c), -1) for a, b, c in OFFSETS] for x, h, y in sites]
    return torch.tensor(columns, dtype=torch.int64).reshape(len(sites), 27)


def half_empty(num_sites: int, channels: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """[num_sites, channels], a good half of it exactly zero."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn((num_sites, channels), generator=generator, dtype=torch.float64)
    values[torch.rand((num_sites, channels), generator=generator) < 0.6] = 0
    return values.to(device, dtype)


def written_out(features: Tensor, neighbors: Tensor) -> Tensor:
    """The same in differentiable PyTorch."""
    gathered = features[neighbors.clamp_min(0)] * (neighbors >= 0)[..., None]
    return features + (features == 0) * gathered.sum(1) / 27


def test_equals_a_dense_convolution_where_every_voxel_is_a_site() -> None:
    neighbors = neighbors_of(random_sites(1.1))
    features = half_empty(60, 2)
    volume = features.t().reshape(1, 2, 4, 3, 5)
    mean = F.conv3d(volume, torch.full((2, 1, 3, 3, 3), 1 / 27), padding=1, groups=2)
    expected = (volume + (volume == 0) * mean).reshape(2, 60).t()
    torch.testing.assert_close(fill_empty(features, neighbors), expected, **tolerances(torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_value_and_gradient_in_every_type(dtype: torch.dtype, device: str) -> None:
    neighbors = neighbors_of(random_sites(0.5)).to(device)
    features = half_empty(len(neighbors), 4, dtype=dtype, device=device).requires_grad_()
    exact = features.detach().double().requires_grad_()
    result, expected = fill_empty(features, neighbors.int()), written_out(exact, neighbors)
    torch.testing.assert_close(result, expected.to(dtype), **tolerances(dtype))
    grad = torch.randn(result.shape, device=device).to(dtype)
    result.backward(grad)
    expected.backward(grad.double())
    assert features.grad is not None and exact.grad is not None
    torch.testing.assert_close(features.grad, exact.grad.to(dtype), **tolerances(dtype))


@settings(max_examples=25)
@given(fraction=st.floats(0, 1), channels=st.integers(0, 5))
def test_any_sites(fraction: float, channels: int) -> None:
    neighbors = neighbors_of(random_sites(fraction))
    features = half_empty(len(neighbors), channels, dtype=torch.float64).requires_grad_()
    result, expected = fill_empty(features, neighbors), written_out(features, neighbors)
    torch.testing.assert_close(result, expected, **tolerances(torch.float64))
    grad = torch.randn_like(result)
    (found,) = torch.autograd.grad(result, features, grad)
    (wanted,) = torch.autograd.grad(expected, features, grad)
    torch.testing.assert_close(found, wanted, **tolerances(torch.float64))


def test_gradcheck_with_the_empty_channels_kept_empty() -> None:
    neighbors = neighbors_of(random_sites(0.3))
    is_full = half_empty(len(neighbors), 2, dtype=torch.float64) != 0
    values = torch.rand(is_full.shape, dtype=torch.float64) + 1
    values.requires_grad_()
    # A step away from zero would change which channels are filled, so zeros stay zeros here.
    assert torch.autograd.gradcheck(lambda v: fill_empty(v * is_full, neighbors), values)


def test_opcheck() -> None:
    neighbors = neighbors_of(random_sites(0.1))
    features = half_empty(len(neighbors), 2)
    torch.library.opcheck(OPS.fill_empty.default, (features.clone().requires_grad_(), neighbors))
    torch.library.opcheck(OPS.fill_empty.default, (features.half().t().contiguous().t(), neighbors.int()))
    torch.library.opcheck(OPS.fill_empty_backward.default, (torch.ones_like(features), features, neighbors))


def test_an_infinite_neighbor_fills_only_empty_channels() -> None:
    neighbors = neighbors_of([(0, 0, 0), (0, 0, 1)])
    features = torch.tensor([[0.0, 1.0], [math.inf, math.inf]])
    assert fill_empty(features, neighbors).tolist() == [[math.inf, 1.0], [math.inf, math.inf]]


def test_half_is_summed_in_float32() -> None:
    neighbors = neighbors_of(random_sites(1.1, (3, 3, 3)))
    features = torch.full((27, 1), 4096.0, dtype=torch.float16)
    features[13] = 0
    # The sum passes the largest float16, the mean does not.
    assert fill_empty(features, neighbors)[13].item() == torch.tensor(4096 * 26 / 27).half().item()


def test_saves_only_its_inputs() -> None:
    neighbors = neighbors_of(random_sites(0.3))
    features = half_empty(len(neighbors), 2).requires_grad_()
    with saved_tensors() as kept:
        fill_empty(features, neighbors)
    assert {tensor.data_ptr() for tensor in kept} == {features.data_ptr(), neighbors.data_ptr()}


@pytest.mark.no_emulation
@settings(max_examples=20)
@given(bad=st.one_of(st.integers(-(2**40), -2), st.integers(3, 2**40)))
def test_rows_out_of_range_are_an_error(bad: int) -> None:
    neighbors = torch.full((3, 27), -1)
    neighbors[1, 20] = bad
    with pytest.raises(IndexError, match="neighbors"):
        fill_empty(torch.zeros(3, 2), neighbors)
    with pytest.raises(IndexError, match="neighbors"):
        OPS.fill_empty_backward(torch.zeros(3, 2), torch.zeros(3, 2), neighbors)


@pytest.mark.parametrize("device", DEVICE_KERNELS)
def test_on_cuda_rows_out_of_range_count_as_absent_and_nothing_waits(device: str) -> None:
    features = torch.tensor([[0.0], [27.0]], device=device, requires_grad=True)
    neighbors = torch.full((2, 27), 2**40, device=device)
    neighbors[0, 14], neighbors[1, 12] = 1, 0
    with no_synchronization():
        result = fill_empty(features, neighbors)
        result.sum().backward()
    assert result.tolist() == [[1.0], [27.0]]


def test_arguments_that_do_not_fit_are_an_error() -> None:
    features, neighbors = torch.zeros(3, 2), torch.full((3, 27), -1)
    with pytest.raises(ValueError, match="neighbors"):
        fill_empty(features, neighbors[:, :26])
    with pytest.raises(ValueError, match="neighbors"):
        fill_empty(features, neighbors[:2])
    with pytest.raises(ValueError, match="features"):
        fill_empty(features[0], neighbors)
    with pytest.raises(TypeError, match="neighbors"):
        fill_empty(features, neighbors.bool())
    with pytest.raises(TypeError, match="features"):
        fill_empty(features.int(), neighbors)
