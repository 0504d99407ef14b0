"""A training run from its data to its last line, readable from top to bottom."""

import dataclasses
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
from ammnet_sparse.data.check import check_set
from ammnet_sparse.data.dataset import FrameDataset, build_loader
from ammnet_sparse.data.layout import FrameFolder
from ammnet_sparse.data.splits import training_ids, validation_ids
from ammnet_sparse.evaluation.baselines import constant_baseline
from ammnet_sparse.evaluation.metrics import Scores, evaluate
from ammnet_sparse.evaluation.selection import open_set
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.training.checkpoints import (
    BEST_WEIGHTS,
    LAST_WEIGHTS,
    CheckpointError,
    initialise_from,
    load_state,
    save_run_weights,
    save_state,
)
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.optimization import Optimization
from ammnet_sparse.training.records import Records


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Validation scores of a run: of its best epoch, and of the best constant class."""

    best: Scores
    best_epoch: int
    baseline: Scores


@dataclasses.dataclass
class _Progress:
    """Where a run stands; what a resumed run starts from."""

    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    best_miou: float = -1.0
    best_epoch: int = 0


class Run:
    """One training run in a folder.

    Args:
        config: what to train; ``data.root`` names the set.
        folder: receives config.yaml, metrics.jsonl, last and best weights, the state and tensorboard/.
        device: where to train.
        resume: continue from the state in ``folder``.
        initial_weights: weights to start from, or None.
        limit: train and validate on so many frames only, for a trial.

    Raises:
        ConfigError: a configuration that this machine cannot run, or a resumed one that differs.
        DataError: a set with missing frames, each named.
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
    ) -> None:
        if config.training.mixed_precision and device.type != "cuda":
            raise ConfigError(f"training.mixed_precision: fp16 needs a CUDA device, found {device}; set it to false")
        if config.data.root is None:
            raise ConfigError("data.root: expected the folder of a set, found none")
        self.config = config
        self.folder = folder
        self.device = device
        torch.manual_seed(config.training.seed)
        torch.use_deterministic_algorithms(config.training.deterministic, warn_only=True)
        self.network = AMMNet(config.model)
        if initial_weights is not None:
            initialise_from(self.network, initial_weights)
        self.network.set_recompute(config.training.recompute)
        self.network.to(device)
        frames = open_set(config.data.root, dataset=config.data.dataset, config=config.model)
        self.training_set, self.validation_set = _datasets(config, frames, limit)
        batches = len(self.training_set) // config.training.batch_size
        self.steps_per_epoch = batches // config.training.accumulate
        if self.steps_per_epoch == 0:
            needed = config.training.batch_size * config.training.accumulate
            raise ConfigError(
                f"training.batch_size: a step needs {needed} frames (with training.accumulate), found "
                f"{len(self.training_set)} training frames; lower it"
            )
        self.progress = _Progress()
        self.generator = self._optimization(
            nn.ModuleDict({name: child for name, child in self.network.named_children() if name != "discriminator"}),
            config.optimizer.learning_rate,
        )
        self.discriminator = None
        if config.adversarial.enabled:
            self.discriminator = self._optimization(
                self.network.discriminator,
                config.optimizer.discriminator_learning_rate or config.optimizer.learning_rate,
            )
        self.game = AdversarialGame(self.network, config, generator=self.generator, discriminator=self.discriminator)
        self.is_resumed = resume
        if resume:
            self._restore()

    def train(self, *, show_progress: bool = True) -> RunResult:
        """Trains to the last epoch, validates, and leaves the best weights behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "config.yaml")
        baseline = constant_baseline(self._validation_loader())
        resumed_at_step = self.progress.step if self.is_resumed else None
        scores: Scores | None = None
        best: Scores | None = None
        with Records(self.folder, resumed_at_step=resumed_at_step) as records:
            while self.progress.epoch < self.config.training.epochs:
                started = time.monotonic()
                means = self._train_epoch(records, show_progress=show_progress)
                self.progress.epoch += 1
                self.progress.batches_done = 0
                scores = self._validate(records, show_progress=show_progress)
                if scores is not None and scores.ssc_miou >= self.progress.best_miou:
                    best = scores
                values = {**means, "seconds": time.monotonic() - started}
                if self.device.type == "cuda":
                    values["peak_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
                records.epoch(self.progress.epoch, self.progress.step, values, scores)
                self._save()
        return RunResult(best or self._score_best(), self.progress.best_epoch, baseline)

    def _train_epoch(self, records: Records, *, show_progress: bool) -> dict[str, float]:
        """One pass over the training frames, or what is left of it; mean losses of its steps."""
        accumulate = self.config.training.accumulate
        total = self.steps_per_epoch
        done = self.progress.batches_done // accumulate
        sums: dict[str, float] = {}
        saved = time.monotonic()
        description = f"epoch {self.progress.epoch + 1}/{self.config.training.epochs}"
        with tqdm(total=total, initial=done, desc=description, unit="step", disable=not show_progress) as bar:
            waited = time.monotonic()
            for batches in _groups(self._training_loader(), accumulate):
                wait_seconds = time.monotonic() - waited
                started = time.monotonic()
                seed = self.config.training.seed * 1_000_003 + self.progress.step
                on_device = [batch.to(self.device, non_blocking=True) for batch in batches]
                learning_rate = self.generator.learning_rate
                losses = self.game.step(on_device, seed=seed).as_floats()
                self.progress.step += 1
                self.progress.batches_done += accumulate
                timing = {"seconds": time.monotonic() - started, "wait_seconds": wait_seconds}
                records.step(
                    self.progress.step,
                    {"epoch": self.progress.epoch + 1, **losses, "learning_rate": learning_rate, **timing},
                )
                for name, value in {**losses, "wait_seconds": wait_seconds}.items():
                    sums[name] = sums.get(name, 0.0) + value
                bar.set_postfix({name: f"{losses[name]:.3f}" for name in _SHOWN if name in losses})
                bar.update()
                if time.monotonic() - saved > 60 * self.config.training.checkpoint_minutes:
                    self._save_state()
                    saved = time.monotonic()
                waited = time.monotonic()
        return {name: value / max(total - done, 1) for name, value in sums.items()}

    def _validate(self, records: Records, *, show_progress: bool) -> Scores | None:
        """Scores on the validation frames, where this epoch has a validation; keeps the best weights."""
        epoch, is_last = self.progress.epoch, self.progress.epoch == self.config.training.epochs
        if epoch % self.config.training.validate_every and not is_last:
            return None
        scores = self._score(self.network, f"validation {epoch}", show_progress=show_progress)
        if scores.ssc_miou > self.progress.best_miou or self.progress.best_epoch == 0:
            self.progress.best_miou, self.progress.best_epoch = scores.ssc_miou, epoch
            self._save_weights(BEST_WEIGHTS, scores)
        first = self.validation_set[0].to(self.device)
        records.picture(self.progress.step, self.network, first)
        self._save_weights(LAST_WEIGHTS, scores)
        if show_progress:
            tqdm.write(f"epoch {epoch}: validation {_summary(scores)}")
        return scores

    def _score(self, network: AMMNet, description: str, *, show_progress: bool) -> Scores:
        network.eval()
        loader = self._validation_loader()
        batches = tqdm(loader, desc=description, unit="batch", leave=False, disable=not show_progress)
        return evaluate(lambda batch: network(batch, voxels="scored").labels, batches, device=self.device)

    def _score_best(self) -> Scores:
        """Scores of the best weights, for a resumed run that was already at its best."""
        path = self.folder / BEST_WEIGHTS
        if path.is_file():
            initialise_from(self.network, path)
        return self._score(self.network, "best weights", show_progress=False)

    def _save(self) -> None:
        self._save_state()
        if not (self.folder / LAST_WEIGHTS).is_file():
            self._save_weights(LAST_WEIGHTS, None)

    def _save_weights(self, name: str, scores: Scores | None) -> None:
        metadata = {"epoch": str(self.progress.epoch), "step": str(self.progress.step)}
        if scores is not None:
            metadata["validation"] = _summary(scores)
        save_run_weights(self.folder, name, self.network, metadata=metadata)

    def _save_state(self) -> None:
        state: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "progress": dataclasses.asdict(self.progress),
            "frames": [len(self.training_set), len(self.validation_set)],
            "network": self.network.state_dict(),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator is not None else None,
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_state(self.folder, state)

    def _restore(self) -> None:
        state = load_state(self.folder, device=torch.device("cpu"))
        try:
            if state["frames"] != [len(self.training_set), len(self.validation_set)]:
                raise CheckpointError(
                    f"{self.folder}: expected {state['frames']} training and validation frames as before, found "
                    f"{[len(self.training_set), len(self.validation_set)]}; give the same set and --limit"
                )
            self.network.load_state_dict(state["network"])
            self.generator.load_state_dict(state["generator"])
            if self.discriminator is not None:
                self.discriminator.load_state_dict(state["discriminator"])
            self.progress = _Progress(**state["progress"])
            torch.set_rng_state(state["random_cpu"])
            if state["random_cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self.folder}: the state does not fit this configuration ({error})") from error

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


def _summary(scores: Scores) -> str:
    return f"SSC mIoU {100 * scores.ssc_miou:.1f} %, SC IoU {100 * scores.sc_iou:.1f} %"


def _datasets(config: Config, frames: FrameFolder, limit: int | None) -> tuple[FrameDataset, FrameDataset]:
    data = config.data
    check_set(frames, quick=True, progress=False).raise_if_broken()
    lists = [
        ids(frames, split=data.split, count=data.validation_frames, seed=data.validation_seed)[:limit]
        for ids in (training_ids, validation_ids)
    ]
    training = FrameDataset(
        frames,
        lists[0],
        augment_3d=data.augment_3d,
        augment_2d=data.augment_2d and frames.reads_image,
        seed=config.training.seed,
    )
    return training, FrameDataset(frames, lists[1])


def _groups(loader: "DataLoader[Batch]", size: int) -> Iterator[list[Batch]]:
    """Batches in groups of ``size``; an incomplete last group is dropped."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
