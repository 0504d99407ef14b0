"""Runs of experiments: trained once, left and taken up again, shared between tables, and shown beside the paper."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.cli import experiments as command
from ammnet_sparse.cli import train
from ammnet_sparse.cli.configs import TABLES as FOLDER
from ammnet_sparse.cli.configs import find_config
from ammnet_sparse.config import ConfigError, load_config, save_config
from ammnet_sparse.evaluation.metrics import Scores, scores_from_counts
from ammnet_sparse.experiments import runs
from ammnet_sparse.experiments.results import RunScores, format_table, scores_of
from ammnet_sparse.experiments.runs import (
    GRACE_SECONDS,
    INTERRUPTED,
    TIME_IS_UP,
    RunPlan,
    Settings,
    _run,
    check_settings,
    plan_run,
    trained_runs,
)
from ammnet_sparse.experiments.tables import Row, read_table
from ammnet_sparse.training.checkpoints import CONFIG, load_state
from ammnet_sparse.training.records import Records
from tests.training.support import TINY_KEYS


def settings_in(out: Path) -> Settings:
    return Settings(FOLDER, out, find_config("nyu_seg2d"), ("model.width=8",))


def test_the_same_network_is_one_run(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    table3, table4 = read_table(FOLDER, "table3"), read_table(FOLDER, "table4")
    plan = plan_run(table4, table4.rows["adversarial_m1_m2_m3"], seed=2, settings=settings)
    assert plan.folder == plan_run(table3, table3.rows["both"], seed=2, settings=settings).folder
    assert plan.folder != plan_run(table3, table3.rows["both"], seed=3, settings=settings).folder
    assert plan.config.training.seed == 2 and plan.config.model.image_encoder == "seg2d"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_pictures")
def test_a_table_is_trained_prolonged_and_printed(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    given = ["table3", "baseline", "--base", "seg2d", "--data", str(root), "--out", str(out)]
    given += ["--width", "8", "--device", "cpu", *TINY_KEYS]
    assert command.main([*given, "--epochs", "1", "--seconds", f"{GRACE_SECONDS + 1}"]) == TIME_IS_UP
    assert "| Baseline | 0 | - | - | - | 71.6 | 46.1 |" in capfd.readouterr().out
    # Further trainings without the seconds that a process takes to start.
    monkeypatch.setattr(runs, "_run", lambda words, _: train.main(words[words.index("train") + 1 :]))
    assert command.main([*given, "--epochs", "1", "--seeds", "1", "2"]) == 0
    printed = capfd.readouterr().out
    assert "| Baseline | 2 | 1 |" in printed and "±" in printed
    rows = json.loads((out / "seg2d" / "table3.json").read_text(encoding="utf-8"))["rows"]
    assert [run["seed"] for run in rows[0]["runs"]] == [1, 2] and rows[0]["runs"][0]["is_finished"]
    folders = sorted(path.parent for path in out.glob("seg2d/*/*/metrics.jsonl"))
    assert len(folders) == 2 and not load_config(folders[0] / "config.yaml").adversarial.enabled
    # Finished runs are left alone; with more epochs they go on.
    before = [(path / "state.pt").stat().st_mtime_ns for path in folders]
    assert command.main([*given, "--epochs", "1", "--seeds", "1", "2"]) == 0
    assert [(path / "state.pt").stat().st_mtime_ns for path in folders] == before
    assert command.main([*given, "--epochs", "2", "--seeds", "1"]) == 0
    assert "| Baseline | 1 | 2 |" in capfd.readouterr().out
    # Other settings would show these scores as their own.
    for other in (["--epochs", "1"], ["--epochs", "2", "optimizer.learning_rate=0.5"]):
        assert command.main([*given, "--seeds", "1", *other]) == 2
        key = other[-1].partition("=")[0] if "=" in other[-1] else "training.epochs"
        assert f"{key}=" in capfd.readouterr().err
    # What has been trained is found without its settings, and the file keeps what the table does not show.
    assert command.main(["table3", "modulation", "--base", "seg2d", "--out", str(out), "--only-table"]) == 0
    assert "| Modulation | 0 |" in capfd.readouterr().out
    assert command.main(["table3", "--base", "seg2d", "--out", str(out), "--only-table"]) == 0
    printed = capfd.readouterr().out
    assert "| Baseline | 2 | 1 to 2 |" in printed and "model.width=8" in printed
    rows = json.loads((out / "seg2d" / "table3.json").read_text(encoding="utf-8"))["rows"]
    assert [run["seed"] for run in rows[0]["runs"]] == [1, 2]


@pytest.mark.slow
def test_a_stopped_table_stops_its_training_with_its_state_saved(root: Path, tmp_path: Path) -> None:
    """SIGTERM of ``kill`` goes to the first process alone, Ctrl-C of a terminal to both."""
    out = tmp_path / "runs"
    given = ["table3", "baseline", "--base", "seg2d", "--data", str(root), "--out", str(out)]
    given += ["--width", "8", "--device", "cpu", *TINY_KEYS]
    given += ["training.validate_every=500", "training.checkpoint_minutes=60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ammnet_sparse", "experiments", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not (lines := [text for path in out.rglob("metrics.jsonl") for text in path.read_text().splitlines()]):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "| Baseline | " in printed and "ammnet train --resume" in errors and "Traceback" not in errors
    (metrics,) = out.rglob("metrics.jsonl")
    lines = metrics.read_text().splitlines()
    assert load_state(metrics.parent)["progress"]["step"] == max(json.loads(line)["step"] for line in lines)


def test_what_makes_a_run_another_one(tmp_path: Path) -> None:
    table = read_table(FOLDER, "table3")
    settings = dataclasses.replace(
        settings_in(tmp_path), base=find_config("ablations_rgb"), overrides=("training.epochs=3",)
    )

    def planned(*overrides: str, **changes: Any) -> RunPlan:
        asked = dataclasses.replace(settings, overrides=overrides, **changes)
        return plan_run(table, table.rows["both"], seed=1, settings=asked)

    trained = planned("training.epochs=3", "data.root=/old")
    record(trained, percentages(70, 30))
    check_settings(planned("training.epochs=4", "data.root=/old", "data.workers=3"))
    for key in ("model.image_encoder_weights=other.pth", "training.validate_every=2", "data.root=/new"):
        with pytest.raises(ConfigError, match=key):
            check_settings(planned("training.epochs=3", *(["data.root=/old"] if "root" not in key else []), key))
    with pytest.raises(ConfigError, match="ammnet train --resume .*seed1 data.root=/new --change"):
        check_settings(planned("training.epochs=3", "data.root=/new"))
    # Without a number of epochs a run keeps its own.
    assert planned("data.root=/old", keeps_epochs=True).config.training.epochs == 3
    assert planned("data.root=/old").config.training.epochs == 150
    (trained.folder / CONFIG).write_text("model: {widht: 3}")
    with pytest.warns(UserWarning, match="widht"):
        assert trained_runs(table, table.rows["both"], settings=settings) == []


def test_runs_of_other_settings_and_rows_that_are_the_same_are_said(tmp_path: Path) -> None:
    table = read_table(FOLDER, "table_s3")
    settings = settings_in(tmp_path)
    names = ("none", "augmentation_2d", "dropout")
    for seed, overrides in ((1, ("model.width=8",)), (2, ("model.width=16",))):
        for name in names:
            plan = plan_run(
                table, table.rows[name], seed=seed, settings=dataclasses.replace(settings, overrides=overrides)
            )
            if not plan.folder.exists():
                record(plan, percentages(70, 30))
    found = [
        (row, best_scores(row, trained_runs(table, row, settings=settings), settings))
        for row in (table.rows[name] for name in names)
    ]
    *_, settings_line, _, same_line = format_table(table, found).splitlines()
    assert settings_line == "Not the same in all runs: model.width=8 or 16."
    # Without images there is no 2D augmentation to leave out.
    assert same_line == "The same runs, as nothing in them differs: Nothing removed = without 2D augmentation."


def test_the_table_has_the_scores_that_the_runs_recorded(tmp_path: Path) -> None:
    table = read_table(FOLDER, "table3")
    baseline, modulation = table.rows["baseline"], table.rows["modulation"]
    plans = {
        name: [plan_run(table, row, seed=seed, settings=settings_in(tmp_path)) for seed in (1, 2)]
        for name, row in (("baseline", baseline), ("modulation", modulation))
    }
    # The best epoch counts: the second of the first seed, the first of the other.
    record(plans["baseline"][0], percentages(70, 30), percentages(74, 32))
    record(plans["baseline"][1], percentages(72, 36), percentages(76, 20))
    record(plans["modulation"][0], percentages(None, None))
    found = {name: best_scores(table.rows[name], of_row, settings_in(tmp_path)) for name, of_row in plans.items()}
    assert [(run.epoch, run.sc_iou, run.ssc_miou) for run in found["baseline"]] == [(2, 74.0, 32.0), (1, 72.0, 36.0)]
    assert [(run.last_sc_iou, run.last_ssc_miou) for run in found["baseline"]] == [(74.0, 32.0), (76.0, 20.0)]
    printed = format_table(table, [(baseline, found["baseline"]), (modulation, found["modulation"])])
    assert "| Baseline | 2 (2 unfinished) | 2 | 73.0 ± 1.4 | 34.0 ± 2.8 | 71.6 | 46.1 |" in printed
    assert "| Modulation | 1 (1 unfinished) | 1 | - | - | 74.0 | 47.4 |" in printed


def best_scores(row: Row, runs_of_row: Sequence[RunPlan], settings: Settings) -> list[RunScores]:
    return [scores for run in runs_of_row if (scores := scores_of(row, run, settings=settings)) is not None]


def record(plan: RunPlan, *validated: Scores) -> None:
    plan.folder.mkdir(parents=True)
    save_config(plan.config, plan.folder / CONFIG)
    with Records(plan.folder) as records:
        for epoch, scores in enumerate(validated, start=1):
            records.epoch(epoch, epoch, {"loss": 1.0, "seconds": 2.0}, scores)


def percentages(sc_iou: int | None, ssc_miou: int | None) -> Scores:
    """Scores with these percentages; None: nothing was scored."""
    confusion, occupancy = torch.zeros(12, 12, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
    if sc_iou is not None and ssc_miou is not None:
        occupancy[1, 1], occupancy[1, 0] = sc_iou, 100 - sc_iou
        confusion[1, 1], confusion[1, 0] = ssc_miou, 100 - ssc_miou
    return scores_from_counts(confusion, occupancy, frames=1)


def test_what_is_lacking_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["table3", "--out", str(tmp_path)]) == 2
    assert "--data: " in capsys.readouterr().err
    assert command.main(["table3", "--only-table", "model.widht=8"]) == 2
    assert "model.widht" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["table3", "--seeds", "3", "3"])
    assert "--seeds: " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["table3", "--seconds", "30"])
    assert "--seconds: " in capsys.readouterr().err
    assert command.main([]) == 0
    assert "table_s2" in capsys.readouterr().out


def test_signals_are_passed_on_and_end_the_table(tmp_path: Path) -> None:
    """A second SIGTERM is no second Ctrl-C; and a training that ends well all the same is the last one."""
    script = (
        "import pathlib, signal, sys, time\n"
        "folder, seen = pathlib.Path(sys.argv[1]), []\n"
        "for kind in (signal.SIGINT, signal.SIGTERM): signal.signal(kind, lambda number, frame: seen.append(number))\n"
        "(folder / 'ready').touch()\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.6)\n"
        "(folder / 'seen').write_text(' '.join(map(str, seen)))\n"
    )

    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)

    sender = threading.Thread(target=send)
    sender.start()
    assert _run([sys.executable, "-c", script, str(tmp_path)], None) == INTERRUPTED
    sender.join()
    assert (tmp_path / "seen").read_text() == f"{signal.SIGTERM:d} {signal.SIGTERM:d}"
    assert _run([sys.executable, "-c", "import time; time.sleep(60)"], 0.5) == TIME_IS_UP
    assert [_run([sys.executable, "-c", f"exit({code})"], None) for code in (0, 1, 2, 130)] == [0, 1, 2, 130]
