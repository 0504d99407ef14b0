"""A training run from its data to its last line, readable from top to bottom."""

import contextlib
import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import EpochDataset, WorkerError, build_loader
from ammnet_sparse.data.stage_dataset import StageDataset
from ammnet_sparse.data.training_sets import open_datasets, open_source, unobserved_in, with_rooms
from ammnet_sparse.evaluation.baselines import constant_baseline
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import load_into, read_weights
from ammnet_sparse.models.weights.loading import split_state
from ammnet_sparse.models.weights.shipped import find_weights
from ammnet_sparse.processes import any_process, num_processes, rank
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.sparse.convolutions import Backend, use_backend
from ammnet_sparse.sparse.shared_statistics import share_batch_statistics
from ammnet_sparse.training.checkpoints import (
    BEST_WEIGHTS,
    LAST_WEIGHTS,
    check_same_run,
    lists_before,
    load_state,
)
from ammnet_sparse.training.device import prepare_device
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.interruption import RunInterrupted, StopRequest
from ammnet_sparse.training.networks import Networks, build_networks
from ammnet_sparse.training.optimization import AveragedWeights, steps_per_epoch
from ammnet_sparse.training.records import Progress, Records, RunResult, StepBar, epoch_line
from ammnet_sparse.training.run_folder import FolderLock, RunFolder, RunParts
from ammnet_sparse.training.validation import Validation, Validator

MOST_SKIPPED_STEPS = 3
"""Consecutive steps with losses or gradients that are not finite, after which a run ends."""
MOST_OVERFLOWS = 40
"""The same if only fp16 gradients are not finite: after so many halvings no loss scale is left."""


class DivergenceError(RuntimeError):
    """Losses or gradients are not finite, several steps in a row; the last saved state is from before."""


class Run:
    """One training run in a folder, made by ``new`` or ``resume``.

    Args:
        config: what to train; without ``data.root`` on generated rooms, which are made on first use.
        folder: receives config.yaml, metrics.jsonl, last and best weights, the state and tensorboard/.
        networks: to be trained, on the CPU.
        device: where to train.
        backend: what computes its convolutions.
        limit: train and validate on the first frames only, for a trial.
        is_quick: only check that every frame has its files, instead of reading each once.
        show_progress: progress bars on standard error, and a line for each epoch.

    Raises:
        ConfigError: a configuration that cannot run on these frames.
        DataError: a set with missing or broken frames, each named.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        networks: Networks,
        *,
        device: torch.device,
        backend: Backend,
        limit: int | None,
        is_quick: bool,
        show_progress: bool,
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.backend = backend
        self.is_resumed = False
        self.show_progress = show_progress and rank() == 0
        self.changes: list[dict[str, Any]] = []
        self.training_set: EpochDataset
        self.validation_set: EpochDataset
        self.training_set, self.validation_set = open_datasets(
            config, device=device, limit=limit, is_quick=is_quick, show_progress=show_progress
        )
        self.steps_per_epoch = steps_per_epoch(config, num_frames=len(self.training_set))
        num_steps = self.steps_per_epoch * config.training.epochs
        self.game = AdversarialGame(networks.to(device), config, num_steps=num_steps, device=device)
        decay = config.training.ema_decay
        average = AveragedWeights(networks.generator, decay=decay) if decay else None
        self.parts = RunParts(self.game, average, Progress())
        num_frames = [len(self.training_set), len(self.validation_set)]
        self.saves = RunFolder(folder, config, num_frames=num_frames, limit=limit, device=device)
        self.saves.unobserved = unobserved_in(self.validation_set, config)
        self.saves.info = self.validation_set.info
        self._training_subset, subset = (f"first {count} frames" if count == limit else "" for count in num_frames)
        self.validator = Validator(
            self.validation_set,
            config,
            device=device,
            show_progress=self.show_progress,
            subset=subset,
        )
        self._left_out: set[str] = set()
        self._remarks: set[str] = set()
        self._records = Records(None)
        self._stop = StopRequest()
        self._is_suspect = False
        if num_processes() > 1:
            share_batch_statistics(networks.generator)
            torch.manual_seed(config.training.seed + rank())  # the same weights, but different dropout

    @classmethod
    def new(
        cls,
        config: Config,
        folder: Path,
        *,
        device: torch.device,
        initial_weights: Path | None = None,
        only_shared: bool = False,
        limit: int | None = None,
        show_progress: bool = True,
    ) -> "Run":
        """A run from the start, or from the weights of another.

        Args:
            device: a CUDA device becomes the current one.
            initial_weights: weights to start from, or None.
            only_shared: take those of ``initial_weights`` that the network has too (``initialize_from``).

        Raises:
            ConfigError: a configuration that this machine cannot run.
            WeightsError: weights that cannot be used.
        """
        backend = prepare_device(config, device)
        networks = build_networks(config, initial_weights=initial_weights, only_shared=only_shared)
        run = cls(
            with_rooms(config),
            folder,
            networks,
            device=device,
            backend=backend,
            limit=limit,
            is_quick=limit is not None,
            show_progress=show_progress,
        )
        is_encoder_read = config.model.reads_image and (initial_weights is None or only_shared)
        encoder_weights = config.model.image_encoder_weights if is_encoder_read else None
        run.saves.trained_before = sorted(
            lists_before([initial_weights, encoder_weights, *map(find_weights, config.loss.teachers)], config)
        )
        run._keep_features()
        return run

    @classmethod
    def resume(
        cls,
        config: Config,
        folder: Path,
        *,
        device: torch.device,
        limit: int | None = None,
        may_change: bool = False,
        show_progress: bool = True,
    ) -> "Run":
        """The run that ``folder`` holds, from its last state.

        Args:
            device: a CUDA device becomes the current one.
            limit: None keeps the run's.
            may_change: accept other values of keys that decide what is trained, and record them.

        Raises:
            ConfigError: a configuration that this machine cannot run, or that differs from the run's.
            CheckpointError: a state that cannot be used, or another process that writes this run.
        """
        backend = prepare_device(config, device)
        lock = FolderLock(folder) if folder.is_dir() and rank() == 0 else None
        state = load_state(folder)
        config = with_rooms(config)
        changes = check_same_run(config, state.get("config"), folder=folder, may_change=may_change)
        run = cls(
            config,
            folder,
            build_networks(config, is_resumed=True),
            device=device,
            backend=backend,
            limit=state.get("limit") if limit is None else limit,
            is_quick=True,
            show_progress=show_progress,
        )
        run.is_resumed, run.changes, run.saves.lock = True, changes, lock
        run.saves.restore(run.parts, state)
        run.saves.changes += changes
        run._keep_features()
        return run

    def _keep_features(self) -> None:
        """Replaces images by the features that a frozen backbone makes of them (``data.cache_features``)."""
        if not self.config.data.cache_features:
            return
        encoder = self.game.generator.image_encoder
        assert encoder is not None
        encoder.eval()
        source = open_source(self.config)
        self.training_set, self.validation_set = (
            StageDataset(
                frames, source, extract=encoder.extract_stages, device=self.device, progress=self.show_progress
            )
            for frames in (self.training_set, self.validation_set)
        )
        self.validator.frames = self.validation_set

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return self.parts.progress

    @property
    def evaluated(self) -> AMMNet:
        """The generator that is validated and saved: the trained one, or its moving average."""
        return self.parts.evaluated

    def train(self) -> RunResult:
        """Trains to the last epoch, validates, and keeps the best weights.

        If it stops between two steps or in a validation, the state from just before is saved.

        Raises:
            RunInterrupted: SIGINT or SIGTERM; the state is saved.
            DivergenceError: losses or gradients are not finite, several steps in a row.
            DataError, WorkerError: frames that cannot be read or transferred, or none that can be trained on.
            OSError: a full disk or the like.
        """
        self.saves.begin()
        try:
            with use_backend(self.backend), self._open_records() as self._records, StopRequest() as self._stop:
                return self._train()
        finally:
            self.saves.end()

    def _train(self) -> RunResult:
        progress, num_epochs = self.progress, self.config.training.epochs
        for change in self.changes:
            self._records.change(progress.step, change)
        if self.changes:
            # The folder's configuration has them already; a state without them could not be resumed after a crash.
            self.saves.save_state(self.parts)
        with self._saving_state_on_error():
            baseline = constant_baseline(self.validator.loader(is_shared=False), info=self.validation_set.info)
        baseline = dataclasses.replace(baseline, subset=self.validator.subset)
        best: Scores | None = None
        while progress.epoch < num_epochs:
            started = time.monotonic() - progress.seconds
            self._train_epoch(started=started)
            if self._is_validated(progress.epoch + 1) and self._is_agreed(not self._is_saved()):
                self.saves.save_state(self.parts)
            with self._saving_state_on_error():
                validation = self._validate()
            if validation is not None and progress.best_epoch == progress.epoch + 1:
                best = validation.scores
            self._end_epoch(validation, started=started)
            is_last = progress.epoch >= num_epochs
            is_stopped = self._is_agreed(self._stop.is_set)
            if is_last or is_stopped or self._is_agreed(not self._is_saved()):
                self.saves.save_state(self.parts)
            if is_stopped and not is_last:
                raise RunInterrupted(f"stopped after epoch {progress.epoch}")
        return RunResult(best or self._score_best(), progress.best_epoch, baseline)

    def _train_epoch(self, *, started: float) -> None:
        """One pass over the training frames, or the rest of it."""
        progress = self.progress
        is_tried = is_trained = False
        with StepBar(
            total=self.steps_per_epoch,
            initial=progress.batches_done // self.config.training.accumulate,
            title=f"epoch {progress.epoch + 1}/{self.config.training.epochs}",
            unit="step",
            is_shown=self.show_progress,
        ) as bar:
            for loaded, wait_seconds in self._loaded_batches():
                batches = [usable for batch in loaded if (usable := self._usable(batch)) is not None]
                if num_processes() > 1 and self._is_agreed(len(batches) < len(loaded)):
                    batches = []  # a step of all processes needs a frame of each
                losses = self._step(batches, wait_seconds=wait_seconds) if batches else {}
                is_tried, is_trained = True, is_trained or bool(batches)
                progress.batches_done += len(loaded)
                progress.seconds = time.monotonic() - started
                bar.show_step(losses, wait_seconds=progress.means().get("wait_seconds", 0.0))
                is_stopped = self._is_agreed(self._stop.is_set)
                if is_stopped or self._is_agreed(self._is_save_due()):
                    self.saves.save_state(self.parts)
                if is_stopped:
                    raise RunInterrupted(f"stopped after step {progress.step}")
        if is_tried and not is_trained and progress.num_summed == 0:
            raise DataError(
                f"{self.config.data.root}: no frame of the training list can be trained on: a pixel must hit some "
                "voxel, and some voxel must be scored (label weight set, label not 255)"
            )

    def _loaded_batches(self) -> Iterator[tuple[list[Batch], float]]:
        """The batches of each step of the epoch, and the seconds that it waited for them."""
        batches, size = iter(self._training_loader()), self.config.training.accumulate
        while True:
            waited = time.monotonic()
            with self._saving_state_on_error():
                group = list(itertools.islice(batches, size))
            if len(group) < size:
                return
            yield group, time.monotonic() - waited

    def _step(self, batches: list[Batch], *, wait_seconds: float) -> dict[str, float]:
        """One update, recorded; returns its losses."""
        started = time.monotonic()
        progress = self.progress
        learning_rate = self.game.generator_optimization.learning_rate
        report = self.game.step(
            [batch.to(self.device, non_blocking=True) for batch in batches],
            seed=self.config.training.seed * 1_000_003 + progress.step,
            updates_discriminator=progress.step % self.config.adversarial.discriminator_every == 0,
        )
        losses = report.as_floats()
        progress.step += 1
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        values = {**losses, "learning_rate": learning_rate, "seconds": time.monotonic() - started}
        values["wait_seconds"] = wait_seconds
        self._records.step(progress.step, {"epoch": progress.epoch + 1, **values}, is_skipped=bool(broken))
        if broken:
            self._skip(broken, batches)
        else:
            progress.skipped_in_a_row, self._is_suspect = 0, False
            progress.add({**losses, "wait_seconds": wait_seconds}, report.counts)
        if self.parts.average is not None:
            self.parts.average.update(self.game.generator, step=progress.step)
        return losses

    def _end_epoch(self, validation: Validation | None, *, started: float) -> None:
        """Records the epoch, and saves the last weights."""
        progress = self.progress
        values, training = progress.means(), progress.scores(self.validation_set.info)
        if training is not None:
            training = dataclasses.replace(training, subset=self._training_subset)
        progress.end_epoch()
        values["seconds"] = time.monotonic() - started
        scores = None
        if validation is not None:
            scores, values["validation_scene"] = validation.scores, validation.scene
        if self.device.type == "cuda":
            values["peak_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        self._records.epoch(progress.epoch, progress.step, values, scores, training=training)
        self._say(epoch_line(progress.epoch, values, training, validation=scores))
        self.saves.save_weights(LAST_WEIGHTS, self.parts, scores, epoch=progress.epoch)

    def _is_save_due(self) -> bool:
        """Whether the state is to be saved within an epoch; a diverging run keeps the previous state."""
        seconds = time.monotonic() - self.saves.saved
        return seconds > 60 * self.config.training.checkpoint_minutes and not self._is_suspect

    def _is_saved(self) -> bool:
        """Whether the state need not be saved at the end of an epoch."""
        return self._is_suspect or self.saves.is_save_recent()

    def _skip(self, broken: list[str], batches: list[Batch]) -> None:
        """Counts a step whose losses or gradients ``broken`` are not finite; the networks are unchanged by it.

        Raises:
            DivergenceError: too many of them in a row.
        """
        progress, mixed_precision = self.progress, self.config.training.mixed_precision
        # Gradients were too large for float16: loss scaling starts too high and halves the scale.
        is_overflow = self.config.training.uses_fp16 and all(name.endswith("_gradient_norm") for name in broken)
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self._is_suspect = not is_overflow
        if self._is_suspect:
            self.game.undo_statistics()
        if progress.skipped_in_a_row >= (MOST_OVERFLOWS if is_overflow else MOST_SKIPPED_STEPS):
            frames = ", ".join(frame_id for batch in batches for frame_id in batch.frame_ids)
            raise DivergenceError(
                f"step {progress.step} (frames {frames}): {', '.join(broken)} must be finite; "
                f"{progress.skipped_in_a_row} steps in a row were skipped; lower optimizer.learning_rate, or add "
                f"optimizer.warmup_steps{', or set training.mixed_precision=false' if mixed_precision else ''}"
            )

    def _usable(self, batch: Batch) -> Batch | None:
        """The frames of a batch that can be trained on, or None; the others are reported, each once."""
        reasons = self.training_set.why_unusable(batch)
        for name, reason in reasons.items():
            if name not in self._left_out:
                self._left_out.add(name)
                warnings.warn(f"frame {name} is left out of training: {reason}", stacklevel=2)
        mask = torch.tensor([name not in reasons for name in batch.frame_ids])
        return batch.select(mask) if bool(mask.any()) else None

    @contextlib.contextmanager
    def _saving_state_on_error(self) -> Iterator[None]:
        """Saves the state if the block, which does not change what is trained, raises.

        Not with several processes: all of them take part in a state, and the others are at another point.
        """
        try:
            yield
        except BaseException as error:
            if num_processes() == 1:
                self.saves.save_state(self.parts)
            # A scheduler stops the worker processes too, and their batch will not arrive.
            if self._stop.is_set and isinstance(error, WorkerError):
                raise RunInterrupted(f"stopped after step {self.progress.step}") from error
            raise

    def _is_agreed(self, flag: bool) -> bool:
        """Whether any process has set a flag that all must act on."""
        return any_process(flag, device=self.device)

    def _open_records(self) -> Records:
        resumed_at = (self.progress.epoch, self.progress.step) if self.is_resumed else None
        return Records(self.folder if rank() == 0 else None, resumed_at=resumed_at)

    def _say(self, line: str) -> None:
        if self.show_progress:
            ProgressBar.write(line)

    def _is_validated(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, ends with a validation."""
        training = self.config.training
        return epoch % training.validate_every == 0 or epoch == training.epochs

    def _validate(self) -> Validation | None:
        """The validation of the current epoch, if it has one; keeps the best weights."""
        progress = self.progress
        epoch = progress.epoch + 1
        if not self._is_validated(epoch):
            return None
        validation = self._score(f"validation of epoch {epoch}")
        for remark in validation.scores.remarks():
            if remark not in self._remarks:
                self._remarks.add(remark)
                self._say(f"validation: {remark}")
        # Undefined if neither truth nor prediction has an object.
        miou = 0.0 if math.isnan(validation.scores.ssc_miou) else validation.scores.ssc_miou
        if miou > progress.best_miou:
            progress.best_miou, progress.best_epoch = miou, epoch
            self.saves.save_weights(BEST_WEIGHTS, self.parts, validation.scores, epoch=epoch)
        if self.validator.first_seen is not None:
            self._records.picture(progress.step, self.evaluated, self.validator.first_seen.to(self.device))
        return validation

    def _score(self, description: str) -> Validation:
        return self.validator.score(self.evaluated, description, class_weights=self.game.class_weights, stop=self._stop)

    def _score_best(self) -> Scores:
        """Scores of the best weights, for a resumed run that does not improve on them; loads them into the network."""
        path = self.folder / BEST_WEIGHTS
        load_into(self.evaluated, split_state(read_weights(path)[0])[0], source=path)
        return self._score("scoring of the best weights").scores

    def _training_loader(self) -> "DataLoader[Batch]":
        return build_loader(
            self.training_set,
            batch_size=self.config.training.batch_size,
            shuffle_seed=self.config.training.seed,
            epoch=self.progress.epoch,
            workers=self.config.data.workers,
            drop_last=True,
            start_batch=self.progress.batches_done,
            rank=rank(),
            num_processes=num_processes(),
        )
