"""Several runs side by side: curves, best epochs, the keys that differ, and the plot of their scores."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ammnet_sparse.config import Config, load_config
from ammnet_sparse.pictures.history import History, read_history
from ammnet_sparse.pictures.page import write_page
from ammnet_sparse.pictures.run_comparison import comparison_html, plot_scores
from tests.pictures.test_history import text_of, write_run


@pytest.fixture
def histories(tmp_path: Path) -> dict[str, History]:
    return {
        "game": read_history(write_run(tmp_path / "game", mious=(0.2, 0.4, 0.3), has_training=True)),
        "none": read_history(write_run(tmp_path / "none", mious=(0.1, None), has_game=False)),
        "young": read_history(write_run(tmp_path / "young", mious=(None,))),
    }


def config_with(*overrides: str) -> Config:
    return load_config(None, overrides)


def test_curves_of_all_runs_and_the_best_epoch_of_each(histories: dict[str, History]) -> None:
    configs = {"game": config_with(), "none": config_with("adversarial.enabled=false"), "young": config_with()}
    page = comparison_html(histories, configs)
    assert page.count("<svg role") == 3
    words = text_of(page)
    assert words.count("game") == 3 and words.count("none") == 2  # that run has recorded no validation loss
    assert "game, epoch 2" in page and "none, epoch 1" in page and "No validation yet: young" in page
    assert re.search(r"adversarial\.enabled</th><td>True</td><td>False</td><td>True</td>", page)


def test_limited_runs_say_so_in_legends_and_tables(histories: dict[str, History]) -> None:
    for line in histories["none"].validated:
        line["validation"]["subset"] = "first 2 frames"
    page = comparison_html(histories, {name: config_with() for name in histories})
    assert text_of(page).count("none (first 2 frames)") == 2 and "none, epoch 1 (first 2 frames)" in page


def test_names_are_text_of_the_page(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run", mious=(0.2,)))
    page = comparison_html({"<b>": history, "c": history}, {"<b>": config_with(), "c": config_with("model.width=64")})
    assert "<b>" not in page and "&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$\\frac{$", "$\\frac{$"),
        ("a$x^2$b$", "a$x^2$b$"),
        (os.fsdecode(b"run\xff"), "run\\udcff"),
        ("_run", " _run"),
        ("\x1b[31m\n", "\\x1b[31m\\n"),
    ],
)
def test_a_run_may_have_any_name_of_a_folder(tmp_path: Path, name: str, shown: str) -> None:
    history = read_history(write_run(tmp_path / "run", mious=(0.2,)))
    page = comparison_html({name: history, "other": history}, {name: config_with(), "other": config_with()})
    assert f">{shown}</text>" in page
    write_page(tmp_path / "page.html", [], title=name, introduction=page)
    plot_scores({name: history, "other": history}, tmp_path / "scores.png")


@pytest.mark.parametrize("name", ["scores.png", "scores.svg", "scores.pdf"])
def test_scores_are_plotted(histories: dict[str, History], tmp_path: Path, name: str) -> None:
    plot_scores(histories, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5_000
    if name.endswith("png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB")).reshape(-1, 3)
        for color in ((0x1D, 0x5F, 0xBF), (0xC2, 0x41, 0x0C)):  # of the first two runs
            assert (picture == color).all(axis=1).sum() > 20
