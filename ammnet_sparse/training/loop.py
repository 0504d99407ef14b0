"""A training run from its data to its last line, readable from top to bottom."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ammnet_sparse.config import Config, ConfigError, save_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import build_loader
from ammnet_sparse.evaluation.baselines import constant_baseline
from ammnet_sparse.evaluation.metrics import Scores, VoxelCounts
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import load_into, read_weights
from ammnet_sparse.training.averaging import AveragedWeights
from ammnet_sparse.training.checkpoints import (
    BEST_WEIGHTS,
    LAST_WEIGHTS,
    STATE,
    CheckpointError,
    Progress,
    load_state,
    save_run_weights,
    save_state,
)
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.interruption import RunInterrupted, StopRequest
from ammnet_sparse.training.optimization import Optimization, generator_of
from ammnet_sparse.training.preparation import (
    build_network,
    check_runnable,
    check_same_run,
    make_deterministic,
    open_datasets,
    steps_per_epoch,
)
from ammnet_sparse.training.records import Records
from ammnet_sparse.training.validation import Validation, validate

SECONDS_BETWEEN_SAVES = 60.0
"""The state is saved after an epoch unless it was so lately: short epochs would spend their time writing."""


class DivergenceError(RuntimeError):
    """The loss or a gradient is no number any more; the last saved state is from before."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Validation scores of a run: of its best epoch, and of the best constant class."""

    best: Scores
    best_epoch: int
    baseline: Scores


class Run:
    """One training run in a folder.

    Args:
        config: what to train; ``data.root`` names the set.
        folder: receives config.yaml, metrics.jsonl, last and best weights, the state and tensorboard/.
        device: where to train; a CUDA device becomes the current one.
        resume: continue from the state in ``folder``.
        initial_weights: weights to start from, or None.
        limit: train and validate on so many frames only, for a trial; a resumed run keeps its own.
        show_progress: progress bars on standard error, and a line for each epoch.

    Raises:
        ConfigError: a configuration that this machine cannot run, or a resumed one that differs.
        DataError: a set with missing or broken frames, each named.
        CheckpointError, WeightsError: a state or weights that cannot be used.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        device: torch.device,
        resume: bool = False,
        initial_weights: Path | None = None,
        limit: int | None = None,
        show_progress: bool = True,
    ) -> None:
        check_runnable(config, device, has_weights=resume or initial_weights is not None)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # spconv computes on the stream of the current device, whatever its inputs'
        state = load_state(folder) if resume else None
        if state is not None:
            check_same_run(config, state.get("config"), folder=folder)
            limit = state.get("limit") if limit is None else limit
        self.config = config
        self.folder = folder
        self.device = device
        self.limit = limit
        self.is_resumed = resume
        self.show_progress = show_progress
        self.training_set, self.validation_set = open_datasets(
            config, device=device, limit=limit, is_quick=resume or limit is not None, show_progress=show_progress
        )
        self.steps_per_epoch = steps_per_epoch(config, num_frames=len(self.training_set))
        if config.training.deterministic:
            make_deterministic()
        self.network = build_network(config, initial_weights=initial_weights, is_resumed=resume).to(device)
        self.progress = Progress()
        self.generator = self._optimization(
            generator_of(self.network),
            config.optimizer.learning_rate,
        )
        self.discriminator = None
        if config.adversarial.enabled:
            self.discriminator = self._optimization(
                self.network.discriminator,
                config.optimizer.discriminator_learning_rate or config.optimizer.learning_rate,
            )
        self.game = AdversarialGame(self.network, config, generator=self.generator, discriminator=self.discriminator)
        decay = config.training.ema_decay
        self.average = AveragedWeights(self.network, decay=decay) if decay else None
        self.saved = time.monotonic()
        if state is not None:
            self._restore(state)

    @property
    def evaluated(self) -> AMMNet:
        """The network that is validated and saved: the trained one, or its moving average."""
        return self.network if self.average is None else self.average.network

    def train(self) -> RunResult:
        """Trains to the last epoch, validates, and leaves the best weights behind.

        Raises:
            RunInterrupted: SIGINT or SIGTERM; the state is saved.
            DivergenceError: the loss or a gradient is no number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "config.yaml")
        baseline = constant_baseline(self._validation_loader())
        best: Scores | None = None
        resumed_at = (self.progress.epoch, self.progress.step) if self.is_resumed else None
        with Records(self.folder, resumed_at=resumed_at) as records, StopRequest() as stop:
            while self.progress.epoch < self.config.training.epochs:
                started = time.monotonic() - self.progress.seconds
                means, training = self._train_epoch(records, stop, started=started)
                self.progress.end_epoch()
                validation = self._validate(records)
                scores = None if validation is None else validation.scores
                if self.progress.best_epoch == self.progress.epoch:
                    best = scores
                values: dict[str, float] = {**means, "seconds": time.monotonic() - started}
                if validation is not None:
                    values["validation_scene"] = validation.scene
                if self.device.type == "cuda":
                    values["peak_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
                records.epoch(self.progress.epoch, self.progress.step, values, scores, training=training)
                if self.show_progress:
                    tqdm.write(_epoch_line(self.progress.epoch, values, training, scores))
                self._save_weights(LAST_WEIGHTS, scores)
                is_last = self.progress.epoch >= self.config.training.epochs
                is_recent = time.monotonic() - self.saved < SECONDS_BETWEEN_SAVES
                if is_last or stop.is_set or not is_recent or not (self.folder / STATE).is_file():
                    self._save_state()
                if stop.is_set and not is_last:
                    raise RunInterrupted(f"stopped after epoch {self.progress.epoch}")
        return RunResult(best or self._score_best(), self.progress.best_epoch, baseline)

    def _train_epoch(
        self, records: Records, stop: StopRequest, *, started: float
    ) -> tuple[dict[str, float], Scores | None]:
        """One pass over the training frames, or what is left of it; mean losses and the scores of its steps."""
        accumulate = self.config.training.accumulate
        total = self.steps_per_epoch
        progress = self.progress
        description = f"epoch {progress.epoch + 1}/{self.config.training.epochs}"
        done = progress.batches_done // accumulate
        with tqdm(total=total, initial=done, desc=description, unit="step", disable=not self.show_progress) as bar:
            waited = time.monotonic()
            for batches in _groups(self._training_loader(), accumulate):
                wait_seconds = time.monotonic() - waited
                losses, counts = self._step(batches, records, wait_seconds=wait_seconds)
                progress.add({**losses, "wait_seconds": wait_seconds}, counts)
                wait = f"{1000 * progress.sums['wait_seconds'] / progress.num_summed:.1f}ms"
                bar.set_postfix({name: f"{losses[name]:.3f}" for name in _SHOWN if name in losses} | {"wait": wait})
                bar.update()
                if stop.is_set or time.monotonic() - self.saved > 60 * self.config.training.checkpoint_minutes:
                    progress.seconds = time.monotonic() - started
                    self._save_state()
                if stop.is_set:
                    raise RunInterrupted(f"stopped after step {progress.step}")
                waited = time.monotonic()
        means = {name: value / progress.num_summed for name, value in progress.sums.items()}
        return means, None if progress.counts is None else progress.counts.scores()

    def _step(
        self, batches: list[Batch], records: Records, *, wait_seconds: float
    ) -> tuple[dict[str, float], VoxelCounts]:
        """One update, written down; its losses, and what it predicted."""
        started = time.monotonic()
        seed = self.config.training.seed * 1_000_003 + self.progress.step
        on_device = [batch.to(self.device, non_blocking=True) for batch in batches]
        learning_rate = self.generator.learning_rate
        report = self.game.step(on_device, seed=seed)
        losses = report.as_floats()
        self.progress.step += 1
        self.progress.batches_done += len(batches)
        if self.average is not None:
            self.average.update(self.network, step=self.progress.step)
        timing = {"seconds": time.monotonic() - started, "wait_seconds": wait_seconds}
        records.step(
            self.progress.step, {"epoch": self.progress.epoch + 1, **losses, "learning_rate": learning_rate, **timing}
        )
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        advice = "lower optimizer.learning_rate, or add optimizer.warmup_steps"
        if self.config.training.mixed_precision:
            # In fp16 gradients of single steps overflow; loss scaling skips them. Where a loss did, running statistics
            # are lost, and no later step brings them back.
            broken = [name for name in broken if not name.endswith("_gradient_norm")]
            advice += ", or set training.mixed_precision=false"
        if broken:
            frames = ", ".join(frame_id for batch in batches for frame_id in batch.frame_ids)
            raise DivergenceError(
                f"step {self.progress.step} (frames {frames}): {', '.join(broken)} are no finite numbers; {advice}"
            )
        return losses, report.counts

    def _validate(self, records: Records) -> Validation | None:
        """The validation of this epoch, where it has one; keeps the best weights."""
        epoch, is_last = self.progress.epoch, self.progress.epoch == self.config.training.epochs
        if epoch % self.config.training.validate_every and not is_last:
            return None
        validation = self._score(f"validation {epoch}")
        scores = validation.scores
        # Undefined where neither truth nor prediction holds an object.
        miou = 0.0 if math.isnan(scores.ssc_miou) else scores.ssc_miou
        if miou > self.progress.best_miou:
            self.progress.best_miou, self.progress.best_epoch = miou, epoch
            self._save_weights(BEST_WEIGHTS, scores)
        first = self.validation_set[0].to(self.device)
        records.picture(self.progress.step, self.evaluated, first)
        return validation

    def _score(self, description: str) -> Validation:
        loader = self._validation_loader()
        batches = tqdm(loader, desc=description, unit="batch", leave=False, disable=not self.show_progress)
        return validate(
            self.evaluated,
            batches,
            label_smoothing=self.config.loss.label_smoothing,
            device=self.device,
            class_weights=self.game.class_weights,
        )

    def _score_best(self) -> Scores:
        """Scores of the best weights, for a resumed run that was already at its best; the network takes them on."""
        path = self.folder / BEST_WEIGHTS
        load_into(self.evaluated, read_weights(path)[0], source=path)
        return self._score("best weights").scores

    def _save_weights(self, name: str, scores: Scores | None) -> None:
        metadata = {"epoch": str(self.progress.epoch), "step": str(self.progress.step)}
        if scores is not None:
            metadata["validation"] = _summary(scores)
        save_run_weights(self.folder, name, self.evaluated, metadata=metadata)

    def _save_state(self) -> None:
        state: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "progress": dataclasses.asdict(self.progress),
            "frames": [len(self.training_set), len(self.validation_set)],
            "limit": self.limit,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator is not None else None,
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_state(self.folder, state)
        self.saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        frames = [len(self.training_set), len(self.validation_set)]
        try:
            if state["frames"] != frames:
                raise CheckpointError(
                    f"{self.folder}: expected {state['frames']} training and validation frames as before, found "
                    f"{frames}; give the same set and --limit"
                )
            self.progress = Progress.from_state(state["progress"])
            self.network.load_state_dict(state["network"])
            if self.average is not None:
                # A run that did not average until now begins with what it has.
                average = state.get("average")
                self.average.restart(self.network) if average is None else self.average.load_state_dict(average)
            self.generator.load_state_dict(state["generator"])
            if self.discriminator is not None:
                self.discriminator.load_state_dict(state["discriminator"])
            torch.set_rng_state(state["random_cpu"])
            if state["random_cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self.folder}: the state does not fit this configuration ({error})") from error
        begun = self.progress.epoch + (self.progress.batches_done > 0)
        if self.config.training.epochs < begun:
            raise ConfigError(f"training.epochs: the run has begun epoch {begun}, found {self.config.training.epochs}")

    def _optimization(self, network: nn.Module, learning_rate: float) -> Optimization:
        return Optimization(
            network,
            self.config.optimizer,
            learning_rate=learning_rate,
            num_steps=self.steps_per_epoch * self.config.training.epochs,
            uses_scaling=self.config.training.mixed_precision,
            device=self.device,
        )

    def _training_loader(self) -> "DataLoader[Batch]":
        return build_loader(
            self.training_set,
            batch_size=self.config.training.batch_size,
            shuffle_seed=self.config.training.seed,
            epoch=self.progress.epoch,
            workers=self.config.data.workers,
            drop_last=True,
            start_batch=self.progress.batches_done,
        )

    def _validation_loader(self) -> "DataLoader[Batch]":
        return build_loader(
            self.validation_set,
            batch_size=self.config.training.batch_size,
            shuffle_seed=None,
            epoch=0,
            workers=self.config.data.workers,
            drop_last=False,
        )


_SHOWN = ("loss", "scene", "adversarial", "discriminator")


def format_result(result: RunResult) -> str:
    """The last line of a run."""
    return (
        f"best validation (epoch {result.best_epoch}): {_summary(result.best)}; "
        f"constant-class baseline: {_summary(result.baseline)}"
    )


def _epoch_line(epoch: int, values: dict[str, float], training: Scores | None, validation: Scores | None) -> str:
    """Training, and where there was one validation: the 3D cross-entropy and the scores."""
    parts = []
    for name, key, scores in (("training", "scene", training), ("validation", "validation_scene", validation)):
        if scores is not None and key in values:
            parts.append(f"{name} loss {values[key]:.3f}, {_summary(scores)}")
    return f"epoch {epoch}: {'; '.join(parts) or 'done'}"


def _summary(scores: Scores) -> str:
    return f"SSC mIoU {100 * scores.ssc_miou:.1f} %, SC IoU {100 * scores.sc_iou:.1f} %"


def _groups(loader: "DataLoader[Batch]", size: int) -> Iterator[list[Batch]]:
    """Batches in groups of ``size``; an incomplete last group is dropped."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
