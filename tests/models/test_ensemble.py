"""The mean of several networks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.ensemble import Ensemble, load_networks
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import TRAINED_ON, save_weights
from tests.training.support import tiny_batch, tiny_config


def network(**model: Any) -> AMMNet:
    return AMMNet(tiny_config(model=model).model).eval()


@pytest.mark.parametrize("voxels", ["scored", "not_free", "all"])
def test_an_ensemble_predicts_the_mean_of_the_probabilities_of_its_networks(voxels: Any) -> None:
    """Of networks that read different inputs, and of one that computes every voxel."""
    networks = [network(inputs="tsdf"), network(width=16), network(fusion="senet")]
    batch = tiny_batch((1, 2))
    with torch.no_grad():
        each = [one(batch, voxels=voxels).probabilities for one in networks]
        found = Ensemble(networks)(batch, voxels=voxels)
    computed = torch.zeros(batch.batch_size * batch.num_voxels, dtype=torch.bool)
    computed[found.sites.linear] = True
    expected = torch.stack(each).mean(dim=0).movedim(1, -1).reshape(len(computed), -1)[computed]
    torch.testing.assert_close(found.voxel_logits.exp(), expected)
    assert len(found.sites) == int(computed.sum()) == len(networks[1](batch, voxels=voxels).sites)


def test_networks_are_loaded_from_files_and_say_what_all_were_trained_on(tmp_path: Path) -> None:
    networks = {"train": network(inputs="tsdf"), "val": network()}
    for name, one in networks.items():
        file = tmp_path / f"{name}.safetensors"
        save_weights(file, one.state_dict(), model_config=one.config, metadata={TRAINED_ON: name})
    found = load_networks([tmp_path / f"{name}.safetensors" for name in networks])
    assert isinstance(found, Ensemble) and found.config.reads_label_map
    assert found.metadata[TRAINED_ON] == "train val"
    assert isinstance(load_networks([tmp_path / "val.safetensors"]), AMMNet)


def test_networks_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(WeightsError, match="num_classes"):
        Ensemble([network(), network(num_classes=5)])
    with pytest.raises(WeightsError, match="reads_"):
        Ensemble([network(), network(image_encoder="efficientnet_lite0")])
