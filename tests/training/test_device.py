"""The device of a run: which backend computes its convolutions, and advice on memory."""

import pytest
import torch

from ammnet_sparse.config import ConfigError
from ammnet_sparse.training.device import convolution_backend
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
