"""The metrics.jsonl of a training run: reading, curves and tables."""

import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ammnet_sparse.data.set_info import CLASS_NAME, MOST_CLASSES, NYU
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import FileError, printable
from ammnet_sparse.pictures.palettes import Palette, painted

METRICS = "metrics.jsonl"
_MOST_POINTS, _COURSE_POINTS = 300, 30
_MOST_BYTES = 2**30
_LEGEND_HEIGHT = 0.5
"""Inches that a figure has for its legend."""
_LARGEST_COUNT, _LARGEST = 2**53, 1e30
"""Larger numbers cannot be counts or losses of a run and are not drawn."""
_SC_COLUMNS = (("Prec.", "precision"), ("Recall", "recall"), ("IoU", "iou"))


class HistoryError(FileError):
    """A folder that is not a run, or a run without metrics; the message names it and says what to do."""


@dataclass(frozen=True)
class History:
    """Lines of ``metrics.jsonl``, as ``training/records.py`` writes them.

    Attributes:
        steps: one mapping per update: ``step`` from 1, ``epoch`` from 1, and losses by name.
        epochs: one per epoch: ``epoch``, ``step``, mean losses of training by name, ``validation`` if there was
            one: scores in percent as in ``Scores.to_json``. If the run recorded them: ``training``, the same
            scores of the training frames, and ``validation_scene``, the scene's cross-entropy on validation frames.
        num_malformed: lines in another form, which were skipped; the last line may still be being written.
    """

    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    num_malformed: int = 0

    @property
    def validated(self) -> list[dict[str, Any]]:
        """The epochs with a validation."""
        return [line for line in self.epochs if "validation" in line]

    @property
    def subset(self) -> str:
        """Which validation frames were scored, if not all (``Scores.subset``)."""
        return str(self.validated[-1]["validation"].get("subset", "")) if self.validated else ""

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch of the best weights: the first of the highest validation SSC mIoU; None before the first one."""
        return max(self.validated, key=lambda line: line["validation"]["ssc"]["miou"] or 0.0, default=None)


def read_history(run: str | Path) -> History:
    """The metrics of the run in a folder, also of one that is still training.

    Raises:
        HistoryError: no folder, no run in it, or nothing recorded so far.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise HistoryError(f"{folder}: expected the folder of a training run, found no folder; check the path")
    path = folder / METRICS
    if not path.is_file():
        raise HistoryError(
            f"{folder}: expected a training run with {METRICS}, found none; name the folder of a training run"
        )
    lines: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": []}
    texts = read_text(path, what="metrics", most=_MOST_BYTES, raises=HistoryError).splitlines()
    num_malformed = 0
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            num_malformed += number < len(texts)  # the last line of a run that was interrupted, or is still writing
            continue
        if _is_line(line):
            lines[line["kind"]].append(line)
        else:
            num_malformed += 1
    if not lines["step"] and not lines["epoch"]:
        found = f"{num_malformed} malformed lines" if num_malformed else "none yet"
        raise HistoryError(f"{path}: expected metrics, found {found}; they come with the first training step")
    return History(lines["step"], lines["epoch"], num_malformed)


def _is_line(line: Any) -> bool:
    """Whether a line has the values that the page reads, in the types that ``training/records.py`` writes."""
    if not isinstance(line, dict) or line.get("kind") not in ("step", "epoch") or not _is_count(line.get("step")):
        return False
    if line["kind"] == "step":
        return True
    scores = [line[name] for name in ("validation", "training") if name in line]
    return _is_count(line.get("epoch")) and all(_are_scores(value) for value in scores)


def _are_scores(value: Any) -> bool:
    """Whether this is what ``Scores.to_json`` gives."""
    if not isinstance(value, dict) or not _is_count(value.get("frames")):
        return False
    sc, ssc = value.get("sc"), value.get("ssc")
    if not isinstance(sc, dict) or not isinstance(ssc, dict) or not isinstance(ssc.get("iou"), dict):
        return False
    if not isinstance(value.get("subset", ""), str):
        return False
    numbers = [*(sc.get(key, "") for _, key in _SC_COLUMNS), ssc.get("miou", ""), *ssc["iou"].values()]
    return all(number is None or _is_number(number) for number in numbers)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT


def curves_html(history: History, *, palette: Palette = "set") -> str:
    """Figures of losses and scores over the steps, as SVG within HTML."""
    figures = [_loss_figure(history)]
    if any("discriminator" in line for line in history.steps):
        figures.append(_game_figure(history))
    if history.validated:
        figures += [_score_figure(history), _class_figure(history, palette)]
    return '<div class="curves">' + "\n".join(figures) + "</div>"


def table_html(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with the paper's columns: name of a row to its scores in percent, as in ``Scores.to_json``."""
    names = _class_names(rows.values())
    cells = {}
    for name, scores in rows.items():
        values = [scores["sc"][key] for _, key in _SC_COLUMNS]
        values += [scores["ssc"]["iou"].get(class_name) for class_name in names]
        named = f"{name} ({scores['subset']})" if scores.get("subset") else name
        cells[named] = [_percent(value) for value in (*values, scores["ssc"]["miou"])]
    return rows_html([*(f"SC {title}" for title, _ in _SC_COLUMNS), *names, "SSC mIoU"], cells)


def rows_html(headings: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A table that scrolls: headings of its columns, and names of its rows with their cells; plain text."""
    lines = ["".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in ("", *headings))]
    for name, cells in rows.items():
        texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f'<th scope="row">{html.escape(name)}</th>{texts}')
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table>{body}</table></div>'


def _class_names(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """The classes that scores have, as ``Scores.to_json`` gives them; what cannot be a class is left out."""
    names = dict.fromkeys(name for entry in scores for name in entry["ssc"]["iou"])
    return [name for name in names if re.fullmatch(CLASS_NAME, name)][:MOST_CLASSES]


def _loss_figure(history: History) -> str:
    figure, axes = new_figure("Loss")
    for name, label, color in (
        ("loss", "generator, weighted sum (training)", "#9aa3ae"),
        ("scene", "scene cross-entropy (training)", "#1d5fbf"),
        ("lovasz", "Lovász-softmax of the scene (training)", "#7c3aed"),
        ("image", "image cross-entropy (training)", "#2b8a3e"),
    ):
        _draw_steps(axes, history, name, label=label, color=color)
    draw_epochs(
        axes,
        history.epochs,
        ("validation_scene",),
        label="scene cross-entropy (validation)",
        color="#c2410c",
        marker="o",
    )
    return svg(figure, axes, "Losses over the steps")


def _game_figure(history: History) -> str:
    figure, axes = new_figure("Adversarial game (logarithmic)")
    _draw_steps(axes, history, "discriminator", label="discriminator, sum of its cross-entropies", color="#7c3aed")
    _draw_steps(axes, history, "adversarial", label="generator's adversarial loss", color="#c2410c")
    _draw_steps(axes, history, "gradient_penalty", label="discriminator's gradient penalty", color="#2b8a3e")
    axes.set_yscale("log")
    return svg(figure, axes, "Losses of the adversarial game over the steps")


def _score_figure(history: History) -> str:
    figure, axes = new_figure("IoU in percent")
    for part, key, label, color in (("sc", "iou", "SC IoU", "#1d5fbf"), ("ssc", "miou", "SSC mIoU", "#c2410c")):
        keys = (part, key)
        draw_epochs(axes, history.epochs, ("validation", *keys), label=f"{label} (validation)", color=color, marker="o")
        draw_epochs(
            axes, history.epochs, ("training", *keys), label=f"{label} (training)", color=color, marker="", style="--"
        )
    best = history.best
    axes.set(xlim=(0, None), ylim=(0, None))
    if best is not None:
        axes.axvline(best["step"], color="#9aa3ae", linestyle=":", label=f"best weights, epoch {best['epoch']}")
    return svg(figure, axes, "Scores over the steps")


def _class_figure(history: History, palette: Palette) -> str:
    colors = painted(NYU, palette).classes
    figure, axes = new_figure("IoU of each class in percent (validation)")
    for index, name in enumerate(_class_names(line["validation"] for line in history.validated)):
        keys = ("validation", "ssc", "iou", name)
        color = "#{:02x}{:02x}{:02x}".format(*colors[name]) if name in colors else f"C{index % 10}"
        draw_epochs(axes, history.epochs, keys, label=name, color=color, marker="o")
    axes.set(xlim=(0, None), ylim=(0, None))
    return svg(figure, axes, "Scores of each class over the steps", legend_columns=4)


def legend_name(name: str) -> str:
    """A name as a legend shows it: printable, and without the underscore in front that would hide it."""
    return f" {printable(name)}" if name.startswith("_") else printable(name)


def new_figure(title: str) -> tuple[Figure, Axes]:
    """An empty figure of the page."""
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_steps(axes: Axes, history: History, name: str, *, label: str, color: str) -> None:
    """A value of every step, pale, and its moving mean; averaging also keeps the page small."""
    points = [(line["step"], line[name]) for line in history.steps if _is_number(line.get(name))]
    if not points:
        return
    for most_points, style in ((_MOST_POINTS, {"alpha": 0.3, "linewidth": 0.8}), (_COURSE_POINTS, {"label": label})):
        stretches = np.array_split(np.array(points, dtype=np.float64), min(len(points), most_points))
        step, value = np.array([stretch.mean(0) for stretch in stretches]).T
        axes.plot(step, value, color=color, **style)


def draw_epochs(
    axes: Axes,
    epochs: Iterable[Mapping[str, Any]],
    keys: Sequence[str],
    *,
    label: str,
    color: str,
    marker: str,
    style: str = "-",
    over: str = "step",
) -> None:
    """Draws a value of every epoch that has it, given by its keys, over ``step`` or ``epoch``."""
    points = []
    for line in epochs:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if _is_number(value):
            points.append((line[over], value))
    if points:
        step, values = zip(*points, strict=True)
        axes.plot(step, values, style, label=label, color=color, marker=marker, markersize=4, linewidth=1.6)


def svg(figure: Figure, axes: Axes, description: str, *, legend_columns: int = 2) -> str:
    """A figure as SVG within HTML; ``description`` is its alternative text."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        add_legend(figure, handles, columns=legend_columns)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(file, format="svg", metadata=nothing)
    picture = file.getvalue()
    start = picture.index("<svg")
    # SVG within HTML needs no namespace declarations; without them the page contains no URL at all.
    picture = re.sub(r' xmlns(:xlink)?="[^"]*"', "", picture)
    return f'<svg role="img" aria-label="{html.escape(description)}"' + picture[start + len("<svg") :]


def add_legend(figure: Figure, handles: Sequence[Artist], *, columns: int) -> None:
    """A legend below the axes, within the figure: in fewer columns if needed, and with names that lose their middle.

    The figure becomes higher if the legend is, so that the axes do not shrink.
    """
    for count in range(columns, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=count, fontsize=8.5, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # names may hold $
        width = legend.get_window_extent().width
        if width <= figure.bbox.width or count == 1:
            break
        legend.remove()
    texts = legend.get_texts()
    room = figure.bbox.width - width + max(text.get_window_extent().width for text in texts)
    for text in texts:
        name, kept = text.get_text(), len(text.get_text()) // 2
        while (width := text.get_window_extent().width) > room:
            kept = min(kept - 1, int(kept * room / width))
            text.set_text(f"{name[:kept]}…{name[-kept:]}")
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + max(height - _LEGEND_HEIGHT, 0))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # false for NaN


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
