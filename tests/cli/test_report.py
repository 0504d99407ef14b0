"""`ammnet report` over a run folder: what the page holds, which scenes it picks, and how it refuses."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import ammnet_sparse
from ammnet_sparse.cli import report as command
from ammnet_sparse.config import AdversarialConfig, Config, DataConfig, ModelConfig, save_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS
from tests.data.frames import random_frame, write_frame, write_list
from tests.pictures.test_history import write_run
from tests.pictures.test_page import read_data

GRID = (24, 12, 24)
IDS = [f"{number:04d}" for number in range(1, 8)]
VALIDATION = IDS[2:]


def report(arguments: list[str]) -> int:
    """The command on the CPU wherever the tests run."""
    return command.main(["--device", "cpu", *arguments])


@pytest.fixture(scope="module")
def set_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for number, frame_id in enumerate(IDS):
        write_frame(root, random_frame(number, frame_id=frame_id, grid_shape=GRID, has_image=True))
    write_list(root / "train.txt", IDS)
    write_list(root / "val.txt", VALIDATION)
    return root


def config_of(root: Path | None) -> Config:
    model = ModelConfig(width=8, discriminator_width=8, grid_shape=GRID, inputs="tsdf")
    return Config(data=DataConfig(root=root), model=model)


@pytest.fixture
def run(tmp_path: Path, set_folder: Path) -> Path:
    """A run of three epochs, the second the best, with a file in the place of its best weights."""
    folder = write_run(tmp_path / "my_run", mious=(0.2, 0.4, 0.3))
    save_config(config_of(set_folder), folder / "config.yaml")
    (folder / BEST_WEIGHTS).touch()
    return folder


class StandIn(nn.Module):
    """Predicts the truth, but for the first ``number of the frame`` slices of the grid, which it leaves empty."""

    config = config_of(None).model

    def forward(self, batch: Batch, *, voxels: str) -> SimpleNamespace:
        assert batch.label is not None
        labels = batch.label.clone().view(-1, *GRID)
        labels[labels == 255] = 0
        labels[:, : 3 * int(batch.frame_ids[0])] = 0
        return SimpleNamespace(labels=labels)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ammnet_sparse, "load_model", lambda path, **options: StandIn(), raising=False)


@pytest.mark.usefixtures("stand_in")
def test_page_has_curves_table_and_the_best_and_worst_scenes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(run), "--scenes", "2"]) == 0
    page = (run / "report.html").read_text("utf-8")
    assert "report.html: " in capsys.readouterr().out
    assert "<h1>Training run my_run</h1>" in page
    assert page.count("<svg role") == 4
    assert not re.search("https?://", page)
    assert '<th scope="row">best, epoch 2</th><td>80.0</td>' in page
    assert '<th scope="row">last, epoch 3</th><td>80.0</td>' in page
    names = [entry["name"].partition(",")[0] for entry in read_data(run / "report.html")["scenes"]]
    assert names == ["best 1: 0003", "best 2: 0004", "worst 1: 0007", "worst 2: 0006"]


def test_a_run_before_its_first_validation_has_curves_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "young", mious=(None,), has_training=True)
    save_config(config_of(None), folder / "config.yaml")
    assert report([str(folder)]) == 0
    assert "best.safetensors" in capsys.readouterr().out
    page = (folder / "report.html").read_text("utf-8")
    assert "No validation yet" in page and "<canvas" not in page


@pytest.mark.usefixtures("stand_in")
def test_scenes_can_be_left_out_or_the_data_named_where_it_is_gone(
    run: Path, set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(config_of(tmp_path / "gone"), run / "config.yaml")
    assert report([str(run)]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "gone") in message and "--data" in message and "--scenes 0" in message
    assert not (run / "report.html").exists()
    assert report([str(run), "--scenes", "0"]) == 0
    assert "best, epoch 2" in (run / "report.html").read_text("utf-8")
    assert report([str(run), "--data", str(set_folder), "--scenes", "1"]) == 0


@pytest.mark.parametrize("kind", ["no folder", "no run", "no metrics", "no configuration"])
def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folder = tmp_path / "run"
    expected = {
        "no folder": str(folder),
        "no run": "metrics.jsonl",
        "no metrics": "metrics.jsonl",
        "no configuration": "config.yaml",
    }[kind]
    if kind != "no folder":
        folder.mkdir()
    if kind == "no metrics":
        (folder / "metrics.jsonl").touch()
    if kind == "no configuration":
        write_run(folder, mious=(0.1,))
    assert report([str(folder)]) == 2
    output: Any = capsys.readouterr()
    assert output.err.startswith("ammnet report: ")
    assert expected in output.err
    assert list(folder.glob("*.html")) == []


@pytest.mark.usefixtures("stand_in")
def test_several_runs_are_compared(
    run: Path, set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "other", mious=(0.1,))
    config = config_of(set_folder)
    save_config(config.model_copy(update={"adversarial": AdversarialConfig(enabled=False)}), other / "config.yaml")
    (other / BEST_WEIGHTS).touch()
    out, plot = tmp_path / "both.html", tmp_path / "scores.png"
    assert report([str(run), str(other), "--scenes", "2", "--out", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "both.html: 2 runs" in printed and "scores.png: " in printed
    page = out.read_text("utf-8")
    assert "my_run, epoch 2" in page and "other, epoch 1" in page
    assert '<th scope="row">adversarial.enabled</th><td>True</td><td>False</td>' in page
    names = [entry["name"] for entry in read_data(out)["scenes"]]
    assert names == ["0003, my_run", "0003, other", "0005, my_run", "0005, other"]
    assert plot.stat().st_size > 5_000
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["table/baseline/seed1", "table/ammnet/seed1"], ["baseline", "ammnet"]),
        (["table/baseline/seed1", "table/ammnet/seed2"], ["baseline/seed1", "ammnet/seed2"]),
        (["table/baseline/seed1", "table/baseline/seed2"], ["seed1", "seed2"]),
        (["run", "run/again"], ["run", "run/again"]),
        (["seed1", "table/seed1"], ["seed1", "table/seed1"]),
    ],
)
def test_runs_are_named_by_what_tells_their_paths_apart(folders: list[str], names: list[str]) -> None:
    assert list(command._names([Path(folder) for folder in folders])) == names


def test_a_plot_of_one_run_comes_with_its_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, out = tmp_path / "scores.svg", tmp_path / "page.html"
    assert report([str(run), "--scenes", "0", "--plot", str(plot), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{plot}: scores of my_run over the epochs",
        f"{out}: no scenes asked for",
    ]
    assert "<!-- SSC mIoU, percent -->" in plot.read_text("utf-8")
    assert "<h1>Training run my_run</h1>" in out.read_text("utf-8")
    plot.unlink()
    assert report([str(run), "--scenes", "0", "--plot", str(plot)]) == 0
    assert plot.exists() and (run / "report.html").exists()


def test_runs_that_cannot_be_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(run), str(tmp_path / "missing")]) == 2
    assert "missing: " in capsys.readouterr().err
    assert report([str(run), str(run / ".." / run.name)]) == 2
    assert str(run) in capsys.readouterr().err
    assert report([str(run), "--plot", str(tmp_path / "scores.txt")]) == 2
    assert "scores.txt: " in capsys.readouterr().err
