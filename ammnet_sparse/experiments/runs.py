"""The runs that a table of the paper is made of: trained once, resumed, shared by rows that are the same network.

A run's folder is ``OUT/<table>-<row>/seed<N>``, after the first row of all tables with this configuration: Table 3's
last row, Table 4's and Figure 2(b)'s are one run.
"""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.config import Config, save_config
from ammnet_sparse.experiments.tables import Row, Table, config_of, read_table, table_names
from ammnet_sparse.pictures.history import History, HistoryError, read_history
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS, STATE

GRACE_SECONDS = 40
"""Seconds before the deadline reserved for the current step and for saving the state."""


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
    """

    folder: Path
    out: Path
    base: Path | None
    overrides: tuple[str, ...] = ()
    device: str | None = None
    deadline: float | None = None

    @property
    def is_time_up(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline - GRACE_SECONDS


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
    overrides = (*settings.overrides, f"training.seed={seed}")
    config = config_of(row, base=settings.base, overrides=list(overrides))
    stage1 = None
    owner = f"{table.name}-{row.name}"
    if row.encoders_of is None:
        owner = _first_with(config, settings, overrides) or owner
    else:
        stage1 = plan_run(table, table.rows[row.encoders_of], seed=seed, settings=settings)
    return RunPlan(config, seed, settings.out / owner / f"seed{seed}", stage1)


def _first_with(config: Config, settings: Settings, overrides: Sequence[str]) -> str | None:
    """``table-row`` of the first row of all tables with the same network and training."""
    for name in table_names(settings.folder):
        table = read_table(settings.folder, name)
        for row in table.rows.values():
            if row.encoders_of is None and config_of(row, base=settings.base, overrides=list(overrides)) == config:
                return f"{name}-{row.name}"
    return None


def train_run(plan: RunPlan, settings: Settings) -> int:
    """Finishes a run, after the run whose encoders it freezes.

    Returns:
        0 finished, 1 a training failed, 3 time is up.
    """
    if plan.is_finished:
        return 0
    if plan.stage1 is not None and (code := train_run(plan.stage1, settings)):
        return code
    if settings.is_time_up:
        return 3
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
    process = subprocess.Popen(command)
    try:
        process.wait(None if settings.deadline is None else max(settings.deadline - time.monotonic(), 1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)  # the run saves its state
        process.wait()
    return {0: 0, 130: 3}.get(process.returncode, 1)
