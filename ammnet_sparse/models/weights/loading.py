"""From a file of weights to networks that predict and judge."""

import warnings
from pathlib import Path

import torch

from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.build import build_discriminator, build_generator
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.models.weights.files import load_into, read_weights
from ammnet_sparse.models.weights.parts import (
    DISCRIMINATOR,
    OPTIONAL_PARTS,
    Sites,
    fit_state_projections,
    names_of,
    split_state,
)
from ammnet_sparse.models.weights.shipped import find_weights


def load_model(path: str | Path, *, sites: Sites | None = None, device: torch.device | str = "cpu") -> AMMNet:
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
    file_state, file_config, _ = read_weights(path)
    config = file_config.model_copy(update={"sites": sites or file_config.sites, "image_encoder_weights": None})
    network = build_generator(config)
    expected = network.state_dict()
    state, _ = split_state(file_state)
    state = fit_state_projections(state, expected, trained=file_config.sites, wanted=config.sites)
    absent = [part for part in OPTIONAL_PARTS if names_of(part, expected) and not names_of(part, state)]
    load_into(network, state, source=path, may_lack=absent)
    for part in absent:
        warnings.warn(
            f"{path}: holds no {part}, which stays as initialised; predictions mean nothing until its weights "
            "are given (`ammnet convert --image-encoder-weights`)",
            stacklevel=2,
        )
    return network.to(device).eval()


def load_discriminator(path: str | Path, *, device: torch.device | str = "cpu") -> Discriminator:
    """The discriminator of a file of weights, in evaluation mode, float32; arguments as of ``load_model``.

    Raises:
        WeightsError: a file that is missing, damaged, or holds no discriminator.
    """
    path = find_weights(path)
    file_state, config, _ = read_weights(path)
    _, state = split_state(file_state)
    if not state:
        raise WeightsError(
            f"{path}: expected the weights of a {DISCRIMINATOR}, found none; shipped weights and files of "
            "`ammnet export` lack it, unless exported with --keep-discriminator"
        )
    discriminator = build_discriminator(config)
    load_into(discriminator, state, source=path)
    return discriminator.to(device).eval()
