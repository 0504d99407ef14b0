"""gather_taps, its transpose and sum_rows against loops, autograd, and bad rows."""

import pytest
import torch
from torch import Tensor

from ammnet_sparse.ops import gather_taps, out_of_range_operators, sum_rows, sum_taps
from tests.generated import given, settings, st
from tests.ops.support import DEVICE_KERNELS, DEVICES, FLOAT_TYPES, OPS, no_synchronization, saved_tensors
from tests.tolerances import tolerances


def random_table(targets: int, sources: int, taps: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A table and its inverse: no tap reads a source twice, and some read none."""
    generator = torch.Generator().manual_seed(seed)
    table, inverse = torch.full((targets, taps), -1), torch.full((sources, taps), -1)
    for tap in range(taps):
        count = min(targets, sources) * 2 // 3
        rows = torch.randperm(targets, generator=generator)[:count]
        read = torch.randperm(sources, generator=generator)[:count]
        table[rows, tap], inverse[read, tap] = read, rows
    return table.int(), inverse.int()


def random_values(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)


def naive_gather(features: Tensor, table: Tensor) -> Tensor:
    channels = features.shape[1]
    result = features.new_zeros(table.shape[0], table.shape[1] * channels)
    for target, rows in enumerate(table.tolist()):
        for tap, row in enumerate(rows):
            if row >= 0:
                result[target, tap * channels : (tap + 1) * channels] = features[row]
    return result


def naive_sum(values: Tensor, inverse: Tensor) -> Tensor:
    channels = values.shape[1] // inverse.shape[1]
    result = torch.zeros(inverse.shape[0], channels, dtype=torch.float64)
    for source, rows in enumerate(inverse.tolist()):
        for tap, row in enumerate(rows):
            if row >= 0:
                result[source] += values[row, tap * channels : (tap + 1) * channels].double()
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 70])
def test_values_and_gradients_are_those_of_loops(channels: int, dtype: torch.dtype, device: str) -> None:
    table, inverse = random_table(23, 31, 5)
    features = random_values(31, channels, dtype=dtype)
    moved = features.to(device).requires_grad_()
    result = gather_taps(moved, table.to(device), inverse.to(device))
    assert torch.equal(result.cpu(), naive_gather(features, table))  # copies
    grad = random_values(23, 5 * channels, dtype=dtype)
    result.backward(grad.to(device))
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad.cpu(), naive_sum(grad, inverse).to(dtype), **tolerances(dtype))
    torch.testing.assert_close(sum_taps(grad.to(device), inverse.to(device)), moved.grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("channels", [1, 5, 8, 70])
def test_sums_of_rows_are_those_of_loops(channels: int, dtype: torch.dtype, device: str) -> None:
    owner = torch.tensor([1, 0, 1, -1, 3, 1])
    table = torch.tensor([[1, -1, -1], [0, 2, 5], [-1, -1, -1], [-1, 4, -1]])
    features = random_values(6, channels, dtype=dtype)
    moved = features.to(device).requires_grad_()
    result = sum_rows(moved, table.to(device), owner.to(device), scale=0.25)
    exact = features.double()
    expected = torch.stack([exact[1], exact[0] + exact[2] + exact[5], 0 * exact[0], exact[4]]) / 4
    torch.testing.assert_close(result.cpu(), expected.to(dtype), **tolerances(dtype))
    grad = random_values(4, channels, dtype=dtype)
    result.backward(grad.to(device))
    assert moved.grad is not None
    wanted = torch.stack([grad[row] / 4 if row >= 0 else 0 * grad[0] for row in owner.tolist()])
    torch.testing.assert_close(moved.grad.cpu(), wanted, **tolerances(dtype))


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_rows_of_any_integer_type(kind: torch.dtype) -> None:
    table, inverse = random_table(9, 7, 3)
    features = random_values(7, 4)
    assert torch.equal(gather_taps(features, table.to(kind)), naive_gather(features, table))
    values = random_values(9, 12)
    torch.testing.assert_close(sum_taps(values, inverse.to(kind)), naive_sum(values, inverse).float())


def test_columns_of_a_wider_table() -> None:
    table, _ = random_table(20, 31, 5)
    features = random_values(31, 4)
    for part in (table[3:11, :2], table[:, 1:4], table[:, ::2], table.t()[:2].t()):
        assert torch.equal(gather_taps(features, part), naive_gather(features, part))


@settings(max_examples=25)
@given(targets=st.integers(0, 6), sources=st.integers(0, 6), taps=st.integers(1, 4), channels=st.integers(0, 5))
def test_any_sizes(targets: int, sources: int, taps: int, channels: int) -> None:
    table, inverse = random_table(targets, sources, taps)
    features = random_values(sources, channels).requires_grad_()
    result = gather_taps(features, table, inverse)
    assert torch.equal(result, naive_gather(features.detach(), table))
    grad = random_values(targets, taps * channels)
    result.backward(grad)
    assert features.grad is not None
    torch.testing.assert_close(features.grad, naive_sum(grad, inverse).float())


def test_gradcheck() -> None:
    table, inverse = random_table(6, 5, 3)
    features = random_values(5, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: gather_taps(values, table, inverse), features)
    sums, owner = torch.tensor([[4, 0], [1, -1]]), torch.tensor([0, 1, -1, -1, 0])
    assert torch.autograd.gradcheck(lambda values: sum_rows(values, sums, owner, scale=0.5), features)


def test_opcheck() -> None:
    table, inverse = random_table(6, 5, 3)
    features = random_values(5, 4).requires_grad_()
    torch.library.opcheck(OPS.gather_taps.default, (features, table, inverse))
    torch.library.opcheck(OPS.gather_taps_backward.default, (random_values(6, 12), inverse))
    owner = torch.tensor([0, 1, -1, -1, 0])
    torch.library.opcheck(OPS.sum_rows.default, (features, torch.tensor([[4, 0], [1, -1]]), owner, 0.5))


def test_saves_only_the_inverse() -> None:
    table, inverse = random_table(6, 5, 3)
    with saved_tensors() as kept:
        gather_taps(random_values(5, 4).requires_grad_(), table, inverse)
    assert {tensor.data_ptr() for tensor in kept} == {inverse.data_ptr()}


@pytest.mark.cuda
def test_does_not_wait_for_the_device() -> None:
    table, inverse = (rows.to("cuda") for rows in random_table(6, 5, 3))
    features = random_values(5, 4, device="cuda").requires_grad_()
    grad = random_values(6, 12, device="cuda")
    with no_synchronization():
        gather_taps(features, table, inverse).backward(grad)


@pytest.mark.parametrize("device", DEVICE_KERNELS)
def test_on_cuda_rows_out_of_range_read_nothing_and_are_remembered(device: str, implementation: str) -> None:
    features = random_values(5, 4, device=device)
    out_of_range_operators(features)
    table = torch.tensor([[0, 5], [-2, 4], [2**31 - 1, -1]], dtype=torch.int32, device=device)
    expected = torch.zeros(3, 2, 4)
    expected[0, 0], expected[1, 1] = features[0], features[4]
    assert torch.equal(gather_taps(features, table).cpu(), expected.view(3, 8))
    assert out_of_range_operators(features) == ([] if implementation == "reference" else ["gather_taps"])
    inside = table.where((table >= 0) & (table < 5), -1)
    gather_taps(features, inside)
    assert out_of_range_operators(features) == []


@pytest.mark.no_emulation
@pytest.mark.parametrize("row", [5, -2])
def test_rows_out_of_range_are_an_error(row: int) -> None:
    table = torch.tensor([[0, 4], [-1, row]])
    with pytest.raises(IndexError, match=rf"gather_taps: table.*{row}"):
        gather_taps(random_values(5, 2), table)
    with pytest.raises(IndexError, match="sum_rows: table"):
        sum_rows(random_values(5, 2), table, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(IndexError, match="gather_taps: inverse"):
        sum_taps(random_values(5, 4), table)


def test_arguments_that_do_not_fit_are_refused() -> None:
    features = random_values(5, 2)
    table, inverse = random_table(6, 5, 3)
    with pytest.raises(ValueError, match="inverse"):
        gather_taps(features, table, inverse[:4])
    with pytest.raises(ValueError, match="inverse"):
        gather_taps(features.requires_grad_(), table)
    with pytest.raises(TypeError, match="table"):
        gather_taps(features, table.float())
    with pytest.raises(ValueError, match="inverse"):
        sum_taps(random_values(6, 5), inverse)
    with pytest.raises(ValueError, match="owner"):
        sum_rows(random_values(5, 2), table, inverse[:4, 0])


def test_second_derivative_is_an_error() -> None:
    table, inverse = random_table(6, 5, 3)
    features = random_values(5, 2).requires_grad_()
    (grad,) = torch.autograd.grad((gather_taps(features, table, inverse) ** 2).sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()
