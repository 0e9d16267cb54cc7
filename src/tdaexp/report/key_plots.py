"""Figures of metrics against a key that runs differ in, such as a damping or a budget: a line per other combination."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdaexp.metrics.axes import Axis
from tdaexp.report.figures import GREY, INK, fit_y, grid, legend_under, look

METRICS = {"heldout": "retrieval accuracy", "mrr": "MRR", "recall": "recall@k"}
RANKING = {"rank_correlation": "rank correlation"}
RANGES = {"rank_correlation": (-1.0, 1.0)}  # of the others 0 to 1: what intervals have beyond is cut off
DODGE = 0.25  # of the least distance of two values: so far apart stand the lines that have points at one value
LOG = 20  # from this ratio on of the largest value to the least, the axis is logarithmic
LEVELS: dict[str, dict[str, Any]] = {
    "BM25": {"color": INK, "linestyle": "-."},
    "random": {"color": GREY, "linestyle": ":"},
}
MOST = 4  # methods without the key that are drawn as levels; of more, none is: they stand in the table


def against(table: pd.DataFrame, axis: Axis) -> Figure | None:
    """The metrics that the table has against the key, a column for each query set; None where no line is left of it.

    `table` holds the rows that compare (one section of each query set); the rows of an axis that it lacks are left out.
    Controls, and methods without the key where they are few, are levels.
    """
    known = set(table["method"])
    lines = {name: [point for point in points if point[1] in known] for name, points in axis.lines.items()}
    lines = {name: points for name, points in lines.items() if len({value for value, _ in points}) > 1}
    metrics = RANKING if table.attrs.get("reference") else METRICS
    metrics = {name: title for name, title in metrics.items() if table[name].notna().any()}
    if not lines or not metrics:
        return None
    apart = [label for label in axis.without if (table.loc[table["method"] == label, "control"] == "").any()]
    levels = apart if len(apart) <= MOST else []
    sets = list(dict.fromkeys(table["query_set"]))
    values = sorted({value for points in lines.values() for value, _ in points})
    log = logarithmic(values)
    with grid(len(metrics), len(sets), width=5.2, height=2.6, sharex=True) as (figure, cells):
        for row, (metric, title) in zip(cells, metrics.items(), strict=True):
            for axes, name in zip(row, sets, strict=True):
                part = table[table["query_set"] == name].set_index("method")
                _draw(axes, part, metric, lines, log)
                _levels(axes, part[metric], levels, len(lines))
                axes.set(ylabel=title.replace("@k", f"@{table.attrs.get('top_k', 'k')}") if name == sets[0] else "")
        for axes, name in zip(cells[0], sets, strict=True):
            axes.set(title=f"{name} queries")
        for axes in cells[-1]:
            axes.set(xlabel=axis.key)
            _ticks(axes, values, log)
        legend_under(figure, cells.flat)
        return figure


def _draw(axes: Axes, part: pd.DataFrame, metric: str, lines: dict[str, list[tuple[float, str]]], log: bool) -> None:
    shown = []
    for (name, points), places in zip(lines.items(), dodged(lines, log), strict=True):
        there = [place for place, (_, label) in enumerate(points) if label in part.index]
        mine = part.loc[[points[place][1] for place in there], [metric, f"{metric}_low", f"{metric}_high"]]
        value, low, high = mine.to_numpy(float).T
        errors = np.nan_to_num(np.maximum([value - low, high - value], 0))  # one run has no interval
        style = look(list(lines).index(name))
        axes.errorbar(places[there], value, yerr=errors, label=name, capsize=2, markersize=4.5, **style)
        shown += [value, low, high]
    for control, style in LEVELS.items():
        found = part.loc[part["control"] == control, metric].dropna().to_numpy(float)
        if len(found):
            axes.axhline(found[0], linewidth=1.1, label=control, zorder=1, **style)
            shown.append(found)
    every = np.clip(np.concatenate(shown), *RANGES.get(metric, (0.0, 1.0)))
    fit_y(axes, float(np.nanmin(every)), float(np.nanmax(every)))


def _levels(axes: Axes, values: pd.Series, labels: list[str], lines: int) -> None:
    """Methods without the key, in the colours behind those of the lines, inside the axes that these have."""
    for place, label in enumerate(labels, start=lines):
        if label in values.index and values[label] == values[label]:
            style = {"color": look(place)["color"], "linestyle": "--", "linewidth": 1.1, "zorder": 1}
            axes.axhline(values[label], label=label, **style)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, values[label] - 0.02), max(high, values[label] + 0.02))


def logarithmic(values: Iterable[float]) -> bool:
    """Whether the values span much."""
    least, largest = min(values := list(values)), max(values)
    return least > 0 and largest >= LOG * least


def dodged(lines: dict[str, list[tuple[float, str]]], log: bool) -> list[np.ndarray]:
    """Values of each line's points, moved a little aside so that intervals at one value stand beside each other."""
    to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    values = [to(np.array([value for value, _ in points])) for points in lines.values()]
    gap = np.diff(np.unique(np.concatenate(values))).min()
    aside = DODGE * gap * (np.arange(len(values)) - (len(values) - 1) / 2) / max(len(values) - 1, 1)
    return [np.asarray(back(one + move)) for one, move in zip(values, aside, strict=True)]


def _ticks(axes: Axes, values: list[float], log: bool) -> None:
    """Ticks at the values that were run."""
    if log:
        axes.set_xscale("log")
    axes.minorticks_off()
    step = max(1, -(-len(values) // 6))
    axes.set_xticks(values[::step], [f"{value:g}" for value in values[::step]])
