"""The leaderboard as tables, a figure of accuracy against cost, and a page in Markdown."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, BboxBase
from scipy import stats

from tdaexp.metrics.best_first import LOWER, best_first
from tdaexp.metrics.retrained import CEILING
from tdaexp.report.figures import GREY, INK, PALETTE, grid
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.retrained_words import TITLES
from tdaexp.report.tables import number, seconds, with_interval

PLACE = ["subject", "query_set", "metric"]
MAIN = "lds_same"
ASIDE = {(5, 4): "left", (5, -10): "left", (-5, 4): "right", (-5, -10): "right", (0, 9): "center", (0, -15): "center"}
"""Where a point's name may stand, in points from it."""
CAPTION = (
    "Linear datamodeling score (same start) against what a method's run took, each method at its best setting. "
    "Dashed: the methods that no other beats in both; names for which there is no room are in the table."
)


def leaderboard_findings(rows: pd.DataFrame, confidence: float = 0.95) -> Findings:
    """From the rows of all cells (`app.leaderboard.board.COLUMNS`) to tables, the figure and what failed."""
    table = aggregated(rows, confidence)
    failed = rows[rows["failed"] != ""]
    values = {f"{one.subject}/{one.query_set}/{one.metric}/{one.method}": one.value for one in table.itertuples()}
    statements = [
        Statement(f"{row.subject}: {row.method} {row.setting}".rstrip(), f"Not judged: {row.failed}", "open")
        for row in failed.itertuples()
    ]
    drawings = [Drawing("pareto", CAPTION, pareto(table), wide=True)] if (table["metric"] == MAIN).any() else []
    return Findings("Leaderboard", values, {"leaderboard": table, "cells": rows}, drawings, statements)


def aggregated(rows: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """One row for each subject, query set, metric and method, at its best setting (`_best`); the best method first.

    Columns: those of `PLACE`, `method`, `setting` of the best, `value`, `low`, `high`, `default` (the value at the
    method's defaults), `seeds`, `queries`, `cost_seconds`. Of several seeds the mean and Student's interval over them,
    of one that of the metric itself.
    """
    found = []
    judged = rows[rows["failed"] == ""]
    for place, part in judged.groupby(PLACE, sort=False):
        for method, every in part.groupby("method", sort=False):
            of_setting = {str(name): cells for name, cells in every.groupby("setting", sort=False)}
            best = _best(of_setting, lower=place[-1] in LOWER)
            default = float(of_setting[""]["value"].mean()) if "" in of_setting else math.nan
            found.append({**dict(zip(PLACE, place, strict=True)), "method": method, "setting": best,
                          **_over_seeds(of_setting[best], confidence), "default": default})  # fmt: skip
    columns = [*PLACE, "method", "setting", "value", "low", "high", "default", "seeds", "queries", "cost_seconds"]
    table = pd.DataFrame(found, columns=columns)
    parts = [best_first(part) for _, part in table.groupby("subject", sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else table


def _best(of_setting: dict[str, pd.DataFrame], lower: bool) -> str:
    """The setting with the best mean, of those that were judged with the most seeds."""
    most = max(len(cells) for cells in of_setting.values())
    means = {name: cells["value"].mean() for name, cells in of_setting.items() if len(cells) == most}
    return min(means, key=lambda name: means[name] if lower else -means[name])


def _over_seeds(cells: pd.DataFrame, confidence: float) -> dict[str, float]:
    values, count = cells["value"].to_numpy(dtype=float), len(cells)
    told = {"value": float(values.mean()), "seeds": count, "queries": int(cells["queries"].min()),
            "cost_seconds": float(cells["cost_seconds"].mean())}  # fmt: skip
    if count == 1:
        return told | {"low": float(cells["low"].iloc[0]), "high": float(cells["high"].iloc[0])}
    half = stats.t.ppf((1 + confidence) / 2, count - 1) * values.std(ddof=1) / math.sqrt(count)
    return told | {"low": told["value"] - half, "high": told["value"] + half}


def front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Places of the methods that no other beats in both cost (less) and value (more), by cost."""
    order = np.lexsort((-value, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], value[order][:-1]]))
    return order[value[order] > best]


def pareto(table: pd.DataFrame) -> Figure:
    """A panel for each subject: value against cost, with the front."""
    mine = table[(table["metric"] == MAIN) & (table["method"] != CEILING)]
    subjects = list(dict.fromkeys(zip(mine["subject"], mine["query_set"], strict=True)))
    columns = min(2, len(subjects))
    with grid(math.ceil(len(subjects) / columns), columns, 5.4, 4.0) as (figure, panels):
        for axes in panels.flat[len(subjects) :]:
            axes.set_visible(False)
        parts = []
        for axes, (subject, query_set) in zip(panels.flat, subjects, strict=False):
            part = mine[(mine["subject"] == subject) & (mine["query_set"] == query_set)].dropna(subset="cost_seconds")
            parts.append(_panel(axes, part))
            axes.set_title(f"{subject} · {query_set}")
        figure.draw_without_rendering()  # panels lie where they will
        for axes, (names, points) in zip(panels.flat, parts, strict=False):
            _name(axes, names, points)
        return figure


def _panel(axes: Axes, part: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Draw a panel; returns the methods and their points [N, 2], those of the front first."""
    cost, value = part["cost_seconds"].to_numpy(dtype=float).clip(1e-3), part["value"].to_numpy(dtype=float)
    errors = np.stack([value - part["low"], part["high"] - value]).clip(0)
    axes.errorbar(cost, value, yerr=errors, fmt="o", color=PALETTE[0], ecolor=GREY, markersize=4, capsize=2)
    best = front(cost, value)
    axes.plot(cost[best], value[best], color=INK, linestyle="--", linewidth=1, zorder=1)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xscale="log", xlabel="seconds of the run, training aside", ylabel=TITLES[MAIN])
    axes.margins(x=0.15)
    order = [*best, *sorted(set(range(len(part))) - set(best))]
    return [str(name) for name in part["method"].iloc[order]], np.column_stack([cost, value])[order]


def _name(axes: Axes, names: list[str], points: np.ndarray) -> None:
    """Name points [N, 2] in this order, each beside itself where there is room: no name lies on another, or a point."""
    taken: list[Bbox] = []
    places = axes.transData.transform(points)
    for name, point in zip(names, points, strict=True):
        for aside, side in ASIDE.items():
            text = axes.annotate(name, tuple(point), aside, textcoords="offset points", fontsize=8, ha=side)
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and not box.count_contains(places) and _within(box, axes.bbox):
                taken.append(box)
                break
            text.remove()


def _within(box: Bbox, panel: BboxBase) -> bool:
    return bool(panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1)


def markdown(table: pd.DataFrame) -> str:
    """The table's parts as Markdown, one for each subject and metric."""
    lines = []
    for (subject, query_set, metric), part in table.groupby(PLACE, sort=False):
        lines += [f"### {subject}, {query_set}: {TITLES.get(str(metric), metric)}", ""]
        lines += [
            "| method | setting | value | at its defaults | cost | seeds | queries |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in part.itertuples():
            value = with_interval(row.value, row.low, row.high)
            own = ["" if row.method == CEILING else one for one in (row.setting or "defaults", number(row.default))]
            cells = [row.method, own[0], value, own[1], seconds(row.cost_seconds), row.seeds, row.queries]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    return "\n".join(lines)
