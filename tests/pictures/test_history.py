"""Metrics of a run: read as they were written, drawn and set as a table, and refused if there are none."""

import math
import re
from pathlib import Path

import pytest
import torch

from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.pictures.history import HistoryError, curves_html, read_history, table_html
from ammnet_sparse.training.records import Records


def make_scores(miou: float, *, tvs: float = 0.25) -> Scores:
    iou = {name: miou for name in CLASS_NAMES[1:]} | {"tvs": tvs}
    counts = torch.zeros(12, 12), torch.zeros(2, 2)
    return Scores(5, 0.8, 0.7, 0.6, iou, miou, confusion=counts[0], occupancy=counts[1])


def write_run(
    folder: Path, *, mious: tuple[float | None, ...], has_game: bool = True, has_training: bool = False
) -> Path:
    """A run of ten steps an epoch, written by the writer of real runs."""
    folder.mkdir(parents=True, exist_ok=True)
    game = {"adversarial": 3.0, "discriminator": 2.0} if has_game else {}
    with Records(folder) as records:
        for epoch, miou in enumerate(mious, start=1):
            for step in range(10 * epoch - 9, 10 * epoch + 1):
                losses = {"loss": 2.0 / step, "scene": 1.9 / step, **game}
                records.step(step, {"epoch": epoch, **losses, "learning_rate": 1e-3})
            scores = None if miou is None else make_scores(miou)
            values = {"loss": 1.0, "scene": 0.9, "seconds": 3.0}
            if has_training:
                values["validation_scene"] = 1.2
            training = make_scores(0.5) if has_training else None
            records.epoch(epoch, 10 * epoch, values, scores, training=training)
    return folder


def text_of(page: str) -> list[str]:
    """What the figures say in words, legends included."""
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", page)]


def test_history_is_what_the_run_wrote(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run", mious=(0.2, None, 0.4, 0.4, 0.3)))
    assert [line["step"] for line in history.steps] == list(range(1, 51))
    assert [line["epoch"] for line in history.validated] == [1, 3, 4, 5]
    assert history.best is not None
    assert history.best["epoch"] == 3  # the first of equals: the run keeps its weights
    assert history.best["validation"]["ssc"]["miou"] == pytest.approx(40.0)


MALFORMED = [
    "null",
    "[]",
    "3",
    '"kind"',
    "[" * 100_000,
    '{"kind": ["step"], "step": 1}',
    '{"kind": "step"}',
    '{"kind": "step", "step": "1"}',
    '{"kind": "step", "step": true}',
    '{"kind": "step", "step": 1e400}',
    '{"kind": "epoch", "step": 1}',
    '{"kind": "epoch", "step": 1, "epoch": 1, "validation": 3}',
    '{"kind": "epoch", "step": 1, "epoch": 1, "validation": {}}',
    '{"kind": "epoch", "step": 1, "epoch": 1, "validation": {"frames": "<script>", "sc": {}, "ssc": {}}}',
    '{"kind": "epoch", "step": 1, "epoch": 1, "validation": {"frames": 1, "sc": {"precision": "<b>", "recall": 1, '
    '"iou": 1}, "ssc": {"miou": 1, "iou": {}}}}',
    '{"kind": "epoch", "step": 1, "epoch": 1, "validation": {"frames": 1, "sc": {"precision": 1, "recall": 1, '
    '"iou": 1}, "ssc": {"miou": [1], "iou": {}}}}',
    '{"kind": "epoch", "step": 1' + "0" * 400 + ', "epoch": 1}',
]


def test_malformed_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mious=(0.2, 0.4))
    expected = read_history(run)
    path = run / "metrics.jsonl"
    path.write_text("\n".join([*MALFORMED, path.read_text()]))
    history = read_history(run)
    assert (history.steps, history.epochs) == (expected.steps, expected.epochs)
    assert history.num_malformed == len(MALFORMED)
    path.write_text("\n".join([*MALFORMED, "{}"]))
    with pytest.raises(HistoryError, match=f"{len(MALFORMED) + 1} malformed lines"):
        read_history(run)


def test_a_step_with_values_of_any_kind_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mious=(0.2,))
    values = ["1" + "0" * 400, "NaN", "Infinity", '"<script>"', "[]", "null", "true", "-1e300"]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"kind": "step", "step": 11, "loss": {value}, "scene": {value}}}\n' for value in values)
    page = curves_html(read_history(run))
    assert "<script" not in page and "generator, weighted sum (training)" in text_of(page)


def test_table_has_the_columns_of_the_paper() -> None:
    table = table_html({"<best>": make_scores(0.5, tvs=math.nan).to_json()})
    headings = re.findall(r'<th scope="col">([^<]*)</th>', table)
    assert headings == ["", "SC Prec.", "SC Recall", "SC IoU", *CLASS_NAMES[1:], "SSC mIoU"]
    cells = re.findall(r"<td>([^<]*)</td>", table)
    assert cells == ["80.0", "70.0", "60.0", *(["50.0"] * 8), "-", "50.0", "50.0", "50.0"]
    assert '<th scope="row">&lt;best&gt;</th>' in table
