"""What a run leaves behind: weights for people, and a state that the run itself continues from."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ammnet_sparse.config import flat_values
from ammnet_sparse.evaluation.metrics import VoxelCounts
from ammnet_sparse.evaluation.selection import reads_images
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.models.weights.files import load_into, read_weights, save_weights
from ammnet_sparse.models.weights.loading import OPTIONAL_PARTS

LAST_WEIGHTS = "last.safetensors"
BEST_WEIGHTS = "best.safetensors"
STATE = "state.pt"
_ENCODERS = ("image_encoder", "label_map_stem", "tsdf_encoder")
_STATE_PROJECTION = "state_projection.weight"


class CheckpointError(ValueError):
    """A run folder or state that cannot be continued; the message names the file."""


@dataclasses.dataclass
class Progress:
    """Where a run stands; what a resumed run starts from.

    Attributes:
        epoch, step: epochs and updates done.
        batches_done, seconds: of the unfinished epoch; the time as of the last save.
        best_miou, best_epoch: validation SSC mIoU (fraction) of the best weights, and their epoch, from 1; 0: none yet.
        sums, num_summed: of what the steps of the unfinished epoch recorded, and how many they are.
        counts: voxels by truth and prediction over those steps; None before the first of them.
    """

    epoch: int = 0
    batches_done: int = 0
    seconds: float = 0.0
    step: int = 0
    best_miou: float = -1.0
    best_epoch: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    num_summed: int = 0
    counts: VoxelCounts | None = None

    @classmethod
    def from_state(cls, values: Mapping[str, Any]) -> "Progress":
        """From ``dataclasses.asdict``; what states of older versions lack counts from where they stand.

        Raises:
            TypeError: names that are not ours.
        """
        counts = values.get("counts")
        return cls(**{**values, "counts": None if counts is None else VoxelCounts(**counts)})

    def add(self, values: Mapping[str, float], counts: VoxelCounts) -> None:
        """Adds a step of the unfinished epoch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.num_summed += 1
        self.counts = counts if self.counts is None else self.counts + counts

    def end_epoch(self) -> None:
        """The epoch is done: forgets what belonged to it."""
        self.epoch += 1
        self.batches_done, self.seconds = 0, 0.0
        self.sums, self.num_summed, self.counts = {}, 0, None


def save_run_weights(folder: Path, name: str, network: AMMNet, *, metadata: dict[str, str]) -> None:
    """Writes the weights of generator and discriminator with their configuration."""
    save_weights(folder / name, network.state_dict(), model_config=network.config, metadata=metadata)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the state of a run at once or not at all; tensors and plain values only."""
    unfinished = folder / f"{STATE}.unfinished"
    torch.save(state, unfinished)
    os.replace(unfinished, folder / STATE)


def load_state(folder: Path) -> dict[str, Any]:
    """Reads what ``save_state`` wrote, onto the CPU; executes no code.

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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use --init-from with {LAST_WEIGHTS}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict, found {type(state).__name__}")
    return state


def initialise_from(network: AMMNet, path: str | Path) -> None:
    """Weights of another run, or converted ones, to start from (fine-tuning); widths must fit, sites may differ.

    Where the network freezes its encoders (Figure 2), only they are taken: its decoder is trained from the start, and
    the file may be of a network with other inputs. Parts that a converted checkpoint may lack, the discriminator and
    the image encoder, stay as they are; a warning says so where they were random and are never trained.

    Raises:
        WeightsError: a file that is missing, damaged, or of another network.
    """
    state, config, _ = read_weights(path)
    expected = network.state_dict()
    may_lack: tuple[str, ...] = OPTIONAL_PARTS
    kept: dict[str, Tensor] = {
        name: value for name, value in state.items() if name in expected or not name.endswith(_STATE_PROJECTION)
    }
    # Weights trained densely have no state channels: on sparse sites these begin by adding nothing.
    for name, value in expected.items():
        if name.endswith(_STATE_PROJECTION):
            kept.setdefault(name, torch.zeros_like(value))
    if network.config.freeze_encoders:
        encoders = tuple(f"{name}." for name, _ in network.named_children() if name in _ENCODERS)
        kept = {name: value for name, value in kept.items() if name.startswith(encoders)}
        may_lack = ("image_encoder.backbone", "decoder", "discriminator")
    try:
        load_into(network, kept, source=path, may_lack=may_lack)
    except WeightsError as error:
        before, now = flat_values(config), flat_values(network.config)
        differing = [f"model.{key} {before[key]} (here {now[key]})" for key in now if before[key] != now[key]]
        raise WeightsError(f"{error}; the file's network has {', '.join(differing) or 'the same keys'}") from error
    _warn_of_random_backbone(network, kept, path)


def _warn_of_random_backbone(network: AMMNet, state: Mapping[str, Tensor], path: str | Path) -> None:
    needs_one = reads_images(network.config) and network.config.freeze_image_encoder
    is_given = network.config.image_encoder_weights is not None or any(
        name.startswith("image_encoder.backbone.") for name in state
    )
    if needs_one and not is_given:
        warnings.warn(
            f"{path}: holds no image backbone, so the frozen one stays random: set model.image_encoder_weights",
            stacklevel=3,
        )
