"""one_hot_sites against a loop over sites."""

import pytest
import torch

from ammnet_sparse.ops import one_hot_sites
from tests.generated import given, settings, st
from tests.ops.support import DEVICE_KERNELS, DEVICES, FLOAT_TYPES, INTEGER_TYPES, OPS, no_synchronization


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("label_type", INTEGER_TYPES)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_equals_a_loop_over_sites(label_type: torch.dtype, dtype: torch.dtype, device: str) -> None:
    labels = torch.arange(20).remainder(5).reshape(2, 10).to(device, label_type)
    linear = torch.tensor([0, 19, 3, -1, 7, 7, 12], device=device)
    result = one_hot_sites(labels, linear, num_classes=5, dtype=dtype)
    expected = torch.zeros(7, 5, dtype=dtype)
    for row, site in enumerate(linear.tolist()):
        if site >= 0:
            expected[row, site % 5] = 1
    assert result.dtype == dtype and result.is_contiguous()
    assert torch.equal(result.cpu(), expected)


@settings(max_examples=25)
@given(labels=st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=1, max_size=12), data=st.data())
def test_ignored_voxels_and_sites_without_a_label_are_zero(labels: list[int], data: st.DataObject) -> None:
    linear = data.draw(st.lists(st.integers(-1, len(labels) - 1), max_size=8))
    sites = torch.tensor(linear, dtype=torch.int32)
    result = one_hot_sites(torch.tensor([labels], dtype=torch.uint8), sites, num_classes=4)
    picked = [labels[site] if site >= 0 else 255 for site in linear]
    assert result.tolist() == [[float(label == column) for column in range(4)] for label in picked]


def test_opcheck() -> None:
    labels = torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8)
    torch.library.opcheck(OPS.one_hot_sites.default, (labels, torch.tensor([3, -1, 2]), 3, torch.float16))


@pytest.mark.no_emulation
@pytest.mark.parametrize("bad", [-2, 10, 2**40])
def test_sites_out_of_range_are_an_error(bad: int) -> None:
    labels = torch.zeros(2, 5, dtype=torch.uint8)
    with pytest.raises(IndexError, match="linear"):
        one_hot_sites(labels, torch.tensor([0, bad]), num_classes=3)


@pytest.mark.no_emulation
@pytest.mark.parametrize("bad", [3, 254, -1, 256])
def test_labels_out_of_range_are_an_error_where_a_site_reads_them(bad: int) -> None:
    labels = torch.tensor([[0, bad, 1]])
    with pytest.raises(IndexError, match="labels"):
        one_hot_sites(labels, torch.tensor([1]), num_classes=3)
    assert one_hot_sites(labels, torch.tensor([0, 2]), num_classes=3).sum().item() == 2


@pytest.mark.parametrize("device", DEVICE_KERNELS)
def test_on_cuda_nothing_waits_and_what_is_out_of_range_is_zero(device: str) -> None:
    labels = torch.tensor([[0, 7, 1]], device=device)
    linear = torch.tensor([0, 1, 3, -5, 2], device=device)
    with no_synchronization():
        result = one_hot_sites(labels, linear, num_classes=3)
    assert result.argmax(1)[[0, 4]].tolist() == [0, 1] and result.sum(1).tolist() == [1, 0, 0, 0, 1]


def test_arguments_that_do_not_fit_are_an_error() -> None:
    labels, linear = torch.zeros(2, 5, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="linear"):
        one_hot_sites(labels[0], linear, num_classes=3)
    with pytest.raises(ValueError, match="num_classes"):
        one_hot_sites(labels, linear, num_classes=256)
    with pytest.raises(TypeError, match="dtype"):
        one_hot_sites(labels, linear, num_classes=3, dtype=torch.int64)
    with pytest.raises(TypeError, match="linear"):
        one_hot_sites(labels, linear.float(), num_classes=3)
    with pytest.raises(ValueError, match="linear"):
        one_hot_sites(labels, linear.to("meta"), num_classes=3)
