"""normalize_sites and apply_normalization: values, statistics, gradients, groups, and what they keep in memory."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ammnet_sparse.ops import Normalized, RunningStatistics, apply_normalization, normalize_sites
from tests.generated import given, settings, st
from tests.ops.support import DEVICES, FLOAT_TYPES, OPS, References, no_synchronization, saved_tensors
from tests.tolerances import tolerances

EPS = 1e-3


class Inputs(NamedTuple):
    """Arguments of the operators."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    residuals: tuple[Tensor, ...]

    @property
    def all(self) -> tuple[Tensor, ...]:
        """Everything that has a gradient."""
        return (self.features, self.weight, self.bias, *self.residuals)


def statistics_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_inputs(
    rows: int,
    channels: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    num_residuals: int = 0,
    needs_gradient: bool = True,
) -> Inputs:
    generator = torch.Generator().manual_seed(rows + channels)

    def draw(*shape: int, like: torch.dtype) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(like).to(device).requires_grad_(needs_gradient)

    parameters = statistics_type(dtype)
    features = (draw(rows, channels, like=dtype).detach() * 2 + 3).requires_grad_(needs_gradient)
    weight, bias = draw(channels, like=parameters), draw(channels, like=parameters)
    return Inputs(features, weight, bias, tuple(draw(rows, channels, like=dtype) for _ in range(num_residuals)))


def in_double(inputs: Inputs) -> Inputs:
    def convert(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return Inputs(*(convert(tensor) for tensor in inputs[:3]), tuple(convert(tensor) for tensor in inputs.residuals))


def make_running(channels: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> RunningStatistics:
    parameters = statistics_type(dtype)
    return RunningStatistics(
        torch.linspace(-1, 1, channels, dtype=parameters, device=device),
        torch.linspace(0.5, 2, channels, dtype=parameters, device=device),
        torch.tensor(7, device=device),
        0.1,
    )


def formula(inputs: Inputs, *, num_groups: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, its ReLU, mean and variance, of torch's own normalization."""
    groups = inputs.features.chunk(num_groups)
    total = torch.cat(
        [
            torch.nn.functional.batch_norm(group, None, None, inputs.weight, inputs.bias, True, 0.0, EPS)
            for group in groups
        ]
    )
    total = sum(inputs.residuals, total)
    mean = torch.stack([group.mean(0) for group in groups])
    variance = torch.stack([group.var(0, correction=0) for group in groups])
    return total, total.relu(), mean, variance


def weighted(results: tuple[Tensor | None, ...], dtype: torch.dtype) -> Tensor:
    """A scalar of which every result has another gradient at every element, by weights rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for result in results:
        if result is not None:
            weights = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(dtype)
            total = total + (result.double() * weights.to(result.device).double()).sum().cpu()
    return total


def flat(results: Normalized) -> list[Tensor]:
    return [value for value in results if value is not None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("num_groups", [1, 4])
def test_value_and_gradients_are_those_of_the_formula_rounded_once(
    num_groups: int, dtype: torch.dtype, device: str
) -> None:
    for num_residuals, with_sum, with_relu, keep in itertools.product(range(3), (False, True), (False, True), (0, 1)):
        if not with_sum and not with_relu:
            continue
        inputs = make_inputs(num_groups * 33, 16, dtype=dtype, device=device, num_residuals=num_residuals)
        exact = in_double(inputs)
        found = normalize_sites(
            *inputs[:3],
            residuals=inputs.residuals,
            num_groups=num_groups,
            eps=EPS,
            with_sum=with_sum,
            with_relu=with_relu,
            keep_residuals=bool(keep),
        )
        wanted = formula(exact, num_groups=num_groups)
        assert (found.sum is not None, found.activated is not None) == (with_sum, with_relu)
        for one, other in zip(found, wanted, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other.to(one.dtype), **tolerances(one.dtype))
        gradients = torch.autograd.grad(weighted(found[:2], dtype), inputs.all)
        shown = tuple(other if one is not None else None for one, other in zip(found[:2], wanted[:2], strict=True))
        # Each result's gradient arrives rounded to the type of the result; the weights of this test fit it.
        expected = torch.autograd.grad(weighted(shown, dtype), exact.all)
        for one, other in zip(gradients, expected, strict=True):
            limits = tolerances(dtype)
            largest = float(other.abs().max())
            torch.testing.assert_close(
                one.double(), other, rtol=4 * limits["rtol"], atol=max(limits["atol"], limits["rtol"] * largest)
            )


@pytest.mark.no_emulation  # hundreds of launches; the gradients are compared with the formula's above
@pytest.mark.parametrize("keep_residuals", [False, True])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_gradcheck(num_groups: int, keep_residuals: bool) -> None:
    inputs = make_inputs(6, 3, dtype=torch.float64, num_residuals=2)

    def normalize(features: Tensor, weight: Tensor, bias: Tensor, *residuals: Tensor) -> tuple[Tensor, ...]:
        found = normalize_sites(
            features,
            weight,
            bias,
            residuals=residuals,
            num_groups=num_groups,
            eps=EPS,
            with_relu=True,
            keep_residuals=keep_residuals,
        )
        assert found.sum is not None and found.activated is not None
        return found.sum, found.activated

    def apply(features: Tensor, weight: Tensor, bias: Tensor, *residuals: Tensor) -> Tensor:
        found = apply_normalization(
            features,
            weight,
            bias,
            mean=torch.full((num_groups, 3), 2.0, dtype=torch.float64),
            variance=torch.full((num_groups, 3), 3.0, dtype=torch.float64),
            residuals=residuals,
            eps=EPS,
            with_sum=False,
            with_relu=True,
            keep_residuals=keep_residuals,
        )
        assert found.activated is not None
        return found.activated

    assert torch.autograd.gradcheck(normalize, inputs.all)
    assert torch.autograd.gradcheck(apply, inputs.all)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(dtype: torch.dtype) -> None:
    inputs = make_inputs(6, 4, dtype=dtype, num_residuals=2)
    running = make_running(4)
    flags = (EPS, True, True, False)
    torch.library.opcheck(OPS.normalize_sites.default, (*inputs.all, *running[:3], 2, 0.1, *flags))
    torch.library.opcheck(OPS.normalize_sites.default, (*inputs[:3], *(None,) * 5, 1, 0.1, EPS, False, True, True))
    mean, variance = torch.zeros(2, 4), torch.ones(2, 4)
    torch.library.opcheck(OPS.apply_normalization.default, (*inputs.all, mean, variance, *flags))
    features, weight, bias, *residuals = (tensor.detach() for tensor in inputs.all)
    grads = (features, features * 2)
    for activated in (features, None):
        torch.library.opcheck(
            OPS.normalize_sites_backward.default,
            (*grads, features, weight, bias, *residuals, activated, mean, variance, EPS, True, True),
        )
    torch.library.opcheck(
        OPS.normalize_sites_backward.default,
        (features, None, features, weight, bias, None, None, None, mean, variance, EPS, False, False),
    )


@settings(max_examples=40)
@given(
    rows=st.integers(2, 700),
    num_groups=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 4, 8, 12, 63, 64, 65, 130, 300]),
    num_residuals=st.integers(0, 2),
    dtype=st.sampled_from(FLOAT_TYPES),
    is_training=st.booleans(),
)
def test_kernels_equal_the_reference(
    rows: int, num_groups: int, channels: int, num_residuals: int, dtype: torch.dtype, is_training: bool
) -> None:
    inputs = make_inputs(rows * num_groups, channels, dtype=dtype, num_residuals=num_residuals, needs_gradient=False)
    residuals = (*inputs.residuals, None, None)[:2]
    results = []
    for uses_reference in (False, True):
        running = make_running(channels, dtype=dtype)
        arguments = (*inputs[:3], *residuals, *running[:3], num_groups, 0.1, EPS, True, True, False)
        with References() if uses_reference else torch.no_grad():
            total, activated, mean, variance = OPS.normalize_sites(*arguments)
            again = OPS.apply_normalization(*inputs[:3], *residuals, mean, variance, EPS, True, True, False)
            results.append([total, activated, mean, variance, *running[:3], *again])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one.double(), other.double(), **tolerances(dtype if one.dtype == dtype else torch.float32)
        )
    # The backward pass of the same tensors, or a ReLU at another side of zero would be a difference.
    total, activated, mean, variance = results[0][:4]
    for kept in (activated, None):
        gradients = []
        for uses_reference in (False, True):
            with References() if uses_reference else torch.no_grad():
                gradients.append(
                    OPS.normalize_sites_backward(
                        inputs.features,
                        total,
                        *inputs[:3],
                        *residuals,
                        kept,
                        mean,
                        variance,
                        EPS,
                        is_training,
                        True,
                    )
                )
        for one, other in zip(*gradients, strict=True):
            assert one.dtype == other.dtype
            limits = tolerances(other.dtype)
            atol = max(limits["atol"], limits["rtol"] * float(other.abs().max()))
            torch.testing.assert_close(one, other, rtol=limits["rtol"], atol=atol)


@pytest.mark.no_emulation  # its point is the number of rows
@pytest.mark.parametrize("device", DEVICES)
def test_single_precision_holds_over_many_rows(device: str) -> None:
    """129,600 rows, mean 5, deviation 0.1: sums of rows and of squares lose four digits here."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(129_600, 4, generator=generator) * 0.1 + 5
    upstream = torch.randn(129_600, 4, generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = features.to(dtype).to(device).requires_grad_()
        weight, bias = torch.ones(4, dtype=dtype, device=device), torch.zeros(4, dtype=dtype, device=device)
        found = normalize_sites(inputs, weight.requires_grad_(), bias.requires_grad_())
        assert found.sum is not None
        gradients = torch.autograd.grad(found.sum, (inputs, weight, bias), upstream.to(dtype).to(device))
        results.append([value.detach().double() for value in (found.sum, found.mean, found.variance, *gradients)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_a_first_row_far_from_the_others_costs_no_digits() -> None:
    features = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    features[0] = torch.tensor([1e4, -300.0, 5.0])
    one, zero = torch.ones(3), torch.zeros(3)
    found = normalize_sites(features, one, zero)
    exact = normalize_sites(features.double(), one.double(), zero.double())
    assert found.sum is not None and exact.sum is not None
    torch.testing.assert_close(found.sum.double(), exact.sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance.double(), exact.variance, rtol=1e-5, atol=0)
    assert ((found.mean - exact.mean).abs() <= 1e-5 * exact.variance.sqrt()).all()


def test_constant_features_have_no_variance() -> None:
    features = torch.tensor([0.1, 1e4, -3e-5]).expand(1000, 3)
    bias = torch.tensor([1.0, 2.0, 3.0])
    found = normalize_sites(features, torch.ones(3), bias, with_relu=True)
    assert found.sum is not None
    assert torch.equal(found.variance, torch.zeros(1, 3))
    torch.testing.assert_close(found.sum, bias.expand(1000, 3))


def test_application_of_the_statistics_found_gives_the_bits_of_the_first_pass() -> None:
    for dtype, num_groups in itertools.product(FLOAT_TYPES, (1, 3)):
        inputs = make_inputs(60, 20, dtype=dtype, num_residuals=2, needs_gradient=False)
        found = normalize_sites(*inputs[:3], residuals=inputs.residuals, num_groups=num_groups, with_relu=True)
        again = apply_normalization(
            *inputs[:3], mean=found.mean, variance=found.variance, residuals=inputs.residuals, with_relu=True
        )
        assert found.sum is not None and again.sum is not None
        assert found.activated is not None and again.activated is not None
        assert torch.equal(found.sum, again.sum) and torch.equal(found.activated, again.activated)


@pytest.mark.no_emulation
def test_number_of_threads_changes_no_bit() -> None:
    inputs = make_inputs(3000, 70)
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        found = normalize_sites(*inputs[:3], num_groups=2)
        assert found.sum is not None
        results.append(
            (found.sum, found.mean, found.variance, *torch.autograd.grad(found.sum.square().sum(), inputs[:3]))
        )
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0][:3], other[:3], strict=True))
        for one, two in zip(results[0][3:], other[3:], strict=True):
            torch.testing.assert_close(one, two, **tolerances(torch.float32))


@pytest.mark.cuda
def test_runs_on_cuda_give_the_same_bits() -> None:
    inputs = make_inputs(40_000, 64, device="cuda", num_residuals=1)
    results = []
    for _ in range(3):
        found = normalize_sites(*inputs[:3], residuals=inputs.residuals, num_groups=4, with_relu=True)
        assert found.activated is not None
        results.append((*found, *torch.autograd.grad(found.activated.square().sum(), inputs.all)))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("with_sum", "with_relu", "num_residuals", "keep_residuals", "expected"),
    [
        (True, False, 2, False, []),
        (False, True, 0, False, []),
        (False, True, 2, False, ["activated"]),
        (True, True, 1, False, ["activated"]),
        (True, True, 2, True, ["residual", "residual"]),
        (True, True, 0, True, []),
    ],
)
def test_keeps_the_features_and_what_a_relu_needs(
    with_sum: bool, with_relu: bool, num_residuals: int, keep_residuals: bool, expected: list[str]
) -> None:
    inputs = make_inputs(8, 4, num_residuals=num_residuals)
    with saved_tensors() as kept:
        found = normalize_sites(
            *inputs[:3],
            residuals=inputs.residuals,
            with_sum=with_sum,
            with_relu=with_relu,
            keep_residuals=keep_residuals,
        )
    names = {residual.data_ptr(): "residual" for residual in inputs.residuals}
    names |= {} if found.activated is None else {found.activated.data_ptr(): "activated"}
    names |= {inputs.features.data_ptr(): "features"}
    sizable = [names[tensor.data_ptr()] for tensor in kept if tensor.shape == (8, 4)]
    assert sorted(sizable) == sorted(["features", *expected])


@pytest.mark.parametrize("needed", range(5))
def test_gradient_of_one_input_alone(needed: int) -> None:
    inputs = make_inputs(9, 4, dtype=torch.float64, num_residuals=2, needs_gradient=False)
    inputs.all[needed].requires_grad_()
    found = normalize_sites(*inputs[:3], residuals=inputs.residuals, eps=EPS, with_relu=True)
    wanted = formula(inputs)
    one, other = (
        torch.autograd.grad(weighted(results, torch.float64), inputs.all[needed])[0]
        for results in (found[:2], wanted[:2])
    )
    torch.testing.assert_close(one, other, **tolerances(torch.float64))


def test_either_result_may_be_the_only_one_with_a_gradient() -> None:
    inputs = make_inputs(9, 4, dtype=torch.float64, num_residuals=1)
    for index in range(2):
        found = normalize_sites(*inputs[:3], residuals=inputs.residuals, eps=EPS, with_relu=True)[index]
        assert found is not None
        gradients = torch.autograd.grad(found.square().sum(), inputs.all)
        expected = torch.autograd.grad(formula(inputs)[index].square().sum(), inputs.all)
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, **tolerances(torch.float64))


def test_rows_that_begin_anywhere_and_have_any_stride() -> None:
    """16-byte accesses need an alignment that views do not have."""
    base = torch.randn(3, 41, 9, generator=torch.Generator().manual_seed(0))
    features, residual = base[0, 1:, 1:], base[1, :-1, :-1]
    weight, bias = torch.ones(8), torch.zeros(8)
    found = normalize_sites(features, weight, bias, residuals=(residual,), with_relu=True)
    expected = normalize_sites(features.clone(), weight, bias, residuals=(residual.clone(),), with_relu=True)
    for one, other in zip(found, expected, strict=True):
        assert one is not None and other is not None and one.is_contiguous()
        torch.testing.assert_close(one, other)


def test_values_that_are_not_finite_stay_where_they_are() -> None:
    features = torch.ones(4, 3)
    features[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    features[2, 1] = float("nan")
    features[0, 2] = float("inf")
    found = normalize_sites(features, torch.ones(3), torch.zeros(3), with_relu=True)
    assert found.sum is not None and found.activated is not None
    for result in (found.sum, found.activated):
        assert result[:, 0].isfinite().all() and result[:, 1].isnan().all() and result[:, 2].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_and_single_rows_can_be_applied_but_have_no_statistics(device: str) -> None:
    mean, variance = torch.zeros(3, device=device), torch.ones(3, device=device)
    for rows in (0, 1):
        inputs = make_inputs(rows, 3, device=device, num_residuals=1)
        found = apply_normalization(
            *inputs[:3], mean=mean, variance=variance, residuals=inputs.residuals, with_relu=True
        )
        assert found.sum is not None and found.activated is not None and found.sum.shape == (rows, 3)
        gradients = torch.autograd.grad(found.sum.sum() + found.activated.sum(), inputs.all)
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in inputs.all]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        with pytest.raises(ValueError, match="normalize_sites"):
            normalize_sites(*inputs[:3])
    inputs = make_inputs(4, 3, device=device)
    with pytest.raises(ValueError, match="normalize_sites"):
        normalize_sites(*inputs[:3], num_groups=4)
    without_channels = make_inputs(5, 0, device=device)
    assert flat(normalize_sites(*without_channels[:3]))[0].shape == (5, 0)


def test_buffers_count_their_changes() -> None:
    """Autograd refuses what was changed after it was kept."""
    inputs, running = make_inputs(8, 4), make_running(4)
    versions = [buffer._version for buffer in running[:3]]
    normalize_sites(*inputs[:3], running=running)
    with torch.no_grad():
        normalize_sites(*inputs[:3], running=running)
    changed = [buffer._version for buffer in running[:3]]
    assert all(after >= before + 2 for before, after in zip(versions, changed, strict=True))
    assert int(running.num_batches) == 9


@pytest.mark.cuda
def test_does_not_wait_for_the_device() -> None:
    inputs, running = make_inputs(64, 4, device="cuda", num_residuals=2), make_running(4, device="cuda")
    with no_synchronization():
        found = normalize_sites(*inputs[:3], residuals=inputs.residuals, running=running, num_groups=2, with_relu=True)
        assert found.sum is not None and found.activated is not None
        (found.sum.sum() + found.activated.sum()).backward()
        apply_normalization(*inputs[:3], mean=running.mean, variance=running.variance)


def test_arguments_that_do_not_fit_are_named() -> None:
    features, weight, bias = torch.zeros(6, 4), torch.ones(4), torch.zeros(4)
    with pytest.raises(ValueError, match="num_groups"):
        normalize_sites(features, weight, bias, num_groups=4)
    with pytest.raises(ValueError, match="weight"):
        normalize_sites(features, torch.ones(3), bias)
    with pytest.raises(TypeError, match="weight"):
        normalize_sites(features, weight.double(), bias)
    with pytest.raises(TypeError, match="features"):
        normalize_sites(features.long(), weight, bias)
    with pytest.raises(ValueError, match="features"):
        normalize_sites(features[0], weight, bias)
    with pytest.raises(ValueError, match="residuals"):
        normalize_sites(features, weight, bias, residuals=(features,) * 3)
    with pytest.raises(ValueError, match="residuals"):
        normalize_sites(features, weight, bias, residuals=(features[:1],))
    with pytest.raises(TypeError, match="residuals"):
        normalize_sites(features, weight, bias, residuals=(features.double(),))
    with pytest.raises(ValueError, match="with_sum"):
        normalize_sites(features, weight, bias, with_sum=False)
    with pytest.raises(ValueError, match="mean and variance"):
        apply_normalization(features, weight, bias, mean=torch.ones(3), variance=weight)
    with pytest.raises(ValueError, match="mean"):
        apply_normalization(features, weight, bias, mean=torch.ones(4, 4), variance=torch.ones(4, 4))
    running = make_running(4)
    with pytest.raises(TypeError, match="num_batches"):
        normalize_sites(features, weight, bias, running=running._replace(num_batches=torch.zeros(())))
    with pytest.raises(ValueError, match="running_var"):
        normalize_sites(features, weight, bias, running=running._replace(variance=torch.ones(1)))
