"""Several training runs side by side: curves over each other, best scores, and the keys that differ."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ammnet_sparse.config import Config, flat_plain
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.pictures.history import (
    History,
    add_legend,
    draw_epochs,
    legend_name,
    new_figure,
    rows_html,
    svg,
    table_html,
)

_COLORS = ("#1d5fbf", "#c2410c", "#2b8a3e", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f")
_SCORES = (("SC IoU", ("sc", "iou")), ("SSC mIoU", ("ssc", "miou")))
_PARTS = (("validation", "-", "o"), ("training", "--", ""))
"""The key of an epoch's scores, with line style and marker."""


def comparison_html(histories: Mapping[str, History], configs: Mapping[str, Config]) -> str:
    """The comparison of runs by name: curves, a table of the best epoch of each, and the keys that differ."""
    named = _named(histories)
    figures = [_score_figure(named, title, keys) for title, keys in _SCORES]
    figures.append(_loss_figure(named))
    parts = ["<h2>Validation and training</h2>", '<div class="curves">' + "\n".join(figures) + "</div>"]
    parts.append("<p>Solid: validation, at the end of an epoch. Dashed: the predictions that the epoch trained on.</p>")
    rows = {
        f"{name}, epoch {history.best['epoch']}": history.best["validation"]
        for name, history in histories.items()
        if history.best is not None
    }
    if rows:
        parts += ["<h2>Best epochs, percent</h2>", table_html(rows)]
    missing = [name for name, history in histories.items() if history.best is None]
    if missing:
        parts.append(f"<p>No validation yet: {html.escape(', '.join(missing))}.</p>")
    parts += ["<h2>What differs</h2>", _differences_html(configs)]
    return "\n".join(parts)


def differing_keys(configs: Mapping[str, Config]) -> dict[str, list[Any]]:
    """Configuration keys whose values differ, with the value of each run in order."""
    flat = [flat_plain(config.model_dump(mode="json")) for config in configs.values()]
    keys = sorted(set().union(*flat))
    values = {key: [config.get(key) for config in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def plot_scores(histories: Mapping[str, History], path: Path) -> None:
    """Writes the scores of runs over their epochs, training dashed (Figure 2(b) of the paper), as png, pdf or svg."""
    histories = _named(histories)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, 2), _SCORES, strict=True):
        _draw_scores(axes, histories, keys)
        axes.set(title=f"{title}, percent", xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    lines = [line for history in histories.values() for line in history.epochs]
    runs = [
        axes.plot([], [], color=_COLORS[index % len(_COLORS)], linewidth=3, label=legend_name(name))[0]
        for index, name in enumerate(histories)
    ]
    parts = [
        axes.plot([], [], style, color="black", marker=marker, markersize=4, label=part)[0]
        for part, style, marker in _PARTS
        if any(part in line for line in lines)
    ]
    add_legend(figure, [*runs, *parts], columns=5)
    with replacing_open(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix.removeprefix("."))


def _named(histories: Mapping[str, History]) -> dict[str, History]:
    """With names that say which validation frames were scored, if not all."""
    return {f"{name} ({run.subset})" if run.subset else name: run for name, run in histories.items()}


def _score_figure(histories: Mapping[str, History], title: str, keys: Sequence[str]) -> str:
    figure, axes = new_figure(f"{title} in percent")
    _draw_scores(axes, histories, keys)
    axes.set_xlabel("epoch")
    return svg(figure, axes, f"{title} of the runs over their epochs")


def _draw_scores(axes: Axes, histories: Mapping[str, History], keys: Sequence[str]) -> None:
    for index, (name, history) in enumerate(histories.items()):
        color = _COLORS[index % len(_COLORS)]
        for part, style, marker in _PARTS:
            label = legend_name(name) if part == "validation" or not history.validated else ""
            draw_epochs(
                axes,
                history.epochs,
                (part, *keys),
                label=label or f"_{name}",
                color=color,
                marker=marker,
                style=style,
                over="epoch",
            )


def _loss_figure(histories: Mapping[str, History]) -> str:
    figure, axes = new_figure("Scene cross-entropy")
    for index, (name, history) in enumerate(histories.items()):
        color = _COLORS[index % len(_COLORS)]
        for key, style, label in (("validation_scene", "-", legend_name(name)), ("scene", "--", f"_{name}")):
            draw_epochs(axes, history.epochs, (key,), label=label, color=color, marker="", style=style, over="epoch")
    axes.set_xlabel("epoch")
    return svg(figure, axes, "Scene cross-entropy of the runs over their epochs")


def _differences_html(configs: Mapping[str, Config]) -> str:
    differences = differing_keys(configs)
    if not differences:
        return "<p>All keys of the configurations are equal.</p>"
    return rows_html(configs, {key: [str(value) for value in values] for key, values in differences.items()})
