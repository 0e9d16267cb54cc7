"""Figures of influence functions: accuracy against time, retrieval against damping, nearness of two checkpoints."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tdaexp.report.figures import GREY, INK, MARKERS, PALETTE, PANEL, fit_y, legend_below, panels
from tdaexp.report.tables import times

LINE = 0.25  # inches that a method's line in a legend takes


def has_times(table: pd.DataFrame) -> bool:
    """Whether there are rank correlations with a named reference and times to plot them against."""
    known = table["rank_correlation"].notna() & times(table)["pairwise"].notna()
    return bool(table.attrs.get("reference")) and known.sum() > 1


def has_dampings(table: pd.DataFrame) -> bool:
    """Whether a method was run with several dampings."""
    known = table.dropna(subset=["damping", "mrr"])
    return bool(len(known)) and bool((known.groupby(["kind", "query_set"])["damping"].nunique() > 1).any())


def accuracy_time(table: pd.DataFrame) -> Figure:
    """Rank correlation against seconds (Bao et al. 2025, Figure 1): hollow for a query's pairs, solid with overhead."""
    whole = table.join(times(table)).dropna(subset=["rank_correlation", "pairwise"])
    names = list(dict.fromkeys(whole["query_set"]))
    with panels(len(names), height=PANEL[1] + LINE * whole["method"].nunique()) as (figure, row):
        for axes, name in zip(row, names, strict=True):
            mine = whole[whole["query_set"] == name]
            for place, (_, line) in enumerate(mine.iterrows()):
                style: dict[str, Any] = {
                    "color": PALETTE[place % len(PALETTE)],
                    "marker": MARKERS[place % len(MARKERS)],
                }
                value, alone = line["rank_correlation"], max(line["pairwise"], 1e-4)
                both = alone + (0.0 if pd.isna(line["overhead"]) else line["overhead"])
                axes.plot([alone, both], [value, value], color=style["color"], linewidth=0.9, zorder=1)
                axes.plot(alone, value, markerfacecolor="white", linestyle="", **style)
                axes.plot(both, value, linestyle="", label=line["method"], **style)
            axes.set_xscale("log")
            fit_y(axes, min(0.0, mine["rank_correlation"].min()), 1.0)
            reference = table.attrs["reference"]
            axes.set(title=f"{name} queries", xlabel="seconds per query", ylabel=f"rank correlation with {reference}")
            legend_below(axes, columns=1)
        return figure


def by_damping(table: pd.DataFrame) -> Figure:
    """MRR and recall against damping (Bao et al. 2025, Figure 3): solid and dotted; dashed and wide-dotted levels for
    methods without it.
    """
    names = list(dict.fromkeys(table["query_set"]))
    with panels(len(names)) as (figure, row):
        for axes, name in zip(row, names, strict=True):
            mine = table[(table["query_set"] == name) & table["mrr"].notna()]
            damped = mine.dropna(subset=["damping"])
            curves = [part.sort_values("damping") for _, part in damped.groupby("kind") if len(part) > 1]
            for colour, part in zip(PALETTE, curves, strict=False):
                _curve(axes, part, colour)
            levels = mine[mine["damping"].isna()]
            for colour, (_, line) in zip([*PALETTE[len(curves) :], GREY, INK], levels.iterrows(), strict=False):
                axes.axhline(line["mrr"], color=colour, linewidth=1.1, linestyle="--", label=line["method"], zorder=1)
                axes.axhline(line["recall"], color=colour, linewidth=1.1, linestyle=(0, (1, 3)), zorder=1)
            axes.set_xscale("log")
            axes.invert_xaxis()
            axes.minorticks_off()
            fit_y(axes, 0.0, 1.0)
            known = mine["recall"].notna().any()
            recall = f", recall@{table.attrs.get('top_k', 'k')} (dotted)" if known else ""
            axes.set(title=f"{name} queries", xlabel="damping λ", ylabel=f"MRR (solid){recall}")
            legend_below(axes)
        return figure


def nearness(table: pd.DataFrame) -> Figure:
    """Distances of two checkpoints by component (Bao et al. 2025, Figure 2): absolute, and over the norm before."""
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(table["type"]))}
    titles = {"distance": "‖θ_ft − θ_pt‖₂", "relative": "‖θ_ft − θ_pt‖₂ / ‖θ_pt‖₂"}
    with panels(2) as (figure, row):
        for axes, (column, title) in zip(row, titles.items(), strict=True):
            for kind, part in table.groupby("type", sort=False):
                style: dict[str, Any] = {
                    "color": PALETTE[kinds[kind] % len(PALETTE)],
                    "marker": MARKERS[kinds[kind] % len(MARKERS)],
                }
                axes.plot(part["depth"], part[column], linewidth=1.0, markersize=4, label=str(kind), **style)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)
            axes.set(title=column + (" distance" if column == "relative" else ""), xlabel="layer", ylabel=title)
        legend_below(row[0], columns=4)
        return figure


def _curve(axes: Axes, part: pd.DataFrame, colour: str) -> None:
    """One method's MRR with its interval, and its recall."""
    errors = [part["mrr"] - part["mrr_low"], part["mrr_high"] - part["mrr"]]
    kind = part["kind"].iloc[0]
    axes.errorbar(part["damping"], part["mrr"], yerr=errors, color=colour, marker="o", capsize=2, label=kind)
    axes.plot(part["damping"], part["recall"], color=colour, marker="^", linestyle=":", markersize=4)
