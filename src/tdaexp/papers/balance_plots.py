"""Kernel against regularisation as ExPLAIND's plot draws it."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tdaexp.papers.grokking_numbers import LAYERS
from tdaexp.report.figures import GREY, grid
from tdaexp.report.path_plots import colours, series


def balance(table: pd.DataFrame) -> Figure:
    """Σ(|Ψ| − |Ψ^reg|) by step and layer: of the last tensor of each layer, as the paper draws it, and of the whole.

    `table` is that of `plotted_balance`.
    """
    names = list(dict.fromkeys(table["component"]))
    sizes = table.groupby("component", sort=False)["whole"].agg(lambda values: values.abs().sum())
    colour = colours(names, sizes.to_numpy())
    with grid(1, 2, 5.4, 3.3) as (figure, axes):
        for one, kind, title in (
            (axes[0, 0], "plotted", "The last tensor of each layer"),
            (axes[0, 1], "whole", "All parameters of each layer"),
        ):
            wide = table.pivot_table(index="step", columns="component", values=kind, sort=False)
            series(one, wide.index.to_numpy(), {name: wide[name].to_numpy() for name in names}, colour, LAYERS)
            one.axhline(0, color=GREY, linewidth=0.9)
            one.set(title=title, xlabel="step")
        axes[0, 0].set_ylabel(r"$\Sigma(|\Psi| - |\Psi^{reg}|)$")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
        return figure
