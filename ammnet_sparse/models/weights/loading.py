"""From a file of weights to a network that predicts."""

import warnings
from pathlib import Path
from typing import Literal

import torch

from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.image_encoders import random_backbone_expected
from ammnet_sparse.models.weights.files import load_into, read_weights
from ammnet_sparse.models.weights.shipped import find_weights

OPTIONAL_PARTS = ("image_encoder.backbone", "image_encoder.head", "discriminator")
"""Parts that a converted checkpoint may lack, each as a whole."""
_STATE_PROJECTION = "state_projection.weight"


def load_model(
    path: str | Path, *, sites: Literal["sparse", "dense"] | None = None, device: torch.device | str = "cpu"
) -> AMMNet:
    """A network in evaluation mode from a safetensors file of the project's tools.

    Args:
        path: file of weights, of any float type, or the name of shipped ones (``nyu_seg2d_w64``); the configuration
            stands in the metadata, and the network is float32.
        sites: which voxels are computed; None as the file says. Weights trained densely have no state channels:
            on sparse sites these then add nothing. Weights trained sparsely lose them on dense sites.
        device: where the network goes.

    Raises:
        WeightsError: a file that is missing, damaged, or does not hold the weights of its configuration.
        ValueError: other ``sites``.

    Warns:
        UserWarning: a file without the backbone or the head of the image encoder, which stay random.
    """
    if sites not in ("sparse", "dense", None):
        raise ValueError(f"sites: expected sparse, dense or None, found {sites!r}")
    path = find_weights(path)
    state, file_config, _ = read_weights(path)
    config = file_config.model_copy(update={"sites": sites or file_config.sites, "image_encoder_weights": None})
    with random_backbone_expected():  # its weights come from this file, not from image_encoder_weights
        network = AMMNet(config)
    expected = network.state_dict()
    if file_config.sites == "sparse" and config.sites == "dense":
        state = {name: value for name, value in state.items() if not name.endswith(_STATE_PROJECTION)}
    if file_config.sites == "dense" and config.sites == "sparse":
        state |= {name: torch.zeros_like(expected[name]) for name in expected if name.endswith(_STATE_PROJECTION)}
    absent = [part for part in OPTIONAL_PARTS if not _names_of(part, state) and _names_of(part, expected)]
    load_into(network, state, source=path, may_lack=absent)
    for part in absent:
        if part != "discriminator":
            warnings.warn(
                f"{path}: holds no {part}, which stays as initialised; predictions mean nothing until its weights "
                "are given (`ammnet convert --image-encoder-weights`)",
                stacklevel=2,
            )
    return network.to(device).eval()


def _names_of(part: str, state: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in state if name.startswith(f"{part}.")]
