"""A training run from its data to its last line, readable from top to bottom."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import EpochDataset, build_loader
from ammnet_sparse.evaluation.baselines import constant_baseline
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import load_into, read_weights
from ammnet_sparse.models.weights.parts import split_state
from ammnet_sparse.sparse.convolutions import use_backend
from ammnet_sparse.training.averaging import AveragedWeights
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS, LAST_WEIGHTS, Progress, load_state
from ammnet_sparse.training.game import build_game
from ammnet_sparse.training.interruption import RunInterrupted, StopRequest
from ammnet_sparse.training.networks import build_networks
from ammnet_sparse.training.preparation import (
    check_runnable,
    check_same_run,
    convolution_backend,
    make_deterministic,
    open_datasets,
    steps_per_epoch,
    with_image_stages,
)
from ammnet_sparse.training.records import Records, RunResult, StepBar, epoch_line
from ammnet_sparse.training.run_folder import RunFolder, RunParts
from ammnet_sparse.training.validation import Validation, validate


class DivergenceError(RuntimeError):
    """The loss or a gradient is not finite; the last saved state is from before."""


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
        self.backend = convolution_backend(config, device)
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
        self.training_set: EpochDataset
        self.validation_set: EpochDataset
        self.training_set, self.validation_set = open_datasets(
            config, device=device, limit=limit, is_quick=resume or limit is not None, show_progress=show_progress
        )
        self.steps_per_epoch = steps_per_epoch(config, num_frames=len(self.training_set))
        if config.training.deterministic:
            make_deterministic()
        networks = build_networks(config, initial_weights=initial_weights, is_resumed=resume).to(device)
        num_steps = self.steps_per_epoch * config.training.epochs
        self.game = build_game(networks, config, num_steps=num_steps, device=device)
        decay = config.training.ema_decay
        average = AveragedWeights(networks.generator, decay=decay) if decay else None
        self.parts = RunParts(networks, self.game, average, Progress())
        num_frames = [len(self.training_set), len(self.validation_set)]
        self.saves = RunFolder(folder, config, num_frames=num_frames, limit=limit, device=device)
        if state is not None:
            self.saves.restore(self.parts, state)
        if config.data.cache_features:  # of the weights that are trained with, a resumed run's included
            self.training_set, self.validation_set = (
                with_image_stages(frames, config, networks.generator, device=device, show_progress=show_progress)
                for frames in (self.training_set, self.validation_set)
            )

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.parts.progress

    @property
    def evaluated(self) -> AMMNet:
        """The generator that is validated and saved: the trained one, or its moving average."""
        return self.parts.evaluated

    def train(self) -> RunResult:
        """Trains to the last epoch, validates, and leaves the best weights behind.

        Raises:
            RunInterrupted: SIGINT or SIGTERM; the state is saved.
            DivergenceError: the loss or a gradient is not finite.
        """
        with use_backend(self.backend):
            return self._train()

    def _train(self) -> RunResult:
        self.saves.begin()
        progress, num_epochs = self.progress, self.config.training.epochs
        baseline = constant_baseline(self._validation_loader())
        best: Scores | None = None
        resumed_at = (progress.epoch, progress.step) if self.is_resumed else None
        with Records(self.folder, resumed_at=resumed_at) as records, StopRequest() as stop:
            while progress.epoch < num_epochs:
                started = time.monotonic() - progress.seconds
                self._train_epoch(records, stop, started=started)
                values, training = progress.means(), progress.scores()
                progress.end_epoch()
                validation = self._validate(records)
                scores = None if validation is None else validation.scores
                if progress.best_epoch == progress.epoch:
                    best = scores
                values["seconds"] = time.monotonic() - started
                if validation is not None:
                    values["validation_scene"] = validation.scene
                if self.device.type == "cuda":
                    values["peak_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
                records.epoch(progress.epoch, progress.step, values, scores, training=training)
                if self.show_progress:
                    tqdm.write(epoch_line(progress.epoch, values, training, validation=scores))
                self.saves.save_weights(LAST_WEIGHTS, self.parts, scores)
                is_last = progress.epoch >= num_epochs
                if is_last or stop.is_set or not self.saves.is_save_recent():
                    self.saves.save_state(self.parts)
                if stop.is_set and not is_last:
                    raise RunInterrupted(f"stopped after epoch {progress.epoch}")
        return RunResult(best or self._score_best(), progress.best_epoch, baseline)

    def _train_epoch(self, records: Records, stop: StopRequest, *, started: float) -> None:
        """One pass over the training frames, or what is left of it."""
        accumulate = self.config.training.accumulate
        progress = self.progress
        with StepBar(
            total=self.steps_per_epoch,
            initial=progress.batches_done // accumulate,
            desc=f"epoch {progress.epoch + 1}/{self.config.training.epochs}",
            unit="step",
            disable=not self.show_progress,
        ) as bar:
            waited = time.monotonic()
            for batches in _groups(self._training_loader(), accumulate):
                wait_seconds = time.monotonic() - waited
                losses = self._step(batches, records, wait_seconds=wait_seconds)
                bar.show_step(losses, wait_seconds=progress.means()["wait_seconds"])
                if stop.is_set or self.saves.is_save_due():
                    progress.seconds = time.monotonic() - started
                    self.saves.save_state(self.parts)
                if stop.is_set:
                    raise RunInterrupted(f"stopped after step {progress.step}")
                waited = time.monotonic()

    def _step(self, batches: list[Batch], records: Records, *, wait_seconds: float) -> dict[str, float]:
        """One update, written down; its losses."""
        started = time.monotonic()
        progress = self.progress
        seed = self.config.training.seed * 1_000_003 + progress.step
        learning_rate = self.game.generator_optimization.learning_rate
        report = self.game.step([batch.to(self.device, non_blocking=True) for batch in batches], seed=seed)
        losses = report.as_floats()
        progress.step += 1
        progress.batches_done += len(batches)
        if self.parts.average is not None:
            self.parts.average.update(self.parts.networks.generator, step=progress.step)
        timing = {"seconds": time.monotonic() - started, "wait_seconds": wait_seconds}
        records.step(progress.step, {"epoch": progress.epoch + 1, **losses, "learning_rate": learning_rate, **timing})
        self._check_finite(losses, batches)
        progress.add({**losses, "wait_seconds": wait_seconds}, report.counts)
        return losses

    def _check_finite(self, losses: dict[str, float], batches: list[Batch]) -> None:
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
                f"step {self.progress.step} (frames {frames}): {', '.join(broken)} must be finite; {advice}"
            )

    def _validate(self, records: Records) -> Validation | None:
        """The validation of this epoch, where it has one; keeps the best weights."""
        progress = self.progress
        is_last = progress.epoch == self.config.training.epochs
        if progress.epoch % self.config.training.validate_every and not is_last:
            return None
        validation = self._score(f"validation {progress.epoch}")
        # Undefined where neither truth nor prediction holds an object.
        miou = 0.0 if math.isnan(validation.scores.ssc_miou) else validation.scores.ssc_miou
        if miou > progress.best_miou:
            progress.best_miou, progress.best_epoch = miou, progress.epoch
            self.saves.save_weights(BEST_WEIGHTS, self.parts, validation.scores)
        records.picture(progress.step, self.evaluated, self.validation_set[0].to(self.device))
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
        load_into(self.evaluated, split_state(read_weights(path)[0])[0], source=path)
        return self._score("best weights").scores

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


def _groups(loader: "DataLoader[Batch]", size: int) -> Iterator[list[Batch]]:
    """Batches in groups of ``size``; an incomplete last group is dropped."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
