"""The folder of a run: what is saved there and when, and how a resumed run restores it."""

import dataclasses
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

import torch

from ammnet_sparse.config import Config, ConfigError, save_config
from ammnet_sparse.data.set_info import NYU
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.files.writing import remove_unfinished
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.processes import num_processes, of_all_processes, rank
from ammnet_sparse.training.checkpoints import (
    CONFIG,
    STATE,
    CheckpointError,
    run_metadata,
    save_run_weights,
    save_state,
)
from ammnet_sparse.training.game import AdversarialGame, random_state, restore_random_state
from ammnet_sparse.training.optimization import AveragedWeights
from ammnet_sparse.training.records import Progress

LOCK = "run.lock"
SECONDS_BETWEEN_SAVES = 60.0
"""After an epoch the state is not saved if it was saved this recently: short epochs would mostly write."""


class FolderLock:
    """Locks a run folder until ``release`` or the end of the process, and removes files of killed writers.

    POSIX record locks belong to the process: a dead process holds none, and worker processes inherit none.
    If the file system has no locks, nothing is locked.

    Raises:
        CheckpointError: another process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        self._file: IO[str] | None = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # another process holds it
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self.release()
            raise CheckpointError(
                f"{folder}: {holder} is writing this run; wait until it has ended, or choose another folder"
            ) from error
        except OSError:
            self.release()
            return
        remove_unfinished(folder)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Releases the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


def create_run_folder(parent: Path, name: str) -> Path:
    """Makes a new folder ``name`` in ``parent``, or ``name_2``, ``name_3``, ... if it exists."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


@dataclasses.dataclass(eq=False)
class RunParts:
    """Everything of a run that training changes, as saved in a state."""

    game: AdversarialGame
    average: AveragedWeights | None
    progress: Progress

    @property
    def evaluated(self) -> AMMNet:
        """The generator that is validated and saved: the trained one, or its moving average."""
        return self.game.generator if self.average is None else self.average.network


class RunFolder:
    """Saves and restores a run.

    Args:
        path: the folder.
        config: of the run.
        num_frames: training and validation frames.
        limit: limit on the frames of the run, or None.
        device: whose random state belongs to the run.

    Attributes:
        changes: keys that resumed runs have changed in what is trained (``checkpoints.check_same_run``).
        unobserved: value of the set's flipped TSDF in unobserved space (``training_sets.unobserved_in``).
        info: the set that is trained on.
        lock: of the folder, if held.
        saved: when the state was last saved, by ``time.monotonic``; at first, when the run was made.
        trained_before: lists of frames that the weights of the start were trained on, sorted.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        *,
        num_frames: list[int],
        limit: int | None,
        device: torch.device,
    ) -> None:
        self.path = path
        self.config = config
        self.num_frames = num_frames
        self.limit = limit
        self.device = device
        self.changes: list[dict[str, Any]] = []
        self.unobserved: Unobserved | None = None
        self.info = NYU
        self.trained_before: list[str] = []
        self.lock: FolderLock | None = None
        self.saved = time.monotonic()

    def begin(self) -> None:
        """Makes and locks the folder, and writes the configuration.

        Raises:
            CheckpointError: another process has locked it.
        """
        if rank() > 0:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = self.lock or FolderLock(self.path)
        save_config(self.config, self.path / CONFIG)

    def end(self) -> None:
        """Releases the lock."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def save_weights(self, name: str, parts: RunParts, scores: Scores | None, *, epoch: int) -> None:
        """Saves the weights of generator and discriminator after ``epoch`` epochs, with their scores if available."""
        if rank() > 0:
            return
        progress = parts.progress
        metadata = run_metadata(
            self.config,
            self.num_frames,
            epoch=epoch,
            step=progress.step,
            scores=scores,
            unobserved=self.unobserved,
            trained_before=self.trained_before,
            info=self.info,
        )
        save_run_weights(self.path, name, parts.evaluated, parts.game.discriminator, metadata=metadata)

    def is_save_recent(self) -> bool:
        """Whether the state was saved recently enough that the end of an epoch need not save it again."""
        return (self.path / STATE).is_file() and time.monotonic() - self.saved < SECONDS_BETWEEN_SAVES

    def save_state(self, parts: RunParts) -> None:
        """Everything that ``restore`` needs; collective, as every process has its own random state."""
        random_states = of_all_processes(random_state(self.device))
        self.saved = time.monotonic()
        if rank() > 0:
            return
        optimization = parts.game.discriminator_optimization
        state: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "progress": dataclasses.asdict(parts.progress),
            "frames": self.num_frames,
            "limit": self.limit,
            "changes": self.changes,
            "trained_before": self.trained_before,
            "network": parts.game.networks.state_dict(),
            "average": None if parts.average is None else parts.average.state_dict(),
            "generator": parts.game.generator_optimization.state_dict(),
            "discriminator": None if optimization is None else optimization.state_dict(),
            "random_cpu": random_states[0][0],
            "random_cuda": random_states[0][1],
        }
        if num_processes() > 1:
            state["random_of_processes"] = [list(states) for states in random_states]
        save_state(self.path, state)
        self.saved = time.monotonic()

    def restore(self, parts: RunParts, state: dict[str, Any]) -> None:
        """Restores a saved state.

        Raises:
            CheckpointError: a state of other frames or another configuration.
            ConfigError: fewer epochs than the run has started.
        """
        random_states = state.get("random_of_processes", [[state.get("random_cpu"), state.get("random_cuda")]])
        if len(random_states) != num_processes():
            raise CheckpointError(
                f"{self.path}: expected {len(random_states)} processes as before (torchrun --nproc_per_node), found "
                f"{num_processes()}; with another number start a new run with `initial_weights` of its last epoch"
            )
        try:
            if state["frames"] != self.num_frames:
                raise CheckpointError(
                    f"{self.path}: expected {state['frames']} training and validation frames as before, found "
                    f"{self.num_frames}; give the same set and `limit`"
                )
            parts.progress = Progress.from_state(state["progress"])
            self.changes = list(state.get("changes", []))
            self.trained_before = [str(name) for name in state.get("trained_before", [])]
            parts.game.networks.load_state_dict(state["network"])
            if parts.average is not None:
                # A run that did not average until now starts from its current weights.
                average = state.get("average")
                if average is None:
                    parts.average.restart(parts.game.networks.generator)
                else:
                    parts.average.load_state_dict(average)
            parts.game.generator_optimization.load_state_dict(state["generator"])
            if parts.game.discriminator_optimization is not None:
                parts.game.discriminator_optimization.load_state_dict(state["discriminator"])
            random_cpu, random_cuda = random_states[rank()]
            restore_random_state((random_cpu, random_cuda), self.device)
        except CheckpointError:
            raise
        except (LookupError, TypeError, RuntimeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: the state does not fit this configuration ({error})") from error
        begun = parts.progress.epoch + (parts.progress.batches_done > 0)
        if self.config.training.epochs < begun:
            raise ConfigError(f"training.epochs: the run has begun epoch {begun}, found {self.config.training.epochs}")
