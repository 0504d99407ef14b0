"""modulate: equation 2, its gradient, and its saved tensors."""

import pytest
import torch
from torch import Tensor

from ammnet_sparse.ops import modulate
from tests.generated import given, settings, st
from tests.ops.support import DEVICES, FLOAT_TYPES, OPS, no_synchronization, saved_tensors
from tests.tolerances import tolerances


def inputs(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) * 3 for _ in range(3)]
    return [tensor.to(device, dtype).requires_grad_(grad) for tensor in drawn]


def formula(features: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return features * (1 + torch.sigmoid(scale)) + bias


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_value_and_gradients_are_those_of_the_formula_rounded_once(dtype: torch.dtype, device: str) -> None:
    arguments = inputs(33, 7, dtype=dtype, device=device, grad=True)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    grad = torch.randn(33, 7, dtype=torch.float64).to(device, dtype)
    result, expected = modulate(*arguments), formula(*exact)
    torch.testing.assert_close(result, expected.to(dtype), **tolerances(dtype))
    found = torch.autograd.grad(result, arguments, grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.to(dtype), **tolerances(dtype))


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(modulate, inputs(4, 3, dtype=torch.float64, grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(dtype: torch.dtype) -> None:
    arguments = inputs(5, 4, dtype=dtype, grad=True)
    torch.library.opcheck(OPS.modulate.default, tuple(arguments))
    torch.library.opcheck(OPS.modulate_backward.default, tuple(argument.detach() for argument in arguments))


def test_opcheck_of_other_layouts() -> None:
    features, scale, bias = inputs(5, 4)
    torch.library.opcheck(OPS.modulate.default, (features.t(), scale.t(), bias.t().contiguous()))
    torch.library.opcheck(OPS.modulate_backward.default, (features.t().contiguous(), features.t(), scale.t()))


@settings(max_examples=25)
@given(shape=st.lists(st.integers(0, 5), min_size=0, max_size=4))
def test_any_shape(shape: list[int]) -> None:
    arguments = inputs(*shape, grad=True)
    result = modulate(*arguments)
    torch.testing.assert_close(result, formula(*arguments), **tolerances(torch.float32))
    result.sum().backward()
    assert [argument.grad.shape for argument in arguments] == [torch.Size(shape)] * 3


def test_layout_of_the_features_is_kept() -> None:
    features, scale, bias = inputs(2, 3, 4, 5)
    features = features.to(memory_format=torch.channels_last)
    result = modulate(features, scale, bias)
    assert result.stride() == features.stride()
    torch.testing.assert_close(result, formula(features, scale, bias), **tolerances(torch.float32))


def test_saves_only_features_and_scale() -> None:
    features, scale, bias = inputs(8, 4, grad=True)
    with saved_tensors() as kept:
        modulate(features, scale, bias)
    assert {tensor.data_ptr() for tensor in kept} == {features.data_ptr(), scale.data_ptr()}


@pytest.mark.parametrize("needed", range(3))
def test_gradient_of_one_input_alone(needed: int) -> None:
    arguments = inputs(3, 4, dtype=torch.float64)
    arguments[needed].requires_grad_()
    (found,) = torch.autograd.grad(modulate(*arguments).sum(), arguments[needed])
    (wanted,) = torch.autograd.grad(formula(*arguments).sum(), arguments[needed])
    torch.testing.assert_close(found, wanted, **tolerances(torch.float64))


def test_types_that_differ_meet_in_their_common_type() -> None:
    features, scale, bias = inputs(3, 4)
    result = modulate(features, scale.half(), bias.half())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, formula(features, scale.half().float(), bias.half().float()))
    assert modulate(features.half(), scale.bfloat16(), bias.half()).dtype == torch.float32


def test_under_autocast() -> None:
    features, scale, bias = inputs(6, 4, grad=True)
    layer = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        result = modulate(layer(features), layer(scale), layer(bias))
        mixed = modulate(features, layer(scale), bias)
    assert result.dtype == torch.bfloat16 and mixed.dtype == torch.float32
    (result.sum() + mixed.sum()).backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert bool(layer.weight.grad.isfinite().all()) and features.grad is not None


@pytest.mark.cuda
def test_does_not_wait_for_the_device() -> None:
    arguments = inputs(8, 4, device="cuda", grad=True)
    with no_synchronization():
        modulate(*arguments).sum().backward()


def test_shapes_that_differ_are_an_error() -> None:
    features, scale, _ = inputs(3, 4)
    with pytest.raises(ValueError, match="bias"):
        modulate(features, scale, torch.zeros(1, 4))


def test_integers_are_an_error() -> None:
    with pytest.raises(TypeError, match="modulate"):
        modulate(*(torch.ones(2, dtype=torch.int64) for _ in range(3)))
