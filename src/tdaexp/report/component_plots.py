"""Figures of single components: accuracy by size, by depth, and all of them at a glance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from tdaexp.metrics.selection import ComponentStudy
from tdaexp.report.figures import INK, MARKERS, PALETTE, count_label, fit_y, panels

Studies = dict[str, ComponentStudy]
MOST_NUMBERS = 20  # columns of a map in whose cells a number has room


def by_size(studies: Studies) -> Figure:
    """Accuracy of single components grouped by parameter count (figure 2); dots are components."""
    with panels(len(studies)) as (figure, row):
        for axes, (name, study) in zip(row, studies.items(), strict=True):
            colours = _colours(study.table)
            groups = list(study.table.groupby("size"))
            style = {"color": INK, "linewidth": 1.0}
            axes.boxplot(
                [part["accuracy"] for _, part in groups],
                positions=range(len(groups)),
                widths=0.5,
                showfliers=False,
                boxprops=style,
                whiskerprops=style,
                capprops=style,
                medianprops={"color": INK, "linewidth": 1.8},
            )
            for place, (_, part) in enumerate(groups):
                _dots(axes, place, part, colours)
            axes.set_xticks(range(len(groups)), [count_label(size) for size, _ in groups])
            axes.grid(axis="x", visible=False)
            axes.axhline(study.full, color=INK, linestyle="--", linewidth=1.1)
            fit_y(
                axes,
                min(study.table["accuracy"].min(), study.full),
                max(study.table["accuracy"].max(), study.full),
            )
            axes.set(title=f"{name} queries", xlabel="parameters of the component", ylabel="retrieval accuracy")
        _legend(figure, row[0], _colours(next(iter(studies.values())).table))
        return figure


def by_depth(studies: Studies) -> Figure:
    """Accuracy of single components against layer depth, one line per type (figure 3)."""
    with panels(len(studies)) as (figure, row):
        for axes, (name, study) in zip(row, studies.items(), strict=True):
            layered = study.table.dropna(subset="depth")
            colours = _colours(study.table)
            for kind, part in layered.groupby("type", sort=False):
                colour, marker = colours[kind]
                axes.plot(
                    part["depth"],
                    part["accuracy"],
                    color=colour,
                    marker=marker,
                    markersize=4.2,
                    linewidth=1.3,
                )
            axes.axhline(study.full, color=INK, linestyle="--", linewidth=1.1)
            fit_y(
                axes,
                min(study.table["accuracy"].min(), study.full),
                max(study.table["accuracy"].max(), study.full),
            )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set(title=f"{name} queries", xlabel="layer", ylabel="retrieval accuracy")
        table = next(iter(studies.values())).table
        kinds = set(table.dropna(subset="depth")["type"])
        _legend(figure, row[0], {kind: look for kind, look in _colours(table).items() if kind in kinds})
        return figure


def every_component(studies: Studies) -> Figure:
    """Accuracy of every component alone: a map of types × layers, with the others at its right.

    All query sets share one colour scale, so that their maps can be compared.
    """
    tables = [study.table for study in studies.values()]
    kinds = max(tables[0].dropna(subset="depth")["type"].nunique(), tables[0]["depth"].isna().sum())
    every = pd.concat(tables)["accuracy"]
    with panels(len(studies), height=1.5 + 0.34 * kinds, width=6.4) as (figure, row):
        for axes, (name, study) in zip(row, studies.items(), strict=True):
            image = _map(axes, study.table, Normalize(every.min(), every.max()))
            axes.set_title(f"{name} queries")
        bar = figure.colorbar(image, ax=row, aspect=30, pad=0.01)
        bar.outline.set_visible(False)
        bar.set_label("retrieval accuracy")
        return figure


def _map(axes: Axes, table: pd.DataFrame, scale: Normalize) -> AxesImage:
    layered, outside = table.dropna(subset="depth"), table[table["depth"].isna()]
    grid = layered.pivot(index="type", columns="depth", values="accuracy")
    grid = grid.loc[list(dict.fromkeys(layered["type"]))]
    depths = [int(depth) for depth in grid.columns]
    aside = len(depths) + 1 if depths else 0  # the column of the components outside the layers, after a gap
    cells = np.full((max(len(grid), len(outside)), aside + (1 if len(outside) else 0)), np.nan)
    cells[: len(grid), : len(depths)] = grid.to_numpy()
    cells[: len(outside), aside:] = outside[["accuracy"]]
    image = axes.imshow(cells, cmap="viridis", norm=scale, aspect="auto", interpolation="none")
    if cells.shape[1] <= MOST_NUMBERS:
        _numbers(axes, cells, scale)
    for place, kind in enumerate(outside["type"]):
        axes.text(aside + 0.65, place, kind, va="center", fontsize=8.5)
    axes.set_yticks(range(len(grid)), list(grid.index))
    axes.yaxis.set_tick_params(length=0)
    step = max(1, len(depths) // 16)
    axes.set_xticks(range(0, len(depths), step), [str(depth) for depth in depths[::step]])
    axes.set_xlabel("layer")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def _numbers(axes: Axes, cells: np.ndarray, scale: Normalize) -> None:
    """Write each value into its cell, dark on the bright end of the scale."""
    for (y, x), value in np.ndenumerate(cells):
        if value == value:
            colour = INK if scale(value) > 0.6 else "white"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)


def _colours(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """A colour and a marker per component type, the same in every figure."""
    kinds = dict.fromkeys(table["type"])
    return {kind: (PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]) for k, kind in enumerate(kinds)}


def _dots(axes: Axes, place: int, part: pd.DataFrame, colours: dict[str, tuple[str, str]]) -> None:
    """Components of one size, spread sideways by type so that they can be told apart."""
    kinds = list(dict.fromkeys(part["type"]))
    for k, kind in enumerate(kinds):
        values = part.loc[part["type"] == kind, "accuracy"]
        x = place + 0.34 * ((k + 0.5) / len(kinds) - 0.5)
        colour, marker = colours[kind]
        axes.scatter(np.full(len(values), x), values, s=15, color=colour, marker=marker, alpha=0.75, zorder=3)


def _legend(figure: Figure, axes: Axes, looks: dict[str, tuple[str, str]]) -> None:
    """One legend below all panels."""
    lines = [axes.plot([], [], color=c, marker=m, linewidth=1.3, label=kind)[0] for kind, (c, m) in looks.items()]
    lines += axes.plot([], [], color=INK, linestyle="--", label="full gradient")
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 6))
