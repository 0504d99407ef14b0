"""The parts of files of weights: the generator, the discriminator, and parts that may be absent."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Sites = Literal["sparse", "dense"]

DISCRIMINATOR = "discriminator"
"""Prefix of the discriminator's weights in files that hold both networks."""
OPTIONAL_PARTS = ("image_encoder.backbone", "image_encoder.head", DISCRIMINATOR)
"""Parts that a converted checkpoint may lack, each as a whole."""
_STATE_PROJECTION = "state_projection.weight"


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
