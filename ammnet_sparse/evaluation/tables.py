"""Scores as the paper's table: one row per method, scene completion left, semantic scene completion right."""

import math
from collections.abc import Mapping, Sequence

from ammnet_sparse.evaluation.metrics import Scores

_SC_HEADINGS = ("Prec.", "Recall", "IoU")
_ABBREVIATIONS = {"ceiling": "ceil.", "window": "win.", "tvs": "TVs", "furniture": "furn.", "objects": "objs."}
_COLUMN_WIDTH = 6
"""Least width; longer names of classes widen all columns."""


def format_table(rows: Mapping[str, Scores]) -> str:
    """Table with the columns of the paper's Tables 1 and 2, percent with one decimal, '-' if undefined.

    Args:
        rows: name of the method to its scores, in the order of printing, all of the same classes.

    Returns:
        Lines of equal length joined by newlines, without one at the end.
    """
    if not rows:
        raise ValueError("rows: expected at least one method with its scores, found none")
    rows = {scores.named(name): scores for name, scores in rows.items()}
    classes = list(next(iter(rows.values())).ssc_iou)
    ssc_headings = [*(_ABBREVIATIONS.get(name, name) for name in classes), "avg."]
    width = max(_COLUMN_WIDTH, *(len(heading) for heading in ssc_headings))
    name_width = max(len("Method"), *(len(name) for name in rows))

    def line(name: str, sc_cells: Sequence[str], ssc_cells: Sequence[str]) -> str:
        blocks = (" ".join(cell.rjust(width) for cell in cells) for cells in (sc_cells, ssc_cells))
        return " | ".join((name.ljust(name_width), *blocks))

    headings = line("Method", _SC_HEADINGS, ssc_headings)
    lines = [
        _group_line(name_width, len(_SC_HEADINGS), len(ssc_headings), width=width),
        headings,
        "".join("+" if character == "|" else "-" for character in headings),
    ]
    for name, scores in rows.items():
        sc_values = (scores.sc_precision, scores.sc_recall, scores.sc_iou)
        ssc_values = (*(scores.ssc_iou[class_name] for class_name in classes), scores.ssc_miou)
        lines.append(line(name, [_cell(value) for value in sc_values], [_cell(value) for value in ssc_values]))
    return "\n".join(lines)


def _group_line(name_width: int, num_sc: int, num_ssc: int, *, width: int) -> str:
    """The line above the headings that names the two blocks."""
    titles = (("Scene completion", num_sc), ("Semantic scene completion (IoU)", num_ssc))
    blocks = (title.center(count * (width + 1) - 1) for title, count in titles)
    return " | ".join((" " * name_width, *blocks))


def _cell(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100.0 * fraction:.1f}"
