"""The folder of a run: what is saved there and when, and how a resumed run takes it up again."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from ammnet_sparse.config import Config, ConfigError, save_config
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.training.averaging import AveragedWeights
from ammnet_sparse.training.checkpoints import (
    STATE,
    CheckpointError,
    Progress,
    save_run_weights,
    save_state,
)
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.networks import Networks
from ammnet_sparse.training.records import summary

SECONDS_BETWEEN_SAVES = 60.0
"""After an epoch the state is saved unless that was done so recently: short epochs would spend their time writing."""


@dataclasses.dataclass(eq=False)
class RunParts:
    """What a state restores: everything of a run that training changes."""

    networks: Networks
    game: AdversarialGame
    average: AveragedWeights | None
    progress: Progress

    @property
    def evaluated(self) -> AMMNet:
        """The generator that is validated and saved: the trained one, or its moving average."""
        return self.networks.generator if self.average is None else self.average.network


class RunFolder:
    """Saves and restores a run.

    Args:
        path: the folder.
        config: of the run.
        num_frames: training and validation frames.
        limit: frames that the run was limited to, or None.
        device: whose random state belongs to the run.
    """

    def __init__(
        self, path: Path, config: Config, *, num_frames: list[int], limit: int | None, device: torch.device
    ) -> None:
        self.path = path
        self.config = config
        self.num_frames = num_frames
        self.limit = limit
        self.device = device
        self._saved = time.monotonic()

    def begin(self) -> None:
        """Makes the folder and writes the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.path / "config.yaml")

    def save_weights(self, name: str, parts: RunParts, scores: Scores | None) -> None:
        """Weights of generator and discriminator, with the scores of this epoch where it has some."""
        metadata = {"epoch": str(parts.progress.epoch), "step": str(parts.progress.step)}
        if scores is not None:
            metadata["validation"] = summary(scores)
        save_run_weights(self.path, name, parts.evaluated, parts.networks.discriminator, metadata=metadata)

    def is_save_due(self) -> bool:
        """Whether the state was last saved ``training.checkpoint_minutes`` ago."""
        return time.monotonic() - self._saved > 60 * self.config.training.checkpoint_minutes

    def is_save_recent(self) -> bool:
        """Whether the end of an epoch is no reason to save the state again."""
        return (self.path / STATE).is_file() and time.monotonic() - self._saved < SECONDS_BETWEEN_SAVES

    def save_state(self, parts: RunParts) -> None:
        """Everything that ``restore`` needs."""
        optimization = parts.game.discriminator_optimization
        state: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "progress": dataclasses.asdict(parts.progress),
            "frames": self.num_frames,
            "limit": self.limit,
            "network": parts.networks.state_dict(),
            "average": None if parts.average is None else parts.average.state_dict(),
            "generator": parts.game.generator_optimization.state_dict(),
            "discriminator": None if optimization is None else optimization.state_dict(),
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_state(self.path, state)
        self._saved = time.monotonic()

    def restore(self, parts: RunParts, state: dict[str, Any]) -> None:
        """Continues where a state was saved.

        Raises:
            CheckpointError: a state of other frames or another configuration.
            ConfigError: fewer epochs than the run has begun.
        """
        try:
            if state["frames"] != self.num_frames:
                raise CheckpointError(
                    f"{self.path}: expected {state['frames']} training and validation frames as before, found "
                    f"{self.num_frames}; give the same set and --limit"
                )
            parts.progress = Progress.from_state(state["progress"])
            parts.networks.load_state_dict(state["network"])
            if parts.average is not None:
                # A run that did not average until now begins with what it has.
                average = state.get("average")
                if average is None:
                    parts.average.restart(parts.networks.generator)
                else:
                    parts.average.load_state_dict(average)
            parts.game.generator_optimization.load_state_dict(state["generator"])
            if parts.game.discriminator_optimization is not None:
                parts.game.discriminator_optimization.load_state_dict(state["discriminator"])
            torch.set_rng_state(state["random_cpu"])
            if state["random_cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: the state does not fit this configuration ({error})") from error
        begun = parts.progress.epoch + (parts.progress.batches_done > 0)
        if self.config.training.epochs < begun:
            raise ConfigError(f"training.epochs: the run has begun epoch {begun}, found {self.config.training.epochs}")
