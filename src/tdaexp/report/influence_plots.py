"""Figures of influence functions: accuracy against time, nearness of two checkpoints."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tdaexp.report.figures import fit_y, legend_below, legend_under, look, panels
from tdaexp.report.tables import times


def has_times(table: pd.DataFrame) -> bool:
    """Whether there are rank correlations with a named reference and times to plot them against."""
    known = table["rank_correlation"].notna() & times(table)["pairwise"].notna()
    return bool(table.attrs.get("reference")) and known.sum() > 1


def accuracy_time(table: pd.DataFrame) -> Figure:
    """Rank correlation against seconds (Bao et al. 2025, Figure 1): hollow for a query's pairs, solid with overhead."""
    whole = table.join(times(table)).dropna(subset=["rank_correlation", "pairwise"])
    names = list(dict.fromkeys(whole["query_set"]))
    places = {method: place for place, method in enumerate(dict.fromkeys(whole["method"]))}
    with panels(len(names)) as (figure, row):
        for axes, name in zip(row, names, strict=True):
            mine = whole[whole["query_set"] == name]
            for _, line in mine.iterrows():
                style = look(places[line["method"]])
                value, alone = line["rank_correlation"], max(line["pairwise"], 1e-4)
                both = alone + (0.0 if pd.isna(line["overhead"]) else line["overhead"])
                axes.plot([alone, both], [value, value], color=style["color"], linewidth=0.9, zorder=1)
                axes.plot(alone, value, markerfacecolor="white", linestyle="", **style)
                axes.plot(both, value, linestyle="", label=line["method"], **style)
            axes.set_xscale("log")
            fit_y(axes, min(0.0, mine["rank_correlation"].min()), 1.0)
            reference = table.attrs["reference"]
            axes.set(title=f"{name} queries", xlabel="seconds per query", ylabel=f"rank correlation with {reference}")
        legend_under(figure, row)
        return figure


def nearness(table: pd.DataFrame) -> Figure:
    """Distances of two checkpoints by component (Bao et al. 2025, Figure 2): absolute, and over the norm before."""
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(table["type"]))}
    titles = {"distance": "‖θ_ft − θ_pt‖₂", "relative": "‖θ_ft − θ_pt‖₂ / ‖θ_pt‖₂"}
    with panels(2) as (figure, row):
        for axes, (column, title) in zip(row, titles.items(), strict=True):
            for kind, part in table.groupby("type", sort=False):
                axes.plot(
                    part["depth"], part[column], linewidth=1.0, markersize=4, label=str(kind), **look(kinds[kind])
                )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)
            axes.set(title=column + (" distance" if column == "relative" else ""), xlabel="layer", ylabel=title)
        legend_below(row[0], columns=4)
        return figure
