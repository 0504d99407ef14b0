"""The compiled kernels: they are there, run, equal the references, and are switched off by a variable.

Under ``make emulate`` the CUDA kernels on the CPU are compared with the references.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ammnet_sparse.ops import (
    draw_shuffle,
    erase_voxels,
    fill_empty,
    kernel_libraries,
    modulate,
    one_hot_sites,
    out_of_range_operators,
    project_features,
    shuffle_categories,
)
from tests.generated import given, settings, st
from tests.ops.emulation.kernels import Emulated, has_kernel
from tests.ops.support import (
    DEVICE_KERNELS,
    DEVICES,
    EMULATION,
    FLOAT_TYPES,
    INTEGER_TYPES,
    OPS,
    REFERENCES,
    References,
)
from tests.tolerances import tolerances

IMAGE_SIZE = (480, 640)


@pytest.fixture(scope="module", autouse=True)
def implementation() -> None:
    """In place of that of conftest.py: here the compiled kernels run, and the references are called by name."""


@pytest.fixture(scope="module")
def compiled() -> Iterator[None]:
    """Skips where there are no compiled kernels; that they are there is a test of its own."""
    if EMULATION:
        with Emulated():
            yield
        return
    library = kernel_libraries()["cpu"]
    if not library.is_loaded:
        pytest.skip(f"no compiled kernels: {library.note}")
    yield


@pytest.mark.no_emulation
@pytest.mark.skipif(os.environ.get("AMMNET_SPARSE_CPU") == "0", reason="AMMNET_SPARSE_CPU=0: the build left them out")
def test_compiled_kernels_are_loaded() -> None:
    """A green run has not tested the references alone."""
    library = kernel_libraries()["cpu"]
    assert library.is_loaded, library.note
    for name in REFERENCES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ammnet_sparse::{name}", "CPU"), name


@pytest.mark.emulation
def test_every_cuda_kernel_is_emulated() -> None:
    """Neither a new operator nor a kernel registered in another way is left out unnoticed."""
    assert [name for name in (*REFERENCES, "take_out_of_range") if not has_kernel(name)] == []
    with Emulated() as emulated:
        modulate(*torch.ones(3, 2, 4))
    assert emulated.calls == 1


@pytest.mark.cuda
def test_compiled_cuda_kernels_are_loaded() -> None:
    library = kernel_libraries()["cuda"]
    assert library.is_loaded, library.note
    for name in (*REFERENCES, "take_out_of_range"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ammnet_sparse::{name}", "CUDA"), name


@pytest.mark.no_emulation
def test_the_switch_leaves_only_references(tmp_path: Path) -> None:
    program = (
        "import torch, ammnet_sparse.ops as ops; x = torch.ones(2, 3); print(ops.modulate(x, 0 * x, x).tolist());"
        "print([library.is_loaded for library in ops.kernel_libraries().values()])"
    )
    environment = os.environ | {"AMMNET_SPARSE_KERNELS": "0"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[[2.5, 2.5, 2.5], [2.5, 2.5, 2.5]]", "[False, False]"]
    refused = subprocess.run(
        command, env=environment | {"AMMNET_SPARSE_KERNELS": "no"}, capture_output=True, text=True, check=False
    )
    assert "AMMNET_SPARSE_KERNELS" in refused.stderr


def sites_of_frames(num_sites: int, batch_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixel = torch.randint(-1, IMAGE_SIZE[0] * IMAGE_SIZE[1], (num_sites,), generator=generator)
    pixel[: num_sites // 8] = -1
    return pixel, torch.arange(num_sites) * batch_size // num_sites


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [256, 100, 12, 3])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_projection_equals_the_reference(
    dtype: torch.dtype, layout: torch.memory_format, channels: int, device: str, compiled: None
) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn((2, channels, 30, 40), generator=generator).to(device, dtype).to(memory_format=layout)
    features.requires_grad_()
    pixel, batch = (indices.to(device) for indices in sites_of_frames(500, 2))
    result = project_features(features, pixel, batch, image_size=IMAGE_SIZE)
    grad = torch.randn((500, channels), generator=generator).to(device, dtype)
    (found,) = torch.autograd.grad(result, features, grad)
    sizes = (2, 30, 40, *IMAGE_SIZE, False)
    in_order = OPS.project_features_backward(grad, pixel, batch, *sizes, True)
    with References() as references:
        expected = project_features(features, pixel, batch, image_size=IMAGE_SIZE)
        (wanted,) = torch.autograd.grad(expected, features, grad)
    assert references.calls == 2
    torch.testing.assert_close(in_order, wanted, **tolerances(dtype))
    torch.testing.assert_close(result, expected, **tolerances(dtype))
    torch.testing.assert_close(found, wanted, **tolerances(dtype))
    assert found.stride() == wanted.stride()


@pytest.mark.no_emulation
def test_projection_does_not_depend_on_the_number_of_threads(compiled: None) -> None:
    features = torch.randn(2, 200, 12, 16, requires_grad=True)
    pixel, batch = sites_of_frames(3000, 2)
    gradients = []
    threads = torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        result = project_features(features, pixel, batch, image_size=IMAGE_SIZE)
        gradients.append(torch.autograd.grad(result, features, result.detach())[0])
    torch.set_num_threads(threads)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_projection_at_the_largest_sides(compiled: None) -> None:
    features = torch.arange(32767.0).reshape(1, 1, 1, 32767)
    pixel = torch.tensor([0, 65534, 40000])
    result = project_features(features, pixel, torch.zeros(3, dtype=torch.int8), image_size=(1, 65535))
    exact = ((pixel.double() + 0.5) * 32767 / 65535 - 0.5).clamp(0, 32766)
    torch.testing.assert_close(result[:, 0].double(), exact, rtol=1e-7, atol=1e-6)
    with pytest.raises(RuntimeError, match="project_features"):
        project_features(features, pixel, torch.zeros(3, dtype=torch.int8), image_size=(1, 65536))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40)
@given(
    num_sites=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 16, 63, 64, 65, 130, 256]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from(FLOAT_TYPES),
    index_type=st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]),
    seed=st.integers(0, 1000),
)
def test_filling_equals_the_reference(
    num_sites: int,
    channels: int,
    share: float,
    dtype: torch.dtype,
    index_type: torch.dtype,
    seed: int,
    device: str,
    compiled: None,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((num_sites, channels), generator=generator).to(dtype)
    features[torch.rand((num_sites, channels), generator=generator) < share] = 0
    features[torch.rand(num_sites, generator=generator) < 0.3] = 0
    features = features.to(device)
    neighbors = torch.randint(-1, num_sites, (num_sites, 27), generator=generator).to(device, index_type)
    grad = torch.randn((num_sites, channels), generator=generator).to(device, dtype)
    result = OPS.fill_empty(features, neighbors)
    found = OPS.fill_empty_backward(grad, features, neighbors)
    with References():
        torch.testing.assert_close(result, OPS.fill_empty(features, neighbors), **tolerances(dtype))
        expected = OPS.fill_empty_backward(grad, features, neighbors)
    torch.testing.assert_close(found, expected, **tolerances(dtype))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40)
@given(
    batch_size=st.integers(1, 3),
    num_voxels=st.sampled_from([1, 3, 16, 17, 127, 128, 129, 1000, 4002]),
    dtype=st.sampled_from(INTEGER_TYPES),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_perturbations_have_the_bits_of_the_reference(
    batch_size: int, num_voxels: int, dtype: torch.dtype, seed: int, device: str, compiled: None
) -> None:
    generator = torch.Generator().manual_seed(seed % 1000)
    labels = torch.randint(0, 12, (batch_size, num_voxels), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    labels[:, num_voxels // 3 : num_voxels // 2] = 0
    if dtype == torch.int8:
        labels[labels == 255] = 0
    labels = labels.to(device, dtype)
    probability = torch.rand(batch_size, generator=generator).to(device)
    class_map, chances = draw_shuffle(labels, num_classes=12, probability_range=(0.1, 0.9), seed=seed)
    linear = torch.randint(-1, labels.numel(), (50,), generator=generator).to(device)
    erased = erase_voxels(labels, probability, seed)
    shuffled = shuffle_categories(labels, class_map, chances, seed)
    one_hot = [one_hot_sites(labels, linear, 12, float_type) for float_type in FLOAT_TYPES]
    with References():
        assert torch.equal(erased, erase_voxels(labels, probability, seed))
        assert torch.equal(shuffled, shuffle_categories(labels, class_map, chances, seed))
        for found, float_type in zip(one_hot, FLOAT_TYPES, strict=True):
            assert torch.equal(found, one_hot_sites(labels, linear, 12, float_type))


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_modulation_equals_the_reference_for_scales_of_any_size(dtype: torch.dtype, compiled: None) -> None:
    scale = torch.cat([torch.linspace(-120, 120, 5001), torch.tensor([float("inf"), -float("inf"), float("nan")])])
    scale = scale.to(dtype)
    features, bias = torch.full_like(scale, 1.5), torch.full_like(scale, -1.0)
    result = OPS.modulate(features, scale, bias)
    gradients = OPS.modulate_backward(bias, features, scale)
    with References():
        expected = OPS.modulate(features, scale, bias)
        wanted = OPS.modulate_backward(bias, features, scale)
    for one, other in zip((result, *gradients), (expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **tolerances(dtype))


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_tensors_of_any_offset_and_stride(dtype: torch.dtype, compiled: None) -> None:
    """16-byte accesses need an alignment that views do not have."""
    base = torch.randn(3, 41, 9).to(dtype)
    features, scale, bias = base[0, 1:, 1:], base[1, :-1, :-1], base[2, 1:, :-1]
    neighbors = torch.full((40, 28), -1)[:, 1:]
    neighbors[:, 13] = torch.arange(40)
    found = (OPS.modulate(features, scale, bias), OPS.fill_empty(features, neighbors))
    with References():
        expected = (OPS.modulate(features, scale, bias), OPS.fill_empty(features, neighbors))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerances(dtype))


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_contiguous_rows_at_an_odd_address(dtype: torch.dtype, compiled: None) -> None:
    """Contiguous, so that nothing is copied, and of a size that vectors divide: only the address is odd."""

    def misaligned(*shape: int) -> Tensor:
        return torch.randn(1 + math.prod(shape)).to(dtype)[1:].view(shape)

    features, scale, bias = (misaligned(40, 16) for _ in range(3))
    features[::2, ::3] = 0
    neighbors = torch.full((40, 27), -1)
    neighbors[:, 13], neighbors[:-1, 14], neighbors[1:, 12] = torch.arange(40), torch.arange(1, 40), torch.arange(39)
    channels_last = misaligned(2, 5, 6, 16).permute(0, 3, 1, 2)
    pixel, batch = torch.arange(-1, 39), torch.arange(40) // 20
    labels = torch.randint(0, 12, (1 + 2 * 64,)).to(torch.uint8)[1:].view(2, 64)

    def results() -> list[Tensor]:
        return [
            OPS.modulate(features, scale, bias),
            *OPS.modulate_backward(bias, features, scale),
            OPS.fill_empty(features, neighbors),
            OPS.fill_empty_backward(bias, features, neighbors),
            OPS.project_features(channels_last, pixel, batch, 9, 12, False),
            OPS.project_features_backward(bias, pixel, batch, 2, 5, 6, 9, 12, False, False),
            OPS.erase_voxels(labels, torch.tensor([0.3, 0.6]), 7),
        ]

    found = results()
    with References():
        expected = results()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerances(dtype))


@pytest.mark.no_emulation
def test_nothing_was_out_of_range_on_the_cpu() -> None:
    assert out_of_range_operators(torch.zeros(1)) == []


@pytest.mark.parametrize("device", DEVICE_KERNELS)
def test_kernels_remember_indices_out_of_range(device: str, compiled: None) -> None:
    zeros = torch.zeros(1, 2, 3, 3, device=device)
    out_of_range_operators(zeros)
    bad, place = torch.tensor([9], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    project_features(zeros, place, place, image_size=(3, 3))
    assert out_of_range_operators(zeros) == []
    project_features(zeros, bad, place, image_size=(3, 3))
    fill_empty(torch.zeros(1, 4, device=device), torch.full((1, 27), 1, device=device))
    assert out_of_range_operators(zeros) == ["project_features", "fill_empty"]
    labels, chances = torch.full((1, 4), 7, device=device), torch.zeros(1, 3, device=device)
    shuffle_categories(labels, torch.zeros(1, 3, dtype=torch.int64, device=device), chances, 0)
    one_hot_sites(labels, place, num_classes=3)
    assert out_of_range_operators(zeros) == ["shuffle_categories", "one_hot_sites"]
    shuffle_categories(labels * 0, torch.full((1, 3), 3, device=device), chances, 0)
    assert out_of_range_operators(zeros) == ["shuffle_categories"]
    assert out_of_range_operators(zeros) == []


@pytest.mark.cuda
def test_the_debug_switch_raises_for_an_index_out_of_range(compiled: None) -> None:
    program = (
        "import torch, ammnet_sparse.ops as ops; x = torch.zeros(1, 2, 3, 3, device='cuda');"
        "zero = torch.zeros(1, dtype=torch.int64, device='cuda');"
        "ops.project_features(x, zero, zero, image_size=(3, 3));"
        "ops.project_features(x, zero + 9, zero, image_size=(3, 3))"
    )
    environment = os.environ | {"AMMNET_SPARSE_CHECK_INDICES": "1"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "IndexError: project_features: found an index out of range on cuda:0" in result.stderr


@pytest.mark.cuda
def test_kernels_run_on_the_current_stream(compiled: None) -> None:
    features = torch.randn(64, 256, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            features = modulate(features, torch.zeros_like(features), features)
        copied = features.clone()
    stream.synchronize()
    assert torch.equal(copied, features)
