"""project_features against upsampling with F.interpolate and indexing: values, gradient, errors and limits."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ammnet_sparse.ops import project_features
from tests.generated import given, settings, st
from tests.ops.support import DEVICE_KERNELS, DEVICES, FLOAT_TYPES, OPS, no_synchronization, saved_tensors
from tests.tolerances import tolerances

IMAGE_SIZE = (13, 18)


def sites(
    num_sites: int, batch_size: int, *, image_size: tuple[int, int] = IMAGE_SIZE, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random pixels, a few of them -1, and samples."""
    generator = torch.Generator().manual_seed(2)
    pixel = torch.randint(-1, image_size[0] * image_size[1], (num_sites,), generator=generator)
    pixel[::5] = -1
    return pixel.to(device), torch.randint(0, batch_size, (num_sites,), generator=generator).to(device)


def feature_map(
    *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return values.to(device, dtype).requires_grad_(requires_grad)


def upsample_and_index(
    features: Tensor, pixel: Tensor, batch: Tensor, *, image_size: tuple[int, int], align_corners: bool
) -> Tensor:
    """The dense original's way."""
    image = F.interpolate(features, image_size, mode="bilinear", align_corners=align_corners)
    taken = image.flatten(2)[batch, :, pixel.clamp_min(0).long()]
    return taken * (pixel >= 0)[:, None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_equals_upsampling_and_indexing(dtype: torch.dtype, align_corners: bool, device: str) -> None:
    features = feature_map(2, 6, 5, 7, dtype=dtype, device=device, requires_grad=True)
    pixel, batch = sites(200, 2, device=device)
    result = project_features(features, pixel, batch, image_size=IMAGE_SIZE, align_corners=align_corners)
    # In float64 and rounded once: F.interpolate itself rounds at every step in half precision.
    exact = features.detach().double().requires_grad_()
    expected = upsample_and_index(exact, pixel, batch, image_size=IMAGE_SIZE, align_corners=align_corners)
    assert result.dtype == dtype and result.is_contiguous()
    torch.testing.assert_close(result, expected.to(dtype), **tolerances(dtype))
    grad = torch.randn(200, 6, device=device).to(dtype)
    result.backward(grad)
    expected.backward(grad.double())
    assert features.grad is not None and exact.grad is not None
    torch.testing.assert_close(features.grad, exact.grad.to(dtype), **tolerances(dtype))


@settings(max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    image_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    num_sites=st.integers(0, 20),
    align_corners=st.booleans(),
)
def test_any_size(
    sizes: tuple[int, int, int, int], image_size: tuple[int, int], num_sites: int, align_corners: bool
) -> None:
    features = feature_map(*sizes, dtype=torch.float64, requires_grad=True)
    pixel, batch = sites(num_sites, sizes[0], image_size=image_size)
    result = project_features(features, pixel, batch, image_size=image_size, align_corners=align_corners)
    expected = upsample_and_index(features, pixel, batch, image_size=image_size, align_corners=align_corners)
    torch.testing.assert_close(result, expected, **tolerances(torch.float64))
    grad = torch.randn_like(result)
    (found,) = torch.autograd.grad(result, features, grad)
    (wanted,) = torch.autograd.grad(expected, features, grad)
    torch.testing.assert_close(found, wanted, **tolerances(torch.float64))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_integer_types_and_layouts_of_the_map(dtype: torch.dtype) -> None:
    features = feature_map(2, 4, 5, 7)
    pixel, batch = sites(40, 2)
    expected = project_features(features, pixel, batch, image_size=IMAGE_SIZE)
    for layout in (features.to(memory_format=torch.channels_last), features.expand(2, 4, 5, 7), features[:, ::1]):
        found = project_features(layout, pixel.to(dtype), batch.to(torch.uint8), image_size=IMAGE_SIZE)
        torch.testing.assert_close(found, expected)


def test_gradcheck() -> None:
    features = feature_map(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    pixel, batch = sites(12, 2)
    assert torch.autograd.gradcheck(lambda f: project_features(f, pixel, batch, image_size=IMAGE_SIZE), features)


@pytest.mark.parametrize("align_corners", [False, True])
def test_opcheck(align_corners: bool) -> None:
    features = feature_map(2, 3, 4, 5, requires_grad=True)
    pixel, batch = sites(7, 2)
    torch.library.opcheck(OPS.project_features.default, (features, pixel, batch, *IMAGE_SIZE, align_corners))
    grad = torch.randn(7, 3, dtype=torch.float16)
    arguments = (grad, pixel.int(), batch, 2, 4, 5, *IMAGE_SIZE, align_corners, True)
    torch.library.opcheck(OPS.project_features_backward.default, arguments)


def test_saves_indices_but_no_features() -> None:
    features = feature_map(2, 3, 4, 5, requires_grad=True)
    pixel, batch = sites(7, 2)
    with saved_tensors() as kept:
        project_features(features, pixel, batch, image_size=IMAGE_SIZE)
    assert {tensor.data_ptr() for tensor in kept} == {pixel.data_ptr(), batch.data_ptr()}


def test_sites_without_a_pixel_read_nothing() -> None:
    features = torch.full((1, 2, 3, 3), math.inf, requires_grad=True)
    pixel, batch = torch.full((4,), -1), torch.zeros(4, dtype=torch.int64)
    result = project_features(features, pixel, batch, image_size=(3, 3))
    assert result.tolist() == [[0.0, 0.0]] * 4
    result.backward(torch.full_like(result, math.nan))
    assert features.grad is not None and features.grad.count_nonzero() == 0


def test_half_gradients_are_summed_in_float32() -> None:
    features = torch.zeros(1, 1, 2, 2, dtype=torch.float16, requires_grad=True)
    zeros = torch.zeros(4096, dtype=torch.int64)
    project_features(features, zeros, zeros, image_size=(2, 2)).sum().backward()
    # Summed in float16 it would stop at 2048.
    assert features.grad is not None and features.grad[0, 0, 0, 0].item() == 4096


class _DeterministicArguments(TorchDispatchMode):
    """Records the argument ``deterministic`` of every backward of the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is OPS.project_features_backward.default:
            self.seen.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_mode(device: str) -> None:
    features = feature_map(2, 8, 3, 4, device=device, requires_grad=True)
    pixel, batch = sites(5000, 2, device=device)
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            result = project_features(features, pixel, batch, image_size=IMAGE_SIZE)
            with _DeterministicArguments() as arguments:
                gradients.append(torch.autograd.grad(result, features, result.detach())[0])
            assert arguments.seen == [True]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    result = project_features(features, pixel, batch, image_size=IMAGE_SIZE)
    (usual,) = torch.autograd.grad(result, features, result.detach())
    torch.testing.assert_close(usual, gradients[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [0, 1])
def test_no_sites(batch_size: int) -> None:
    features = feature_map(batch_size, 3, 4, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    result = project_features(features, none, none, image_size=IMAGE_SIZE)
    assert result.shape == (0, 3)
    result.sum().backward()
    assert features.grad is not None and features.grad.shape == features.shape


@pytest.mark.no_emulation
@settings(max_examples=20)
@given(bad=st.one_of(st.integers(-(2**31), -2), st.integers(IMAGE_SIZE[0] * IMAGE_SIZE[1], 2**31 - 1)))
def test_pixels_out_of_range_are_an_error(bad: int) -> None:
    pixel, batch = sites(5, 2)
    pixel[3] = bad
    with pytest.raises(IndexError, match=rf"pixel_of_site.*{bad}"):
        project_features(feature_map(2, 1, 2, 2), pixel, batch, image_size=IMAGE_SIZE)
    with pytest.raises(IndexError, match="pixel_of_site"):
        OPS.project_features_backward(torch.zeros(5, 1), pixel, batch, 2, 2, 2, *IMAGE_SIZE, False, False)


@pytest.mark.no_emulation
@pytest.mark.parametrize("bad", [-1, 2, 2**40])
def test_samples_out_of_range_are_an_error(bad: int) -> None:
    pixel, batch = sites(5, 2)
    batch[0] = bad  # also where no pixel hits the site
    with pytest.raises(IndexError, match="batch_of_site"):
        project_features(feature_map(2, 1, 2, 2), pixel, batch, image_size=IMAGE_SIZE)


@pytest.mark.parametrize("device", DEVICE_KERNELS)
def test_on_cuda_indices_out_of_range_give_zeros(device: str) -> None:
    features = feature_map(1, 2, 3, 3, device=device, requires_grad=True)
    pixel = torch.tensor([9, -7, 4, 2**40, 4], device=device)
    batch = torch.tensor([0, 0, 0, 0, 1], device=device)
    result = project_features(features, pixel, batch, image_size=(3, 3))
    assert result.any(1).tolist() == [False, False, True, False, False]
    (grad,) = torch.autograd.grad(result.sum(), features)
    assert grad.count_nonzero() == 2


@pytest.mark.cuda
def test_does_not_wait_for_the_device() -> None:
    features = feature_map(2, 4, 5, 6, device="cuda", requires_grad=True)
    pixel, batch = sites(50, 2, device="cuda")
    with no_synchronization():
        project_features(features, pixel, batch, image_size=IMAGE_SIZE).sum().backward()


def test_arguments_that_do_not_fit_are_an_error() -> None:
    features, (pixel, batch) = feature_map(2, 1, 2, 2), sites(5, 2)
    with pytest.raises(ValueError, match="pixel_of_site"):
        project_features(features, pixel, batch[:4], image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="features"):
        project_features(features[0], pixel, batch, image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="image_size"):
        project_features(features, pixel, batch, image_size=(0, 5))
    with pytest.raises(ValueError, match="features"):
        project_features(features[:0], pixel, batch, image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="pixel_of_site"):
        project_features(features, pixel.to("meta"), batch, image_size=IMAGE_SIZE)
    with pytest.raises(TypeError, match="pixel_of_site"):
        project_features(features, pixel.float(), batch, image_size=IMAGE_SIZE)
    with pytest.raises(TypeError, match="features"):
        project_features(features.long(), pixel, batch, image_size=IMAGE_SIZE)
