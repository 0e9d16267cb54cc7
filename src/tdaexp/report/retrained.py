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

from tdaexp.metrics.retrained import CEILING, Judged
from tdaexp.report.console import of_width
from tdaexp.report.figures import GREY, INK, PALETTE, grid
from tdaexp.report.tables import with_interval

TITLES = {
    "lds_same": "LDS, same start",
    "lds_own": "LDS, own start",
    "leave_one_out_same": "leave-one-out, same start",
    "leave_one_out_own": "leave-one-out, own start",
    "removal_same": "removal in nats, same start",
    "removal_own": "removal in nats, own start",
    "brittleness_same": "smallest share that flips an answer, same start",
    "brittleness_own": "smallest share that flips an answer, own start",
    "flipped_same": "answers that flip, same start",
    "flipped_own": "answers that flip, own start",
    "tail_patch": "tail-patch in nats",
    "mislabelled_auc": "faulty rows by self-influence, AUC",
    "mislabelled_found": "faulty rows among the first looked at",
    "duplicate_found": "queries whose best row is their own copy",
    "duplicates_apart": "scores of copies apart",
}
"""What each metric is called for people."""
LOWER = ("brittleness_same", "brittleness_own", "duplicates_apart")
"""Metrics of which a lower value is the better one."""
OWN_START = "The same with models that have starts and batches of their own, whose doing is noise to every score."
EXPLAINED = {
    "lds_same": (
        "Linear datamodeling score: rank correlation, over random subsets of the training examples, of a method's "
        "summed scores with what a model answers that was trained on the subset, from the explained start in its batches."
    ),
    "lds_own": (
        "The same with models that have starts and batches of their own; no score can foretell what those do to an "
        "answer, and the noise ceiling is what a perfect one would reach."
    ),
    "leave_one_out_same": (
        "Rank correlation, over single examples, of their scores with how much less likely the answer is of a model that "
        "was trained without the one."
    ),
    "leave_one_out_own": OWN_START,
    "removal_same": (
        "How much less likely an answer is of a model that was trained without the rows that the method holds for the "
        "best, against models without as many random rows. Above 0: those rows carried more of the answer."
    ),
    "removal_own": OWN_START,
    "brittleness_same": (
        "The smallest share of the rows, best ones first, without which a model answers otherwise; the lower, the better. "
        "An answer that no share flips counts the largest one that was tried."
    ),
    "brittleness_own": OWN_START,
    "flipped_same": "The share of the answers that flip without any of these shares of the rows.",
    "flipped_own": OWN_START,
    "tail_patch": (
        "How much likelier an answer is after one more step of plain gradient descent on one of the method's best "
        "rows. Above 0: the step helps."
    ),
    "mislabelled_auc": (
        "The probability that a row that is known to be faulty has more self-influence than a sound one; 0.5 is chance."
    ),
    "mislabelled_found": "The share of the faulty rows among the first by self-influence.",
    "duplicate_found": "The share of the queries that repeat a training row whose highest score is their copy's.",
    "duplicates_apart": (
        "How far scores of a row and its repetition are apart, as a share of how far those of random rows are."
    ),
}
SMALL = 0.01  # below it three digits tell little
ROW = 0.28  # inches of a figure for each method


def frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row for each number: `method`, `query_set`, `metric`, `value`, `low`, `high`, `queries`, the best first."""
    rows = [
        {"method": one.label, "query_set": one.query_set, "metric": one.metric, "value": one.interval.value,
         "low": one.interval.low, "high": one.interval.high, "queries": one.queries}
        for one in judged
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "query_set", "metric", "value", "low", "high", "queries"])
    order = {key: place for place, key in enumerate(zip(table["query_set"], table["metric"], strict=True))}
    first = [order[key] for key in zip(table["query_set"], table["metric"], strict=True)]
    rank = table["value"].where(table["metric"].isin(LOWER), -table["value"])
    return table.assign(first=first, rank=rank).sort_values(["first", "rank"]).drop(columns=["first", "rank"])


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
    if max(abs(one) for one in (value, low, high) if not math.isnan(one)) >= SMALL:
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


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    ceiling, methods = part[part["method"] == CEILING], part[part["method"] != CEILING].iloc[::-1]
    at = range(len(methods))
    errors = [methods["value"] - methods["low"], methods["high"] - methods["value"]]
    axes.errorbar(methods["value"], at, xerr=errors, fmt="o", color=PALETTE[0], ecolor=GREY, markersize=5, capsize=2)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for value in ceiling["value"]:
        axes.axvline(value, color=INK, linestyle="--", linewidth=1.1, label=f"{CEILING} {value:.2f}")
        axes.legend(loc="lower right")
    axes.set_yticks(at, list(methods["method"]))
    axes.set_ylim(-0.6, len(methods) - 0.4)
