"""The figures of a comparison of methods: which of them there are, in which order, and what is said of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tdaexp.metrics.axes import Axis
from tdaexp.metrics.selection import ComponentStudy
from tdaexp.report import component_plots, curve_plots, influence_plots, key_plots
from tdaexp.report.figures import render
from tdaexp.report.page import Picture
from tdaexp.report.retrained import CAPTION, retrained_figure
from tdaexp.runtime.files import atomic_path

MOST = 6  # keys that have a figure of their own


def drawn_rows(table: pd.DataFrame, label: str | None) -> pd.DataFrame:
    """The rows for the figures: of each query set the section that the store of this label stands in, or the first."""
    mine = table[table["method"] == label].set_index("query_set")["section"].to_dict()
    drawn = table[table["section"] == table["query_set"].map(lambda name: mine.get(name, 0))]
    drawn.attrs |= table.attrs
    return drawn


def draw(
    folder: Path,
    studies: dict[str, ComponentStudy],
    table: pd.DataFrame,
    near: pd.DataFrame | None,
    keys: Sequence[Axis] = (),
    judged_again: pd.DataFrame | None = None,
) -> list[Picture]:
    """Write each figure as `plots/NAME.png` and `.svg`; returns them as pictures for the page."""
    figures: list[tuple[str, str, Figure]] = []
    if judged_again is not None:
        figures.append(("retrained", CAPTION, retrained_figure(judged_again)))
    if table["heldout"].notna().any():
        caption = "Retrieval accuracy of every method, on queries that it was not selected on, with intervals."
        figures.append(("accuracies", caption, curve_plots.accuracies(table[table["heldout"].notna()])))
    for axis in keys[:MOST]:
        figure = key_plots.against(table, axis)
        if figure is not None:
            caption = f"Against {axis.key}, with intervals; the other keys are the same along a line."
            figures.append((f"by_{axis.key}", caption, figure))
    if studies:
        figures += _study_figures(studies, table)
    figures += _influence_figures(table, near)
    pictures = []
    for name, caption, figure in figures:
        for kind in ("png", "svg"):
            with atomic_path(folder / "plots" / f"{name}.{kind}") as temporary:
                temporary.write_bytes(render(figure, kind))
        pictures.append(Picture(name, caption, (folder / "plots" / f"{name}.svg").read_bytes()))
    return pictures


def _influence_figures(table: pd.DataFrame, near: pd.DataFrame | None) -> list[tuple[str, str, Figure]]:
    figures = []
    if influence_plots.has_times(table):
        caption = "Rank correlation with the reference against time. Hollow: a query's pairs; solid: with the overhead."
        figures.append(("accuracy_time", caption, influence_plots.accuracy_time(table)))
    if near is not None:
        caption = "How far fine-tuning moved the weights of each component, absolute and relative to their norm."
        figures.append(("proximity", caption, influence_plots.nearness(near)))
    return figures


def _study_figures(studies: dict[str, ComponentStudy], table: pd.DataFrame) -> list[tuple[str, str, Figure]]:
    figures = [
        (
            "accuracy_curve",
            "Greedy selection by accuracy: what the growing subset retrieves, on the queries that it was "
            "found on and on held-out ones, against the full gradient, projections and controls. The curve "
            "takes the best component first, whatever its size; a run with a budget (outlined marks) chooses "
            "among those that fit, so it can lie left of the curve.",
            curve_plots.accuracy_curve(studies, table),
        ),
        (
            "fidelity_curve",
            "Greedy selection by similarity to the full gradient's scores, beside the similarity that "
            "selection by accuracy has.",
            curve_plots.fidelity_curve(studies, table),
        ),
        (
            "components",
            "Retrieval accuracy of every component alone. Components outside the layers stand at the right.",
            component_plots.every_component(studies),
        ),
        (
            "by_size",
            "Accuracy of single components by their number of parameters. Dashed: full gradient.",
            component_plots.by_size(studies),
        ),
    ]
    if next(iter(studies.values())).table["depth"].notna().any():
        caption = "Accuracy of single components by depth. Dashed: full gradient."
        figures.append(("by_depth", caption, component_plots.by_depth(studies)))
    return figures
