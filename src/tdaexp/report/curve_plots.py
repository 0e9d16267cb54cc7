"""Figures that compare methods: greedy curves against projection and controls, accuracies with intervals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdaexp.metrics.selection import ComponentStudy
from tdaexp.report.figures import (
    GREY,
    HELD_OUT,
    INK,
    PALETTE,
    PROJECT,
    SELECT,
    fit_y,
    fold,
    legend_under,
    legends_below,
    level,
    panels,
    percent,
    share_axis,
)
from tdaexp.report.tables import complete, runs_of

NAME = 34  # letters of a line of a method's name
Studies = dict[str, ComponentStudy]


def accuracy_curve(studies: Studies, table: pd.DataFrame) -> Figure:
    """Accuracy against the share of parameters along the greedy order, in-sample and held out (figure 4).

    Selections (held out) and projections in `table` (from `compare`) stand on the same axes as points, full
    gradient and controls as lines.
    """
    with panels(len(studies), height=4.3) as (figure, row):
        for axes, (name, study) in zip(row, studies.items(), strict=True):
            curve, mine = study.curves["accuracy"], table[table["query_set"] == name]
            _curve(axes, curve.share, curve.accuracy, SELECT, "greedy, queries used to select")
            _curve(axes, curve.held_out_share, curve.held_out, HELD_OUT, "greedy, held-out queries")
            points = [_selections(axes, mine, "heldout", HELD_OUT, ", held out"), _projections(axes, mine, "accuracy")]
            shown = [curve.accuracy, curve.held_out, *points]
            low, high = np.nanmin(np.concatenate(shown)), np.nanmax(np.concatenate(shown))
            low, high = min(low, study.full), max(high, study.full)
            low, high = _including_near(low, high, _control(mine, "BM25"))
            fit_y(axes, low, high)
            level(axes, study.full, "full gradient", "--", low, high)
            level(axes, _control(mine, "BM25"), "BM25", "-.", low, high)
            level(axes, _control(mine, "random"), "random", ":", low, high)
            _mark_peak(axes, study)
            share_axis(axes, np.nanmin([curve.share[0], curve.held_out_share[0], mine["share"].min()]))
            axes.set(title=f"{name} queries", ylabel="retrieval accuracy")
        legends_below(figure, row)
        return figure


def fidelity_curve(studies: Studies, table: pd.DataFrame) -> Figure:
    """Similarity to the full gradient's scores against the share of parameters (figure 5)."""
    with panels(len(studies), height=4.3) as (figure, row):
        for axes, (name, study) in zip(row, studies.items(), strict=True):
            by_fidelity, by_accuracy = study.curves["fidelity"], study.curves["accuracy"]
            _curve(axes, by_fidelity.share, by_fidelity.fidelity, SELECT, "greedy by similarity")
            name_held_out = "greedy by similarity, held-out queries"  # nearly the same line, so dashed on top of it
            _curve(axes, by_fidelity.held_out_share, by_fidelity.held_out, HELD_OUT, name_held_out, "--")
            _curve(axes, by_accuracy.share, by_accuracy.fidelity, GREY, "greedy by accuracy")
            mine = table[table["query_set"] == name]
            points = [_selections(axes, mine, "fidelity", SELECT), _projections(axes, mine, "fidelity")]
            shown = [by_fidelity.fidelity, by_fidelity.held_out, by_accuracy.fidelity, *points]
            fit_y(axes, np.nanmin(np.concatenate(shown)), 1.0)
            share_axis(axes, np.nanmin([by_fidelity.share[0], by_accuracy.share[0], mine["share"].min()]))
            axes.set(title=f"{name} queries", ylabel="similarity to the full gradient")
        legends_below(figure, row)
        return figure


def accuracies(table: pd.DataFrame) -> Figure:
    """Accuracy of every method and control with its interval, best first and controls last; hollow marks show in-sample
    selection. Numbers stand beside the axes, where nothing is drawn.
    """
    sets = list(dict.fromkeys(table["query_set"]))
    parts = {name: table[table["query_set"] == name].reset_index(drop=True) for name in sets}
    named = {
        name: [fold(_told(line, part["queries"].max()), NAME) for line in part.to_dict("records")]
        for name, part in parts.items()
    }
    lines = max(label.count("\n") + 1 for labels in named.values() for label in labels)
    height = 1.1 + max(0.36, 0.17 * lines + 0.08) * max(map(len, parts.values()))
    with panels(len(sets), height=height, width=6.0) as (figure, row):
        for axes, (name, part) in zip(row, parts.items(), strict=True):
            order = np.lexsort((-part["heldout"].to_numpy(float), ~complete(part).to_numpy(), part["control"] != ""))
            _bars(axes, part.iloc[order], [named[name][place] for place in order])
            axes.set(title=f"{name} queries", xlabel="retrieval accuracy", xlim=(0, 1))
        if table["selected"].astype(bool).any():
            legend_under(figure, row)
        return figure


def _told(line: dict[Any, Any], queries: float) -> str:
    """A method's label, with what keeps it from being ranked."""
    lacks = [f"{runs_of(line)} runs"] if line.get("missing") else []
    lacks += [f"{line['queries']:.0f} queries"] if line["queries"] < queries else []
    return f"{line['method']} ({', '.join(lacks)})" if lacks else str(line["method"])


def _bars(axes: Axes, table: pd.DataFrame, names: list[str]) -> None:
    places = np.arange(len(table))[::-1]
    control = table["control"] != ""
    colours = np.where(control, "#aab4be", np.where(table["selected"], SELECT, "#6fa8d6"))
    axes.barh(places, table["heldout"], height=0.62, color=colours, zorder=2)
    known = table["heldout_low"].notna()
    below = (table["heldout"] - table["heldout_low"])[known].clip(lower=0)
    above = (table["heldout_high"] - table["heldout"])[known].clip(lower=0)
    style: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 1.1, "capsize": 2.5, "zorder": 3}
    axes.errorbar(table["heldout"][known], places[known], xerr=[below, above], **style)
    chosen = table["selected"].astype(bool)
    if chosen.any():
        style = {"facecolor": "white", "edgecolor": SELECT, "s": 34, "zorder": 4, "clip_on": False}
        axes.scatter(table["accuracy"][chosen], places[chosen], label="on the queries used to select", **style)
    beside = axes.get_yaxis_transform()  # x in widths of the axes
    for place, value in zip(places, table["heldout"], strict=True):
        axes.text(1.02, place, f"{value:.3f}", va="center", fontsize=8.5, transform=beside)
    axes.set_yticks(places, names)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _curve(axes: Axes, share: np.ndarray, values: np.ndarray, colour: str, name: str, style: str = "-") -> None:
    marker = "o" if style == "-" and len(share) < 150 else ""
    axes.plot(share, values, style, color=colour, linewidth=1.5, label=name, zorder=3, marker=marker, markersize=2.4)


def _selections(axes: Axes, table: pd.DataFrame, column: str, colour: str, note: str = "") -> np.ndarray:
    """Mark what the runs themselves selected; returns the values shown."""
    chosen = table[table["selected"].astype(bool) & table[column].notna()]
    for marker, (_, line) in zip(itertools.cycle("s^vP*"), chosen.iterrows(), strict=False):
        look: dict[str, Any] = {"color": colour, "markeredgecolor": INK, "markersize": 7, "zorder": 5}
        axes.plot(line["share"], line[column], marker, label=f"{line['method']}{note}", **look)
    return np.asarray(chosen[column].to_numpy(float))


def _projections(axes: Axes, table: pd.DataFrame, column: str) -> np.ndarray:
    """Mark the projections; returns the values shown."""
    projected = table[table["projected"] & ~table["selected"].astype(bool) & table[column].notna()]
    for place, (_, line) in enumerate(projected.iterrows()):
        colour = (PROJECT, *PALETTE[4:])[place % (len(PALETTE) - 3)]
        axes.plot(line["share"], line[column], "D", color=colour, markersize=6, label=line["method"], zorder=5)
    return np.asarray(projected[column].to_numpy(float))


def _mark_peak(axes: Axes, study: ComponentStudy) -> None:
    right = study.peak_share > 0.15  # keep the words inside the axes
    axes.annotate(
        f"peak {study.peak:.3f} at {percent(study.peak_share)}",
        (study.peak_share, study.peak),
        xytext=(-4 if right else 4, 6),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=8.5,
        color=SELECT,
    )


def _control(table: pd.DataFrame, name: str) -> float:
    """The accuracy of a control row; NaN where there is none."""
    found = table.loc[table["control"] == name, "accuracy"]
    return float(found.iloc[0]) if len(found) else float("nan")


def _including_near(low: float, high: float, value: float) -> tuple[float, float]:
    """Widen [low, high] to a control that is near; one that is far would flatten the curves."""
    room = 1.5 * max(high - low, 0.01)
    if low - room <= value <= high + room:
        return min(low, value), max(high, value)
    return low, high
