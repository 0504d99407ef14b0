"""What a run leaves behind: weights for people, and a state that the run itself continues from."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ammnet_sparse.evaluation.metrics import Scores, VoxelCounts
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.weights.files import save_weights
from ammnet_sparse.models.weights.parts import join_states

LAST_WEIGHTS = "last.safetensors"
BEST_WEIGHTS = "best.safetensors"
STATE = "state.pt"


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

    def means(self) -> dict[str, float]:
        """Of what the steps of the unfinished epoch recorded."""
        return {name: value / self.num_summed for name, value in self.sums.items()}

    def scores(self) -> Scores | None:
        """Of the predictions that the unfinished epoch trained on; None before its first step."""
        return None if self.counts is None else self.counts.scores()

    def end_epoch(self) -> None:
        """The epoch is done: forgets what belonged to it."""
        self.epoch += 1
        self.batches_done, self.seconds = 0, 0.0
        self.sums, self.num_summed, self.counts = {}, 0, None


def save_run_weights(
    folder: Path, name: str, generator: AMMNet, discriminator: Discriminator, *, metadata: dict[str, str]
) -> None:
    """Writes the weights of generator and discriminator with their configuration."""
    state = join_states(generator.state_dict(), discriminator.state_dict())
    save_weights(folder / name, state, model_config=generator.config, metadata=metadata)


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
