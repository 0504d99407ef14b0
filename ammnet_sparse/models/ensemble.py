"""Several trained networks used as one: the mean of their probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.devices import Precision
from ammnet_sparse.models.ammnet import AMMNet, Prediction, Voxels
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import TRAINED_ON, lists_in
from ammnet_sparse.models.weights.loading import load_model


class Ensemble(nn.Module):
    """Predicts, for each voxel, the mean of the probabilities of ``networks``; called as a network.

    Args:
        networks: at least one, of one grid and class list; one of them reads every 2D input that another reads.

    Attributes:
        config, metadata: of the network that reads most; the lists of frames in ``metadata`` are those of all.

    Raises:
        WeightsError: networks that do not go together.
    """

    def __init__(self, networks: Sequence[AMMNet]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        leading = max(networks, key=lambda network: network.config.reads_image + network.config.reads_label_map)
        for network in networks:
            check_goes_with(network.config, leading.config, source="networks of a mean")
        self.config = leading.config
        lists = set[str]().union(*(lists_in(network.metadata) for network in networks))
        self.metadata = leading.metadata | {TRAINED_ON: " ".join(sorted(lists))}

    def forward(self, batch: Batch, *, voxels: Voxels = "not_free") -> Prediction:
        """As ``AMMNet.forward``; ``voxel_logits`` are the logarithms of the mean probabilities, float32."""
        predictions = [network(batch, voxels=voxels) for network in self.networks]
        # A network that needs the whole volume may predict more voxels than the others.
        sites = min((prediction.sites for prediction in predictions), key=len)
        total = torch.zeros((), device=batch.tsdf.device)
        for prediction in predictions:
            logits = prediction.voxel_logits
            if len(prediction.sites) > len(sites):
                logits = logits.index_select(0, sites.linear)
            total = total + logits.float().softmax(dim=1)
        mean = (total / len(predictions)).clamp(min=torch.finfo(torch.float32).tiny)  # of 0 the logarithm is not finite
        return Prediction(mean.log(), sites)


def check_goes_with(config: ModelConfig, leading: ModelConfig, *, source: str, has_label_maps: bool = False) -> None:
    """Raises WeightsError, naming ``source``, for a network of another grid or classes, or with a further 2D input.

    Args:
        has_label_maps: the frames have 2D label maps, even if the leading network does not read them.
    """
    for key in ("grid_shape", "num_classes", "reads_label_map", "reads_image"):
        found, expected = getattr(config, key), getattr(leading, key)
        if found != expected and found is not False and not (key == "reads_label_map" and has_label_maps):
            raise WeightsError(f"{source}: expected networks with the same {key}, found {found} beside {expected}")


def load_networks(
    names: Sequence[str | Path],
    *,
    sites: Literal["sparse", "dense"] | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> AMMNet | Ensemble:
    """``load_model`` of one file or name, or the ensemble of several, to predict in ``precision``; the same errors."""
    networks = [load_model(name, sites=sites, device=device) for name in names]
    for network in networks:
        network.precision = precision
    return networks[0] if len(networks) == 1 else Ensemble(networks)
