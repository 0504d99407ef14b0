"""The figures of finished runs beside the paper's, as a table."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from ammnet_sparse.experiments.runs import RunPlan
from ammnet_sparse.experiments.tables import Row, Table


@dataclasses.dataclass(frozen=True)
class RunScores:
    """Validation scores of one run at its best epoch by SSC mIoU, in percent, None where undefined; and its cost."""

    seed: int
    epoch: int
    epochs: int
    sc_iou: float | None
    ssc_miou: float | None
    last_sc_iou: float | None
    last_ssc_miou: float | None
    seconds: float
    is_finished: bool


def scores_of(plan: RunPlan) -> RunScores | None:
    """The scores of a run; None if no epoch was validated yet."""
    history = plan.history
    if history is None or history.best is None:
        return None
    best, last = history.best, history.validated[-1]
    return RunScores(
        seed=plan.seed,
        epoch=best["epoch"],
        epochs=len(history.epochs),
        sc_iou=best["validation"]["sc"]["iou"],
        ssc_miou=best["validation"]["ssc"]["miou"],
        last_sc_iou=last["validation"]["sc"]["iou"],
        last_ssc_miou=last["validation"]["ssc"]["miou"],
        seconds=sum(line["seconds"] for line in history.epochs),
        is_finished=plan.is_finished,
    )


def format_table(table: Table, rows: Sequence[tuple[Row, Sequence[RunScores]]]) -> str:
    """Markdown: one line per row, mean and sample standard deviation over the seeds, the paper's figures last."""
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
    return "\n".join(lines)


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
