"""The table: the paper's columns, aligned, percent with one decimal."""

import torch

from ammnet_sparse.data.grid import CLASS_NAMES
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.evaluation.tables import format_table


def make_scores(*, sc: tuple[float, float, float], ssc: list[float], miou: float) -> Scores:
    iou = dict(zip(CLASS_NAMES[1:], ssc, strict=True))
    return Scores(1, *sc, iou, miou, confusion=torch.zeros(12, 12), occupancy=torch.zeros(2, 2))


PAPER = make_scores(
    sc=(0.887, 0.845, 0.763),
    ssc=[0.492, 0.942, 0.470, 0.417, 0.524, 0.681, 0.664, 0.464, 0.524, 0.583, 0.411],
    miou=0.561,
)


def test_row_of_the_paper() -> None:
    lines = format_table({"AMMNet": PAPER}).splitlines()
    cells = [[part for part in block.split()] for block in lines[-1].split("|")]
    assert cells == [
        ["AMMNet"],
        ["88.7", "84.5", "76.3"],
        ["49.2", "94.2", "47.0", "41.7", "52.4", "68.1", "66.4", "46.4", "52.4", "58.3", "41.1", "56.1"],
    ]
    headings = [block.split() for block in lines[1].split("|")]
    assert headings == [
        ["Method"],
        ["Prec.", "Recall", "IoU"],
        ["ceil.", "floor", "wall", "win.", "chair", "bed", "sofa", "table", "TVs", "furn.", "objs.", "avg."],
    ]
    assert [title.strip() for title in lines[0].split("|")][1:] == [
        "Scene completion",
        "Semantic scene completion (IoU)",
    ]
