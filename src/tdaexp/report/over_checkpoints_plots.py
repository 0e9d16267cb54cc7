"""Chosen components over the checkpoints of a training: what they retrieve, and what stays of them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from tdaexp.report.figures import GREY, HELD_OUT, INK, SELECT, panels

LINES = (
    ("full", "all components", INK),
    ("here", "chosen here", HELD_OUT),
    ("at_last", "chosen here, at the last", SELECT),
)


def over_steps(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Two panels for each query set's table: accuracies with intervals, and overlaps, by step."""
    with panels(2 * len(tables), width=4.2) as (figure, row):
        for place, (name, table) in enumerate(tables.items()):
            left, right = row[2 * place : 2 * place + 2]
            for key, label, colour in LINES:
                left.plot(table["step"], table[key], color=colour, marker="o", markersize=4, label=label)
                left.fill_between(
                    table["step"], table[f"{key}_low"], table[f"{key}_high"], color=colour, alpha=0.12, lw=0
                )
            left.set(title=f"{name} queries", xlabel="step", ylabel="retrieval accuracy, held out")
            left.legend(loc="best")
            right.plot(
                table["step"], table["rank"], color=SELECT, marker="o", markersize=4, label="rank correlation, alone"
            )
            right.plot(
                table["step"],
                table["overlap"],
                color=HELD_OUT,
                marker="s",
                markersize=4,
                label="overlap of the choices",
            )
            right.plot(table["step"], table["halves"], color=GREY, linestyle=":", label="overlap of two halves")
            right.set(
                title="with the last checkpoint", xlabel="step", ylim=(min(0.0, table["rank"].min()) - 0.03, 1.03)
            )
            right.legend(loc="best")
        return figure
