"""The runs that a table of the paper is made of: trained once, resumed, shared by rows that are the same network.

A run's folder is ``OUT/<table>-<row>/seed<N>``, after the first row of all tables that is the same in the paper: Table
3's last row, Table 4's and Figure 2(b)'s are one run.
"""

import dataclasses
import functools
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ammnet_sparse.config import Config, ConfigError, changed_keys, flat_plain, load_config, save_config
from ammnet_sparse.experiments.tables import Row, Table, config_of, read_table, table_names
from ammnet_sparse.pictures.history import History, HistoryError, read_history
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS, CONFIG, STATE
from ammnet_sparse.training.interruption import signals_handled_by

GRACE_SECONDS = 40
"""Seconds before the deadline reserved for the current step and for saving the state."""
FINISHED, FAILED, WRONG_DATA, TIME_IS_UP, INTERRUPTED = 0, 1, 2, 3, 130
"""What ``train_run`` returns."""
_SEED = "training.seed"
_PATHS = ("data.root", "data.label_2d", "data.images", "model.image_encoder_weights")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all runs of a call.

    Attributes:
        folder: of the tables (``configs/experiments``).
        out: folder of the runs.
        base: configuration that rows inherit instead of the one that they name, or None.
        overrides: ``key.sub=value`` for every row.
        device: passed on to the training command, or None.
        deadline: ``time.monotonic()`` at which time is up, or None.
        keeps_epochs: a run that is there keeps its number of epochs, as none was asked for.
    """

    folder: Path
    out: Path
    base: Path | None
    overrides: tuple[str, ...] = ()
    device: str | None = None
    deadline: float | None = None
    keeps_epochs: bool = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds until a training must be stopped; None: no deadline."""
        return None if self.deadline is None else self.deadline - GRACE_SECONDS - time.monotonic()


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run: its configuration, its seed, its folder, and the run whose encoders it freezes."""

    config: Config
    seed: int
    folder: Path
    stage1: "RunPlan | None" = None

    @property
    def history(self) -> History | None:
        """The metrics of the run; None before its first epoch has ended."""
        try:
            return read_history(self.folder)
        except HistoryError:
            return None

    @property
    def is_finished(self) -> bool:
        """Whether the run has completed the epochs of its configuration."""
        history = self.history
        if history is None or not history.epochs or not (self.folder / STATE).is_file():
            return False
        return bool(history.epochs[-1]["epoch"] >= self.config.training.epochs)


def plan_run(table: Table, row: Row, *, seed: int, settings: Settings) -> RunPlan:
    """The run of a row; nothing is trained.

    Raises:
        ConfigError: unknown keys or invalid values.
    """
    folder = _folder_of(table, row, settings=settings) / f"seed{seed}"
    config = config_of(row, base=settings.base, overrides=[*settings.overrides, f"{_SEED}={seed}"])
    if settings.keeps_epochs and (trained := _trained_config(folder)) is not None:
        kept = config.training.model_copy(update={"epochs": trained.training.epochs})
        config = config.model_copy(update={"training": kept})
    stage1 = None
    if row.encoders_of is not None:
        stage1 = plan_run(table, table.rows[row.encoders_of], seed=seed, settings=settings)
    return RunPlan(config, seed, folder, stage1)


def trained_runs(table: Table, row: Row, *, settings: Settings) -> list[RunPlan]:
    """The runs of a row that have begun, by seed, each with the configuration that it is trained with.

    Warns:
        UserWarning: a run that is left out, as its ``config.yaml`` is damaged.
    """
    runs = []
    for path in _folder_of(table, row, settings=settings).glob("seed*"):
        config = _trained_config(path)
        if config is not None and path.name == f"seed{config.training.seed}":
            runs.append(RunPlan(config, config.training.seed, path))
    return sorted(runs, key=lambda run: run.seed)


def _trained_config(folder: Path) -> Config | None:
    """The configuration of the run in a folder; None if there is none, or, with a warning, a damaged one."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        return load_config(path)
    except ConfigError as error:
        warnings.warn(f"{error}; the run is left out", stacklevel=2)
        return None


def check_settings(plan: RunPlan) -> None:
    """Raises ConfigError if the run's folder holds a run of other settings, whose scores would be taken for this one's.

    More epochs do not count as other settings: the run is continued.
    """
    if plan.stage1 is not None:
        check_settings(plan.stage1)
    trained = _trained_config(plan.folder)
    if trained is None:
        return
    before, now = _plain(trained), _plain(plan.config)
    changed = _changed(trained, plan.config)
    if plan.config.training.epochs < trained.training.epochs:
        changed.append("training.epochs")
    if changed:
        expected = ", ".join(f"{key}={before[key]}" for key in changed)
        found = ", ".join(f"{key}={now[key]}" for key in changed)
        advice = "give those of the run, or another --out"
        if set(changed) <= set(_PATHS):
            moved = " ".join(f"{key}={now[key]}" for key in changed)
            advice += f"; if the same was moved: ammnet train --resume {plan.folder} {moved} --change"
        raise ConfigError(f"{plan.folder}: expected the settings of the run there, {expected}, found {found}; {advice}")


def settings_of(row: Row, run: RunPlan, *, settings: Settings) -> dict[str, Any]:
    """The keys of a run that differ from its row as the paper has it, but for seed and epochs, by dotted names."""
    of_row = config_of(row, base=settings.base, overrides=[])
    values = _plain(run.config)
    return {key: values[key] for key in _changed(of_row, run.config) if key != _SEED}


def _changed(before: Config, now: Config) -> list[str]:
    """The keys that make two configurations different runs, so that one cannot be shown as the other."""
    keys = [key.name for key in changed_keys(before, now)]
    if before.training.validate_every != now.training.validate_every:  # which epochs can be the best
        keys.append("training.validate_every")
    if not now.model.reads_image:
        return [key for key in keys if key != "data.augment_2d"]  # changes nothing
    if before.model.image_encoder_weights != now.model.image_encoder_weights:
        keys.append("model.image_encoder_weights")
    return keys


def _plain(config: Config) -> dict[str, Any]:
    return flat_plain(config.model_dump(mode="json"))


def _folder_of(table: Table, row: Row, *, settings: Settings) -> Path:
    """``OUT/table-row`` of the first row of all tables with the same network and training, overrides apart."""
    owner = f"{table.name}-{row.name}"
    if row.encoders_of is None:
        config = config_of(row, base=settings.base, overrides=[])
        same = (name for name, other in _configs(settings.folder, settings.base) if not _changed(other, config))
        owner = next(same, owner)
    return settings.out / owner


@functools.cache
def _configs(folder: Path, base: Path | None) -> tuple[tuple[str, Config], ...]:
    """``table-row`` and configuration of every row that freezes no encoders, in the order of the tables."""
    tables = [read_table(folder, name) for name in table_names(folder)]
    return tuple(
        (f"{table.name}-{row.name}", config_of(row, base=base, overrides=[]))
        for table in tables
        for row in table.rows.values()
        if row.encoders_of is None
    )


def train_run(plan: RunPlan, settings: Settings) -> int:
    """Finishes a run, after the run whose encoders it freezes.

    Ctrl-C, SIGTERM and the deadline stop the training after its current step, with its state saved.

    Returns:
        0 finished, 1 a training failed, 2 its data or settings are wrong, 3 time is up, 130 interrupted.
    """
    if plan.is_finished:
        return FINISHED
    if plan.stage1 is not None and (code := train_run(plan.stage1, settings)):
        return code
    seconds = settings.seconds_left
    if seconds is not None and seconds <= 0:
        return TIME_IS_UP
    command = [sys.executable, "-m", "ammnet_sparse", "train"]
    if (plan.folder / STATE).is_file():
        command += ["--resume", str(plan.folder), f"training.epochs={plan.config.training.epochs}"]
    else:
        file = plan.folder.with_name(f"{plan.folder.name}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_config(plan.config, file)
        command += ["--config", str(file), "--out", str(plan.folder)]
        command += [] if plan.stage1 is None else ["--init-from", str(plan.stage1.folder / BEST_WEIGHTS)]
    command += [] if settings.device is None else ["--device", settings.device]
    print(f"== {plan.folder}: {' '.join(command)}", flush=True)
    return _run(command, seconds)


def _run(command: Sequence[str], seconds: float | None) -> int:
    """Runs a training for at most so many seconds; what ``train_run`` returns."""
    signals: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if process is not None:
            # The terminal sends Ctrl-C to the training, too, which ignores SIGTERM after it. A second Ctrl-C ends it.
            process.send_signal(signal.SIGINT if signals.count(signal.SIGINT) > 1 else signal.SIGTERM)

    is_late = False
    with signals_handled_by(forward):
        process = subprocess.Popen(command)
        if signals:  # while the process was started
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            is_late = True
            process.send_signal(signal.SIGTERM)
            process.wait()
    code = process.returncode
    if signals:
        return INTERRUPTED
    if is_late and (code == INTERRUPTED or code < 0):
        return TIME_IS_UP
    return code if code in (FINISHED, WRONG_DATA, INTERRUPTED) else FAILED
