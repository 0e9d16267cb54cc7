"""How near sums over the path come to the model, by what the integration costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tdaexp.report.figures import GREY, MARKERS, PALETTE, legend_below, panels

LEAST = 1e-12  # nats; the axis is logarithmic, and rounding lies below


def quadrature_curves(table: pd.DataFrame) -> Figure:
    """KL from the model, and the share of other classes, against evaluations per step (ExPLAIND, table 1).

    `table`: model, rule, steered, evaluations, kl, agreement. A panel for each model; a ring round steered nodes.
    """
    models = list(dict.fromkeys(table["model"]))
    rules = list(dict.fromkeys(table["rule"]))
    with panels(len(models), width=4.6, height=4.0) as (figure, row):
        for axes, model in zip(row, models, strict=True):
            for rule, part in table[table["model"] == model].sort_values("evaluations").groupby("rule", sort=False):
                place = rules.index(rule)
                colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
                fixed, steered = part[~part["steered"]], part[part["steered"]]
                axes.plot(
                    fixed["evaluations"], fixed["kl"].clip(lower=LEAST), color=colour, marker=marker, markersize=5,
                    label=str(rule),
                )  # fmt: skip
                if len(steered):
                    axes.plot(
                        steered["evaluations"], steered["kl"].clip(lower=LEAST), color=colour, marker=marker,
                        markersize=8, markerfacecolor="none", linestyle="none", label=f"{rule}, steered",
                    )  # fmt: skip
            axes.axvline(2, color=GREY, linewidth=0.8, linestyle=":")
            axes.set(title=str(model), xlabel="evaluations per step", ylabel="KL from the model (nats)")
            axes.set_xscale("log")
            axes.set_yscale("log")
        legend_below(row[0], columns=2)
        return figure
