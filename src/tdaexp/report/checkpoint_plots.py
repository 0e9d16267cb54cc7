"""Figures of a decomposition over checkpoints: loss changes by parameter type and by depth."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdaexp.metrics.layer_views import VIEWS, grouped
from tdaexp.report.figures import GREY, INK, MARKERS, PALETTE, panels

COLOURS = (*PALETTE, INK)
TITLES = {"type": "by parameter type", "depth": "by layer"}


def layer_views(changes: pd.DataFrame, part: str, absolute: bool = False) -> Figure:
    """One part's change of the loss over checkpoints, by type (left) and by depth (right); negative is learning.

    `absolute` shows sizes without signs.
    """
    with panels(len(VIEWS), height=4.6) as (figure, row):
        for axes, view in zip(row, VIEWS, strict=True):
            table = grouped(changes, part, view)
            _lines(axes, table.abs() if absolute else table, view)
            axes.axhline(0, color=INK, linewidth=0.8)
            label = "change of the loss (nats per token)"
            axes.set(title=TITLES[view], xlabel="training step", ylabel=f"size of the {label}" if absolute else label)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)
        return figure


def part_totals(changes: pd.DataFrame, residual: pd.Series) -> Figure:
    """Every part's whole change of the loss over checkpoints (left), and the size of what the sums miss (right)."""
    with panels(2) as (figure, row):
        totals = changes.pivot_table(index="step", columns="part", values="loss_change", aggfunc="sum", sort=False)
        for place, (name, values) in enumerate(totals.items()):
            label = {"influence": "the batch itself"}.get(str(name), str(name).replace("_", " "))
            row[0].plot(values, color=PALETTE[place], marker=MARKERS[place], markersize=3, label=label)
        row[0].plot(totals.sum(axis=1), color=INK, linewidth=1.6, label="whole update")
        row[0].axhline(0, color=INK, linewidth=0.8)
        row[0].set(title="parts of the update", xlabel="training step", ylabel="change of the loss (nats per token)")
        row[0].legend()
        whole = totals.sum(axis=1).abs()
        row[1].plot(whole, color=INK, label="|change|")
        row[1].plot(residual.abs(), color=GREY, marker="o", markersize=3, label="|residual|")
        row[1].set(title="completeness", xlabel="training step", ylabel="nats per token", yscale="log")
        row[1].legend()
        return figure


def _lines(axes: Axes, table: pd.DataFrame, view: str) -> None:
    """A line per group: layers from dark (first) to light (last), other components dashed."""
    layers = [name for name in table if str(name).startswith("layer ")] if view == "depth" else []
    shades = mpl.colormaps["viridis"]
    others = [name for name in table if name not in layers]
    for place, name in enumerate(layers):
        axes.plot(table[name], color=shades(0.9 * place / max(1, len(layers) - 1)), linewidth=1.4, label=str(name))
    for place, name in enumerate(others):
        style = "--" if layers else "-"
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.plot(table[name], style, color=colour, marker=marker, markersize=3, linewidth=1.2, label=str(name))
