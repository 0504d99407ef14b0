"""tools/experiments.py: runs one after the other, left and taken up again, and their table."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.config import load_config
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.training.loop import Run
from tests.training.support import GRID, tiny_config, tiny_set

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = ["model.width=8", "model.stem_widths=[3,8]", "model.discriminator_width=8", f"model.grid_shape={list(GRID)}"]
KEYS += ["training.batch_size=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "tools" / "experiments.py"))


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((out / "experiments.json").read_text(encoding="utf-8"))}


def test_every_variant_is_a_configuration_of_its_own(script: dict[str, Any]) -> None:
    base = load_config(script["CONFIG"])
    seen = [base]
    for name, keys in script["EXPERIMENTS"].items():
        config = load_config(script["CONFIG"], keys)
        assert (name == "base") == (config == base)
        assert name == "base" or config not in seen
        seen.append(config)


def test_runs_are_done_once_and_prolonged(
    script: dict[str, Any], root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main: Callable[[list[str]], int] = script["main"]
    out = tmp_path / "runs"
    given = ["--data", str(root), "--out", str(out), "--only", "base", "ema", "--device", "cpu"]
    # Time is up before anything begins.
    assert main([*given, "--epochs", "1", "--seconds", "1", *KEYS]) == 3
    assert rows_of(out)["base"]["epochs"] == 0 and not (out / "base").exists()
    assert main([*given, "--epochs", "1", *KEYS]) == 0
    rows = rows_of(out)
    assert list(rows) == ["base", "ema"]
    for row in rows.values():
        assert row["epochs"] == row["best"]["epoch"] == row["last"]["epoch"] == 1
        assert row["best"]["sc_iou"] > 0 and row["seconds"] > 0
    assert load_config(out / "ema" / "config.yaml").training.ema_decay == 0.999
    printed = capfd.readouterr().out
    assert "| ema | 1 | 1 |" in printed and printed.count("tools/train.py --config") == 2
    before = (out / "base" / "metrics.jsonl").stat().st_mtime_ns
    assert main(["--out", str(out), "--only", "base", "ema"]) == 0
    assert (out / "base" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "train.py" not in capfd.readouterr().out


def test_wrong_keys_show_before_anything_runs(
    script: dict[str, Any], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script["main"](["--data", str(root), "--out", str(tmp_path / "runs"), "model.widht=8"]) == 2
    assert "did you mean model.width?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script["main"](["--out", str(tmp_path / "runs")])


def test_last_run_trains_on_all_frames(root: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "batch_size": 2}
    both = [
        Run(
            tiny_config(data={"root": str(root), "train_on_all": value}, training=options),
            tmp_path / str(value),
            device=torch.device("cpu"),
            show_progress=False,
        )
        for value in (False, True)
    ]
    assert [len(run.training_set) for run in both] == [4, 6]
    assert [len(run.validation_set) for run in both] == [2, 2]
    both[1].train()
    assert read_weights(tmp_path / "True" / "last.safetensors")[2]["step"] == "3"
