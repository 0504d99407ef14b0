"""Options that commands share: the device."""

import pytest
import torch

from ammnet_sparse.cli.errors import UsageError
from ammnet_sparse.cli.options import parse_device


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two CUDA devices; collects those that become the current one."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def test_one_of_several_devices_becomes_the_current_one(made_current: list[torch.device]) -> None:
    assert parse_device("cuda:1") == torch.device("cuda:1")
    assert made_current == [torch.device("cuda:1")]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_device_without_a_number_stays_as_it_is(name: str, made_current: list[torch.device]) -> None:
    assert parse_device(name) == torch.device(name) and made_current == []


@pytest.mark.parametrize("name", ["cuda:2", "tpu", "meta"])
def test_a_device_that_is_not_there_is_an_error(name: str, made_current: list[torch.device]) -> None:
    with pytest.raises(UsageError, match="--device: expected"):
        parse_device(name)
    assert made_current == []
