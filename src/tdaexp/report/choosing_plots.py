"""Components by how well they retrieve, and by how well they foretell models that are trained again."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from tdaexp.report.figures import GREY, PALETTE, panels

FIRST = 5
"""So many that are chosen first are filled and named."""


def retrieval_and_lds(tables: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """A panel for each titled table (component, accuracy, lds, rank_by_accuracy, rank_by_lds), a dot each component."""
    with panels(len(tables), height=4.2, width=5.2) as (figure, row):
        for axes, (title, table) in zip(row, tables, strict=True):
            for one in table.itertuples():
                by_lds, by_accuracy = one.rank_by_lds < FIRST, one.rank_by_accuracy < FIRST
                colour = PALETTE[1] if by_accuracy else PALETTE[0] if by_lds else GREY
                axes.plot(one.accuracy, one.lds, "o", markersize=6, color=colour, mfc=colour if by_lds else "none")
                if by_lds or by_accuracy:
                    axes.annotate(str(one.component).removeprefix("layers."), (one.accuracy, one.lds), fontsize=7,
                                  xytext=(4, 4), textcoords="offset points")  # fmt: skip
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
            axes.set(title=title, xlabel="retrieval accuracy, alone", ylabel="LDS, alone")
        return figure
