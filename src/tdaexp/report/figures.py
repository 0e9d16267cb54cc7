"""The look that all figures share: size, type, colours, axes, and how they are saved."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, GREY, LIGHT = "#1f2933", "#7b8794", "#d9dee4"
SELECT, HELD_OUT, PROJECT = "#0f6ab4", "#d1495b", "#e08e0b"
PALETTE = ("#0f6ab4", "#d1495b", "#2a9d6f", "#e08e0b", "#7a5cc2", "#139aa8", "#a0522d", "#5c6770", "#c2439b")
MARKERS = "osD^vPX*h"
DPI = 160
PANEL = (5.2, 3.7)  # inches per query set
LINE = 0.21  # inches that a line of a legend takes
LETTERS = 13  # of a legend, on an inch

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9edf1",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "tdaexp",  # the same figure gives the same file
}


@contextmanager
def panels(count: int, height: float = PANEL[1], width: float = PANEL[0]) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure with a row of `count` axes, in this style; no state of pyplot is touched."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * count, height), layout="constrained")
        yield figure, list(figure.subplots(1, count, squeeze=False)[0])


@contextmanager
def grid(rows: int, columns: int, width: float, height: float, **shared: Any) -> Iterator[tuple[Figure, np.ndarray]]:
    """Yield a figure of rows × columns axes [rows, columns], each of width × height inches, in this style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **shared)


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as `png` or `svg`, without a date, so that equal figures are equal files."""
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
    return stream.getvalue()


def percent(share: float) -> str:
    """A share of the parameters for people: three significant digits at most."""
    return f"{100 * share:.3g} %"


def share_axis(axes: Axes, least: float) -> None:
    """A logarithmic x axis of parameter shares from `least` to all."""
    axes.set_xscale("log")
    axes.set_xlim(least * 0.8, 1.2)
    ticks = [tick for tick in (1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick >= least * 0.8]
    axes.set_xticks(ticks, [percent(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("share of the parameters")


def level(axes: Axes, value: float, name: str, style: str, low: float, high: float) -> None:
    """A horizontal line with its name and value; outside [low, high] only the legend names it."""
    if value != value:
        return
    if low <= value <= high:
        axes.axhline(value, color=INK, linestyle=style, linewidth=1.1, label=f"{name} {value:.3f}", zorder=1)
    else:
        mark = "↓" if value < low else "↑"
        axes.plot([], [], " ", label=f"{mark} {name} {value:.3f} (off the axis)")


def fit_y(axes: Axes, low: float, high: float) -> None:
    """Limits that hold [low, high] with some air, and few ticks."""
    air = 0.08 * max(high - low, 1e-3)
    axes.set_ylim(low - air, high + air)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def count_label(value: float) -> str:
    """A parameter count for people: 4.2 M, 103 M, 640."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}"


def look(place: int) -> dict[str, Any]:
    """Colour and marker of the method at a place: no two of the first 81 have both."""
    turn, colour = divmod(place, len(PALETTE))
    return {"color": PALETTE[colour], "marker": MARKERS[(colour + turn) % len(MARKERS)]}


def legend_under(figure: Figure, every: Iterable[Axes]) -> None:
    """Put one legend, of what any of the axes shows, under a figure, which grows by its height; long labels fold."""
    found = [pair for axes in every for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    found.sort(key=lambda pair: not isinstance(pair[0], Container))  # stable: lines with intervals before levels
    shown = {label: handle for handle, label in found}
    letters = int(figure.get_figwidth() * LETTERS)
    longest = max(map(len, shown), default=1) + 6  # the line and the gap beside it
    columns = max(1, min(len(shown), letters // longest))
    folded = [fold(label, letters - 6) for label in shown]
    rows = -(-len(folded) // columns)  # matplotlib fills columns first
    lines = sum(max(text.count("\n") + 1 for text in folded[row::rows]) for row in range(rows))
    figure.set_figheight(figure.get_figheight() + LINE * lines + 0.1)
    figure.legend(list(shown.values()), folded, loc="outside lower center", ncols=columns)


def fold(text: str, letters: int) -> str:
    """A label on lines of at most so many letters, broken at blanks where it has some."""
    return "\n".join(textwrap.wrap(text, max(letters, 8), break_on_hyphens=False)) or text


def legend_below(axes: Axes, columns: int = 2) -> None:
    """Put the legend under the axes, where it covers no data."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)


def legends_below(figure: Figure, every: Sequence[Axes], usual: int = 4) -> None:
    """Put a legend under each of the axes of a row; the figure grows by the lines beyond the `usual` ones."""
    letters = int(figure.get_figwidth() / len(every) * LETTERS)
    rows = 0
    for axes in every:
        handles, labels = axes.get_legend_handles_labels()
        columns = 1 if 2 * (max(map(len, labels), default=0) + 6) > letters else 2
        folded = [fold(label, letters - 6) for label in labels]
        axes.legend(handles, folded, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
        rows = max(rows, -(-sum(label.count("\n") + 1 for label in folded) // columns))
    figure.set_figheight(figure.get_figheight() + LINE * max(0, rows - usual))
