"""How methods fare where models are trained again: one table, flat metrics and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tdaexp.metrics.best_first import best_first
from tdaexp.metrics.retrained import CEILING, Judged
from tdaexp.report.console import of_width
from tdaexp.report.figures import GREY, INK, PALETTE, grid
from tdaexp.report.findings import Drawing, Findings
from tdaexp.report.retrained_words import EXPLAINED, TITLES
from tdaexp.report.tables import with_interval

CAPTION = "How well methods foretell what models answer that are trained again, with intervals."
SMALL = 0.01  # below it three digits tell little
ROW = 0.28  # inches of a figure for each method


def frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row for each number: `method`, `query_set`, `metric`, `value`, `low`, `high`, `queries`; the best first."""
    rows = [
        {"method": one.label, "query_set": one.query_set, "metric": one.metric, "value": one.interval.value,
         "low": one.interval.low, "high": one.interval.high, "queries": one.queries}
        for one in judged
    ]  # fmt: skip
    columns = ["method", "query_set", "metric", "value", "low", "high", "queries"]
    return best_first(pd.DataFrame(rows, columns=columns))


def flat_retrained(table: pd.DataFrame) -> dict[str, float]:
    """Flat metrics `LABEL/QUERY_SET/METRIC`, bounds behind `_low` and `_high`."""
    flat: dict[str, float] = {}
    for row in table.itertuples():
        name = f"{row.method}/{row.query_set}/{row.metric}"
        flat |= {name: float(row.value), f"{name}_low": float(row.low), f"{name}_high": float(row.high)}
    return {name: value for name, value in flat.items() if not math.isnan(value)}


def parts(table: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Title, explanation and rows of each metric and query set."""
    found = []
    for (query_set, metric), part in table.groupby(["query_set", "metric"], sort=False):
        found.append((f"{TITLES[str(metric)]} · {query_set}", EXPLAINED[str(metric)], part))
    return found


def cells(part: pd.DataFrame) -> list[list[str]]:
    """Method, value with its interval, and number of queries, as text."""
    return [
        [str(row.method), _told(float(row.value), float(row.low), float(row.high)), str(row.queries)]
        for row in part.itertuples()
    ]


def _told(value: float, low: float, high: float) -> str:
    """A value with its interval; as powers of ten where all of them would be 0.00."""
    largest = max((abs(one) for one in (value, low, high) if not math.isnan(one)), default=0)
    if not 0 < largest < SMALL:
        return with_interval(value, low, high)
    return f"{value:.2e}" + ("" if math.isnan(low) else f" [{low:.2e}, {high:.2e}]")


def print_retrained(table: pd.DataFrame, console: Console | None = None) -> None:
    """Print one table for each metric and query set."""
    console = of_width(console)
    for title, _, part in parts(table):
        console.print(Text(title, style="italic"))
        shown = Table(header_style="bold", box=SIMPLE)
        for name in ("method", "value", "queries"):
            shown.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
        for row in cells(part):
            shown.add_row(*map(Text, row), style="dim" if row[0] == CEILING else None)
        console.print(shown)


def retrained_figure(table: pd.DataFrame) -> Figure:
    """Each method's values with their intervals, a panel for each metric and query set; the noise ceiling is a line."""
    every = parts(table)
    most = max(len(part) for _, _, part in every)
    with grid(len(every), 1, 7.0, 1.1 + ROW * most) as (figure, rows):
        for axes, (title, _, part) in zip(rows[:, 0], every, strict=True):
            _panel(axes, part)
            axes.set_title(title)
        return figure


def retrained_findings(table: pd.DataFrame) -> Findings:
    """A page of its own, where no store scores pairs that could be ranked."""
    drawing = Drawing("retrained", CAPTION, retrained_figure(table), wide=True)
    return Findings("Judged by retraining", flat_retrained(table), {"retrained": table}, [drawing])


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    ceiling, methods = part[part["method"] == CEILING], part[part["method"] != CEILING].iloc[::-1]
    at = range(len(methods))
    # where all resamples are the same, rounding may put a bound beyond the value
    errors = [(methods["value"] - methods["low"]).clip(lower=0), (methods["high"] - methods["value"]).clip(lower=0)]
    axes.errorbar(methods["value"], at, xerr=errors, fmt="o", color=PALETTE[0], ecolor=GREY, markersize=5, capsize=2)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for value in ceiling["value"]:
        axes.axvline(value, color=INK, linestyle="--", linewidth=1.1, label=f"{CEILING} {value:.2f}")
        axes.legend(loc="lower right")
    axes.set_yticks(at, list(methods["method"]))
    axes.set_ylim(-0.6, len(methods) - 0.4)
