"""Loads generator and discriminator from a file of weights, which may hold both or lack parts."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.devices import checked_device
from ammnet_sparse.files.errors import reason
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.weights.checks import WeightsError, check_state
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.models.weights.shipped import find_weights

Sites = Literal["sparse", "dense"]

DISCRIMINATOR = "discriminator"
"""Prefix of the discriminator's weights in files that hold both networks."""
OPTIONAL_PARTS = ("image_encoder.backbone", "image_encoder.head", DISCRIMINATOR)
"""Parts that a converted checkpoint may lack, each as a whole."""
_STATE_PROJECTION = "state_projection.weight"
_MOST_ABSENT = 2**27
"""Largest number of values in the missing parts of a file: 512 MiB of random weights."""


def load_model(path: str | Path, *, sites: Sites | None = None, device: torch.device | str = "cpu") -> AMMNet:
    """A network in evaluation mode from a safetensors file of the project's tools.

    Args:
        path: file of weights, of any float type, or the name of shipped ones (``nyu_seg2d_w64``); the configuration
            is in the metadata, and the network is float32.
        sites: which voxels are computed; None: as in the file. Weights trained densely have no state channels:
            on sparse sites these then add nothing. Weights trained sparsely lose them on dense sites.
        device: where the network goes.

    Returns:
        The network; ``metadata`` has its training and figures, if the file has them.

    Raises:
        WeightsError: a file that is missing, damaged, or does not hold the weights of its configuration.
        ValueError: other ``sites``, or a device that is not available.

    Warns:
        UserWarning: a file without the backbone or the head of the image encoder, which remain random; other
            ``sites`` than those of the training.
    """
    if sites not in ("sparse", "dense", None):
        raise ValueError(f"sites: expected sparse, dense or None, found {sites!r}")
    device = checked_device(device)
    path = find_weights(path)
    file_state, file_config, metadata = read_weights(path)
    config = file_config.model_copy(update={"sites": sites or file_config.sites, "image_encoder_weights": None})
    state, _ = split_state(file_state)
    # Before the network is built: tensors cannot exceed their file's size, but the configuration may claim anything.
    expected = _expected_weights(AMMNet, config, source=path)
    fitted = fit_state_projections(state, expected, trained=file_config.sites, wanted=config.sites)
    given = {name: value for name, value in fitted.items() if not value.is_meta}
    added = [name.rpartition(".")[0] for name in fitted if name not in given]
    absent = [part for part in OPTIONAL_PARTS if names_of(part, expected) and not names_of(part, state)]
    check_state(expected, given, source=path, what="AMMNet", may_lack=[*absent, *added])
    _check_absent(expected, absent, source=path)
    network = AMMNet(config)
    state = fit_state_projections(state, network.state_dict(), trained=file_config.sites, wanted=config.sites)
    network.load_state_dict(state, strict=False)  # checked above
    network.metadata = metadata
    if config.sites != file_config.sites:
        warnings.warn(
            f"{path}: trained with model.sites={file_config.sites}, used with {config.sites}; expect worse predictions",
            stacklevel=2,
        )
    for part in absent:
        warnings.warn(
            f"{path}: holds no {part}, which stays as initialized; predictions are meaningless until its weights "
            "are given (`ammnet convert --image-encoder-weights`)",
            stacklevel=2,
        )
    return network.to(device).eval()


def load_discriminator(path: str | Path, *, device: torch.device | str = "cpu") -> Discriminator:
    """The discriminator of a file of weights, in evaluation mode, float32; arguments as for ``load_model``.

    Raises:
        WeightsError: a file that is missing, damaged, or holds no discriminator.
    """
    device = checked_device(device)
    path = find_weights(path)
    file_state, config, _ = read_weights(path)
    _, state = split_state(file_state)
    if not state:
        raise WeightsError(
            f"{path}: expected the weights of a {DISCRIMINATOR}, found none; shipped weights and files of "
            "`ammnet export` lack it, unless exported with --keep-discriminator"
        )
    check_state(_expected_weights(Discriminator, config, source=path), state, source=path, what="Discriminator")
    discriminator = Discriminator(config)
    discriminator.load_state_dict(state)
    return discriminator.to(device).eval()


def state_without_values(build: Callable[[ModelConfig], nn.Module], config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of a network on the meta device: shapes and types, but no values.

    Raises:
        WeightsError: sizes that PyTorch cannot represent.
    """
    try:
        with torch.device("meta"):
            return build(config).state_dict()
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError) as error:
        raise WeightsError(reason(error)) from error


def _expected_weights(
    build: Callable[[ModelConfig], nn.Module], config: ModelConfig, *, source: Path
) -> dict[str, Tensor]:
    try:
        return state_without_values(build, config)
    except WeightsError as error:
        raise WeightsError(
            f"{source}: the configuration in its metadata is no network's: {error}; the file is damaged"
        ) from error


def _check_absent(expected: dict[str, Tensor], absent: list[str], *, source: Path) -> None:
    size = sum(expected[name].numel() for part in absent for name in names_of(part, expected))
    if size > _MOST_ABSENT:
        raise WeightsError(
            f"{source}: expected weights of {', '.join(absent)}, found none for a network whose metadata ask for "
            f"{size:,} of them; the file is damaged"
        )


def join_states(generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One state dict of both networks, as in files and run states."""
    return {**generator, **{f"{DISCRIMINATOR}.{name}": value for name, value in discriminator.items()}}


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of ``join_states``: generator and discriminator, which is empty if the file has none."""
    prefix = f"{DISCRIMINATOR}."
    generator = {name: value for name, value in state.items() if not name.startswith(prefix)}
    discriminator = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return generator, discriminator


def names_of(part: str, state: Mapping[str, Tensor]) -> list[str]:
    """The names of a state dict that belong to a part."""
    return [name for name in state if name.startswith(f"{part}.")]


def fit_state_projections(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, trained: Sites, wanted: Sites
) -> dict[str, Tensor]:
    """``state`` of a network that computes the voxels ``trained``, for one that computes ``wanted``.

    The state channels represent what sparse sites leave out. Weights trained on sparse sites lose their projections
    in a network that computes every voxel; weights trained densely have none, and get zero projections.

    Args:
        state: the generator's weights.
        expected: the state dict of the network that takes them.
    """
    if trained == wanted:
        return dict(state)
    fitted = {name: value for name, value in state.items() if not name.endswith(_STATE_PROJECTION)}
    added = {name: torch.zeros_like(value) for name, value in expected.items() if name.endswith(_STATE_PROJECTION)}
    return {**fitted, **added}
