"""Figures that hold scores against what happens: retrained and pruned networks, and sums over fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdaexp.report.figures import GREY, MARKERS, PALETTE, panels


def pruning_curves(table: pd.DataFrame, whole: float) -> Figure:
    """Accuracy and KL against sparsity (ExPLAIND, figure 2); `whole` is the unpruned network's accuracy.

    `table`, of one unit: ranking, retrained, level, and accuracy, kl, sparsity, each with _low and _high.
    """
    with panels(2, height=4.3) as (figure, row):
        for axes, measure in zip(row, ("accuracy", "kl"), strict=True):
            _pruned(axes, table, measure)
            axes.set(xlabel="sparsity", xlim=(min(table["level"]) - 0.02, 1.005))
        row[0].axhline(whole, color=GREY, linewidth=0.8, linestyle=":", label="unpruned")
        row[0].set(ylabel="test accuracy", ylim=(0, 1))
        row[1].set(ylabel="KL from the unpruned network (nats)", yscale="log")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return figure


def _pruned(axes: Axes, table: pd.DataFrame, measure: str) -> None:
    """A line for each ranking: solid as it is, dashed where the network was trained again."""
    rankings = list(dict.fromkeys(table["ranking"]))
    names = {"importance": "Ψ̄", "influence": "|Ψ|"}
    for (ranking, again), part in table.groupby(["ranking", "retrained"], sort=False):
        place = rankings.index(ranking)
        columns = {"low": part[f"{measure}_low"], "high": part[f"{measure}_high"]}
        line = pd.DataFrame({measure: part[measure], **columns})
        name = names.get(ranking, ranking) + (", retrained" if again else "")
        _line(axes, place, name, list(part["sparsity"]), line, measure, "--" if again else "-")


def subsampling_curves(table: pd.DataFrame) -> Figure:
    """Agreement, KL and missing change against the share of steps that is kept (ExPLAIND, figure 8).

    `table`: rule, share, agreement, low, high, kl, missing.
    """
    names = {"loss_change": "largest held-out loss change", "uniform": "evenly spaced", "random": "random"}
    measures = {"agreement": "agreement with the model", "kl": "KL (nats)", "missing": "missing change of the logits"}
    with panels(len(measures), width=4.2, height=4.0) as (figure, row):
        for axes, (measure, label) in zip(row, measures.items(), strict=True):
            for place, (rule, part) in enumerate(table.groupby("rule", sort=False)):
                bounds = part if measure == "agreement" else part.assign(low=part[measure], high=part[measure])
                _line(axes, place, names[str(rule)], list(part["share"]), bounds, measure)
            axes.set(xlabel="share of the steps", ylabel=label, xlim=(0, 1.03))
        row[0].set_ylim(0, 1.03)
        row[1].set_yscale("log")
        row[2].set_ylim(bottom=0)
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure


def _line(
    axes: Axes, place: int, name: str, at: Sequence[float], part: pd.DataFrame, column: str, style: str = "-"
) -> None:
    """One curve with its intervals; chance is grey."""
    errors = [part[column] - part["low"], part["high"] - part[column]]
    look: dict[str, Any] = {
        "color": GREY if name.startswith("random") else PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": style,
    }
    axes.errorbar(at, part[column], yerr=errors, label=name, markersize=4, linewidth=1.3, capsize=2, **look)
