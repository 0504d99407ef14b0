"""From a file of weights to a network that predicts."""

import warnings
from pathlib import Path
from typing import Literal

import torch

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights import load_into, read_weights

OPTIONAL_PARTS = ("image_encoder.backbone", "image_encoder.head", "discriminator")
"""Parts that a converted checkpoint may lack."""
_STATE_PROJECTION = "state_projection.weight"


def build_model(config: ModelConfig) -> AMMNet:
    """A network as PyTorch initialises it, with the image weights that ``config`` names."""
    return AMMNet(config)


def load_model(
    path: str | Path, *, sites: Literal["sparse", "dense"] | None = None, device: torch.device | str = "cpu"
) -> AMMNet:
    """A network in evaluation mode from a safetensors file of ``tools/train.py`` or ``tools/convert_checkpoint.py``.

    Args:
        path: file of weights; the configuration stands in its metadata.
        sites: which voxels are computed; None as the file says. Weights trained densely have no state channels:
            on sparse sites these then add nothing. Weights trained sparsely lose them on dense sites.
        device: where the network goes.

    Raises:
        WeightsError: a file that is missing, damaged, or does not hold the weights of its configuration.
    """
    state, config, _ = read_weights(path)
    if sites is not None:
        config = config.model_copy(update={"sites": sites})
    # The backbone comes from the file: no initialisation to warn of, no second file to look for.
    network = AMMNet(config.model_copy(update={"freeze_image_encoder": False, "image_encoder_weights": None}))
    network.config = config
    expected = network.state_dict()
    if config.sites == "dense":
        state = {name: value for name, value in state.items() if not name.endswith(_STATE_PROJECTION)}
    else:
        state |= {
            name: torch.zeros_like(value)
            for name, value in expected.items()
            if name.endswith(_STATE_PROJECTION) and name not in state
        }
    load_into(network, state, source=path, may_lack=OPTIONAL_PARTS)
    for part in OPTIONAL_PARTS[:2]:
        if any(name.startswith(part) for name in expected) and not any(name.startswith(part) for name in state):
            warnings.warn(
                f"{path}: holds no {part}, which stays as initialised; predictions mean nothing until its weights "
                "are given (tools/convert_checkpoint.py --image-encoder-weights)",
                stacklevel=2,
            )
    return network.to(device).eval()
