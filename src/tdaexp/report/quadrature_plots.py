"""How near sums over the path come to the model, by what the integration costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tdaexp.report.figures import GREY, MARKERS, PALETTE, panels

LEAST = 1e-12  # nats; the axis is logarithmic, and rounding lies below


def quadrature_curves(table: pd.DataFrame) -> Figure:
    """KL from the model, and the share of other classes, against evaluations per step (ExPLAIND, table 1).

    `table`: model, rule, steered, evaluations, kl, agreement. A panel for each model; rings are
    steered nodes.
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
            axes.set_xlim(0.8, 1.25 * max(2.0, float(table["evaluations"].max())))
            axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        lines = {str(line.get_label()): line for axes in row for line in axes.get_lines()}
        named = {label: line for label, line in lines.items() if not label.startswith("_")}
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4)
        return figure
