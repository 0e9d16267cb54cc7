"""Figures of metrics against a key that runs differ in, such as a damping or a budget: a line per other combination."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdaexp.metrics.axes import Axis
from tdaexp.report.figures import GREY, INK, fit_y, grid, legend_under, look

METRICS = {"heldout": "retrieval accuracy", "mrr": "MRR", "recall": "recall@k"}
RANKING = {"rank_correlation": "rank correlation"}
LOG = 20  # from this ratio on of the largest value to the least, the axis is logarithmic
LEVELS = {"BM25": "-.", "random": ":"}


def against(table: pd.DataFrame, axis: Axis) -> Figure | None:
    """The metrics that the table has against the key, a column for each query set; None where no line is left of it.

    `table` holds the rows that compare (one section of each query set); the rows of an axis that it lacks are left out.
    """
    known = set(table["method"])
    lines = {name: [point for point in points if point[1] in known] for name, points in axis.lines.items()}
    lines = {name: points for name, points in lines.items() if len({value for value, _ in points}) > 1}
    metrics = RANKING if table.attrs.get("reference") else METRICS
    metrics = {name: title for name, title in metrics.items() if table[name].notna().any()}
    if not lines or not metrics:
        return None
    sets = list(dict.fromkeys(table["query_set"]))
    with grid(len(metrics), len(sets), width=5.2, height=2.6, sharex=True) as (figure, cells):
        for row, (metric, title) in zip(cells, metrics.items(), strict=True):
            for axes, name in zip(row, sets, strict=True):
                part = table[table["query_set"] == name].set_index("method")
                _draw(axes, part, metric, lines)
                axes.set(ylabel=title.replace("@k", f"@{table.attrs.get('top_k', 'k')}") if name == sets[0] else "")
        for axes, name in zip(cells[0], sets, strict=True):
            axes.set(title=f"{name} queries")
        for axes in cells[-1]:
            axes.set(xlabel=axis.key)
            _scale(axes, sorted({value for points in lines.values() for value, _ in points}))
        legend_under(figure, cells.flat)
        return figure


def _draw(axes: Axes, part: pd.DataFrame, metric: str, lines: dict[str, list[tuple[float, str]]]) -> None:
    shown = []
    for place, (name, points) in enumerate(lines.items()):
        mine = part.loc[[label for _, label in points if label in part.index]]
        values = [value for value, label in points if label in part.index]
        low, high = mine[f"{metric}_low"], mine[f"{metric}_high"]
        errors = [(mine[metric] - low).fillna(0).clip(lower=0), (high - mine[metric]).fillna(0).clip(lower=0)]
        axes.errorbar(values, mine[metric], yerr=errors, label=name, capsize=2, markersize=4.5, **look(place))
        shown += [mine[metric], low, high]
    for control, style in LEVELS.items():
        found = part.loc[part["control"] == control, metric].dropna()
        if len(found):
            colour = INK if control == "BM25" else GREY
            axes.axhline(found.iloc[0], color=colour, linestyle=style, linewidth=1.1, label=control, zorder=1)
            shown.append(found)
    every = pd.concat(shown).dropna()
    fit_y(axes, every.min(), every.max())


def _scale(axes: Axes, values: list[float]) -> None:
    """Ticks at the values that were run; logarithmic where they span much."""
    if values[0] > 0 and values[-1] >= LOG * values[0]:
        axes.set_xscale("log")
    axes.minorticks_off()
    step = max(1, -(-len(values) // 6))
    axes.set_xticks(values[::step], [f"{value:g}" for value in values[::step]])
