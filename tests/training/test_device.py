"""The device of a run: which backend computes its convolutions, and advice on memory."""

import platform
import resource

import pytest
import torch

from ammnet_sparse.config import ConfigError
from ammnet_sparse.training.device import convolution_backend, prepare_device
from tests.training.support import tiny_config


@pytest.mark.parametrize(
    ("deterministic", "asked", "device", "expected"),
    [
        (False, "auto", "cuda", "auto"),
        (False, "spconv", "cuda", "spconv"),
        (True, "auto", "cuda", "gather"),
        (True, "dense", "cuda", "dense"),
        (True, "auto", "cpu", "auto"),
    ],
)
def test_deterministic_runs_on_cuda_do_without_spconv(
    deterministic: bool, asked: str, device: str, expected: str
) -> None:
    config = tiny_config(training={"deterministic": deterministic, "convolution_backend": asked})
    assert convolution_backend(config, torch.device(device)) == expected


def test_spconv_demanded_of_a_deterministic_run_is_refused() -> None:
    config = tiny_config(training={"deterministic": True, "convolution_backend": "spconv"})
    with pytest.raises(ConfigError, match="convolution_backend"):
        convolution_backend(config, torch.device("cuda"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_a_run_on_a_cpu_keeps_freed_memory() -> None:
    prepare_device(tiny_config(), torch.device("cpu"))

    def faults(size: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(size)  # freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(2**26)
    assert faults(2**25) < 1000  # of 32,768 pages
