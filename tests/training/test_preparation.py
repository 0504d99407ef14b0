"""What a run prepares before it starts: keys without effect, and which backend computes its convolutions."""

import pytest
import torch

from ammnet_sparse.config import ConfigError, config_from_dict, flat_plain, keys_without_effect
from ammnet_sparse.training.preparation import convolution_backend
from tests.training.support import tiny_config


def test_keys_without_effect_are_named_with_the_reason() -> None:
    given = {
        "model": {"image_encoder": "seg2d", "head_width": 64, "sites": "dense", "encoder_band": True},
        "data": {"root": "set", "label_2d": "truth", "augment_2d": True, "synthetic": {"seed": 3}},
        "adversarial": {"enabled": False, "label_noise": 0.1},
        "optimizer": {"discriminator_learning_rate": 1e-3, "learning_rate": 2e-3},
    }
    keys = flat_plain(given).keys()
    config = config_from_dict(given, source="test")
    found = keys_without_effect(config, keys)
    assert found == {
        "model.head_width": "with model.image_encoder=seg2d no color images are read",
        "data.label_2d": "with model.image_encoder=seg2d no color images are read",
        "model.encoder_band": "with model.sites=dense every voxel is a site",
        "data.synthetic.seed": "data.root names a set, so no rooms are generated",
        "adversarial.label_noise": "adversarial.enabled is false",
        "optimizer.discriminator_learning_rate": "adversarial.enabled is false",
    }
    used = {"model": {"image_encoder": "efficientnet_lite2", "head_width": 64}, "adversarial": {"label_noise": 0.1}}
    assert not keys_without_effect(config_from_dict(used, source="test"), flat_plain(used).keys())


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
    with pytest.raises(ConfigError, match="convolution_backend: spconv chooses its algorithms by timing"):
        convolution_backend(config, torch.device("cuda"))
