"""What a run leaves behind: weights for people, and a state that the run itself continues from."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights import load_into, read_weights, save_weights

LAST_WEIGHTS = "last.safetensors"
BEST_WEIGHTS = "best.safetensors"
STATE = "state.pt"


class CheckpointError(ValueError):
    """A run folder or state that cannot be continued; the message names the file."""


def save_run_weights(folder: Path, name: str, network: AMMNet, *, metadata: dict[str, str]) -> None:
    """Writes the weights of generator and discriminator with their configuration."""
    save_weights(folder / name, network.state_dict(), model_config=network.config, metadata=metadata)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the state of a run at once or not at all; tensors and plain values only."""
    unfinished = folder / f"{STATE}.unfinished"
    torch.save(state, unfinished)
    os.replace(unfinished, folder / STATE)


def load_state(folder: Path, *, device: torch.device) -> dict[str, Any]:
    """Reads what ``save_state`` wrote; executes no code.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected the state of an interrupted run, found nothing; start a new run, or use "
            "--init-from with its weights"
        )
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use --init-from with {LAST_WEIGHTS}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict, found {type(state).__name__}")
    return state


def initialise_from(network: AMMNet, path: str | Path) -> None:
    """Weights of another run to start from (fine-tuning); its widths must fit, its sites may differ.

    Raises:
        WeightsError: a file that is missing, damaged, or of another network.
    """
    state, _, _ = read_weights(path)
    expected = network.state_dict()
    state_projections = [name for name in expected if name.endswith("state_projection.weight")]
    kept: dict[str, Tensor] = {
        name: value for name, value in state.items() if name in expected or not name.endswith("state_projection.weight")
    }
    for name in state_projections:
        kept.setdefault(name, torch.zeros_like(expected[name]))
    load_into(network, kept, source=path, may_lack=("image_encoder.backbone", "discriminator"))
