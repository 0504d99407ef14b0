"""The figures of finished runs beside the paper's, as a table."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from ammnet_sparse.experiments.runs import RunPlan, Settings, settings_of
from ammnet_sparse.experiments.tables import Row, Table

_AS_THE_ROW = "as the row"


@dataclasses.dataclass(frozen=True)
class RunScores:
    """A run: validation scores at its best epoch by SSC mIoU and at its last, in percent, None where undefined.

    Attributes:
        epoch: the best one, from 1.
        epochs: those it has ended.
        seconds: of training.
        folder: of the run.
        settings: the keys that differ from the paper's row (``runs.settings_of``).
    """

    seed: int
    epoch: int
    epochs: int
    sc_iou: float | None
    ssc_miou: float | None
    last_sc_iou: float | None
    last_ssc_miou: float | None
    seconds: float
    is_finished: bool
    folder: str
    settings: dict[str, Any]


def scores_of(row: Row, run: RunPlan, *, settings: Settings) -> RunScores | None:
    """The scores of a run of ``row``; None if no epoch was validated yet."""
    history = run.history
    if history is None or history.best is None:
        return None
    best, last = history.best, history.validated[-1]
    return RunScores(
        seed=run.seed,
        epoch=best["epoch"],
        epochs=len(history.epochs),
        sc_iou=best["validation"]["sc"]["iou"],
        ssc_miou=best["validation"]["ssc"]["miou"],
        last_sc_iou=last["validation"]["sc"]["iou"],
        last_ssc_miou=last["validation"]["ssc"]["miou"],
        seconds=sum(line["seconds"] for line in history.epochs),
        is_finished=run.is_finished,
        folder=str(run.folder),
        settings=settings_of(row, run, settings=settings),
    )


def format_table(table: Table, rows: Sequence[tuple[Row, Sequence[RunScores]]]) -> str:
    """Markdown: one line per row, mean and sample standard deviation over the seeds, the paper's figures last.

    Below it stand the settings in which runs differ from the paper's, and the rows that are the same runs.
    """
    lines = [
        f"### {table.title}",
        "",
        "| row | seeds | epochs | SC IoU | SSC mIoU | paper: SC IoU | SSC mIoU |",
        "| --- |" + " --- |" * 6,
    ]
    for row, runs in rows:
        unfinished = sum(not run.is_finished for run in runs)
        seeds = f"{len(runs)}" + (f" ({unfinished} unfinished)" if unfinished else "")
        epochs = sorted({run.epochs for run in runs})
        shown = "-" if not epochs else str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
        cells = [row.title, seeds, shown]
        cells += [_spread([run.sc_iou for run in runs]), _spread([run.ssc_miou for run in runs])]
        cells += ["-" if value is None else f"{value:.1f}" for value in (row.paper_sc_iou, row.paper_ssc_miou)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Percent, on the validation frames at the best epoch by SSC mIoU; mean and deviation over the seeds. The "
        "paper's figures are of the test frames.",
    ]
    for remark in (*_settings_lines([run for _, runs in rows for run in runs]), *_same_runs_lines(rows)):
        lines += ["", remark]
    return "\n".join(lines)


def _settings_lines(runs: Sequence[RunScores]) -> list[str]:
    """The settings in which runs differ from their rows: those of all, then those of some."""
    values = {key: [run.settings.get(key, _AS_THE_ROW) for run in runs] for run in runs for key in run.settings}
    lines = []
    for title, keys in (
        ("Trained with", [key for key, of_runs in values.items() if of_runs.count(of_runs[0]) == len(runs)]),
        ("Not the same in all runs", [key for key, of_runs in values.items() if of_runs.count(of_runs[0]) < len(runs)]),
    ):
        said = ", ".join(f"{key}={' or '.join(dict.fromkeys(map(str, values[key])))}" for key in keys)
        lines += [f"{title}: {said}."] if keys else []
    return lines


def _same_runs_lines(rows: Sequence[tuple[Row, Sequence[RunScores]]]) -> list[str]:
    by_folder: dict[str, list[str]] = {}
    for row, runs in rows:
        for folder in dict.fromkeys(run.folder for run in runs):
            by_folder.setdefault(folder, []).append(row.title)
    same = dict.fromkeys(" = ".join(titles) for titles in by_folder.values() if len(titles) > 1)
    return [f"The same runs, as nothing in them differs: {titles}." for titles in same]


def as_json(table: Table, rows: Sequence[tuple[Row, Sequence[RunScores]]]) -> dict[str, Any]:
    """The same with every run's figures, for files."""
    return {
        "table": table.name,
        "title": table.title,
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "paper_sc_iou": row.paper_sc_iou,
                "paper_ssc_miou": row.paper_ssc_miou,
                "runs": [dataclasses.asdict(run) for run in runs],
            }
            for row, runs in rows
        ],
    }


def _spread(scores: Sequence[float | None]) -> str:
    values = [value for value in scores if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"
