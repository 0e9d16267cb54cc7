"""A leaderboard, the table of methods by subject and metric, and the report in wandb that shows it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tdaexp.report.dashboards.library import reports, these_runs
from tdaexp.report.dashboards.swept import HELD_OUT, IN_SAMPLE, with_held_out
from tdaexp.report.mirrored import Mirrored
from tdaexp.report.tables import seconds, with_interval
from tdaexp.runtime.errors import UserError

TABLE = "leaderboard"
WORDS, NUMBERS = ("method", "subject", "metric"), ("value", "low", "high", "cost_seconds")
COLUMNS = [*WORDS, *NUMBERS]
CONTROLS = {"bm25_accuracy": ("BM25", "accuracy"), "random_accuracy": ("random", "accuracy")}
"""Metrics of every method that are a control's own, with the control's name and the metric that it stands beside."""
NOT_SHOWN = ("minus_bm25", IN_SAMPLE)  # a difference from a control, which has its row; what flatters who selects
NAMES = {HELD_OUT: "accuracy"}  # as on a comparison's page


def read_leaderboard(file: Path) -> pd.DataFrame:
    """A leaderboard from a CSV file with the columns `COLUMNS`: one row a method, subject and metric.

    `low`, `high` and `cost_seconds` may be empty. Errors (UserError): no such file, a missing column, no rows, a method
    without a name, a value that is no number, the same method, subject and metric twice.
    """
    try:
        table = pd.read_csv(file, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"leaderboard={file}: cannot be read as CSV ({reason})") from error
    return check_leaderboard(table, f"leaderboard={file}")


def check_leaderboard(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The columns of a leaderboard, in their order, all of them good (errors: `read_leaderboard`).

    Where there is a column `query_set` too, each query set of a subject is a subject.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(f"{where}: lacks the columns {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    if table.empty:
        raise UserError(f"{where}: has no rows")
    found = _by_query_set(table)[COLUMNS].copy()
    for name in WORDS:
        if found[name].isna().any():
            raise UserError(f"{where}: row {_first(found[name].isna())} has no {name}")
    for name in NUMBERS:
        numbers = pd.to_numeric(found[name], errors="coerce")
        wrong = numbers.isna() & (found[name].notna() | (name == "value"))
        if wrong.any():
            raise UserError(f"{where}: row {_first(wrong)}: {name} is no number")
        found[name] = numbers
    twice = found.duplicated([*WORDS])
    if twice.any():
        method, subject, metric = found.loc[twice, list(WORDS)].iloc[0]
        raise UserError(f"{where}: row {_first(twice)}: {method} on {subject} has {metric} twice")
    return found.astype({name: str for name in WORDS})


def _by_query_set(table: pd.DataFrame) -> pd.DataFrame:
    if not {"subject", "query_set"} <= {*table}:
        return table
    named = table["subject"].notna() & table["query_set"].notna()
    both = table["subject"].astype(str) + ", " + table["query_set"].astype(str)
    return table.assign(subject=both.where(named, table["subject"]))


def _first(marked: pd.Series) -> int:
    """Number of the first marked row, as an editor counts the lines below a heading."""
    return int(marked.to_numpy().argmax()) + 1


def as_leaderboard(metrics: Mapping[str, float], costs: Mapping[str, float]) -> pd.DataFrame:
    """The leaderboard of a comparison, from its flat metrics `<label>/<query set>/<metric>` and seconds by label.

    Only metrics with bounds are on it, and the controls BM25 and chance once in each query set. Accuracy is that on
    queries which were not selected on.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    metrics = with_held_out(metrics)
    for name, value in metrics.items():
        if name.count("/") < 2 or not (f"{name}_low" in metrics or name.endswith("/random_accuracy")):
            continue
        method, subject, metric = name.rsplit("/", 2)
        control, shown = CONTROLS.get(metric, (None, NAMES.get(metric, metric)))
        if metric not in NOT_SHOWN:
            low, high = (metrics.get(name + end, math.nan) for end in ("_low", "_high"))
            cost = math.nan if control else costs.get(method, math.nan)
            numbers = dict(zip(NUMBERS, (value, low, high, cost), strict=True))
            rows.setdefault((control or method, subject, shown), numbers)
    table = pd.DataFrame([dict(zip(WORDS, key, strict=True)) | row for key, row in rows.items()], columns=COLUMNS)
    first = (table["metric"] != "accuracy").sort_values(kind="stable").index
    return table.loc[first].reset_index(drop=True)


def markdown(table: pd.DataFrame) -> dict[str, str]:
    """By subject a table in Markdown: a method a row, the highest first metric first, a metric a column, then cost."""
    found = {}
    for subject, part in table.groupby("subject", sort=False):
        metrics = list(dict.fromkeys(part["metric"]))
        cells = {(row["method"], row["metric"]): row for row in part.to_dict("records")}
        first = part[part["metric"] == metrics[0]].set_index("method")["value"]
        order = sorted(dict.fromkeys(part["method"]), key=lambda one: -first.get(one, -math.inf))
        lines = [_line(["method", *metrics, "cost"]), _line(["---", *["---:"] * (len(metrics) + 1)])]
        for method in order:
            numbers = [_cell(cells.get((method, name))) for name in metrics]
            cost = part[part["method"] == method]["cost_seconds"].max()
            lines.append(_line([_plain(method), *numbers, seconds(cost)]))
        found[str(subject)] = "\n".join(lines)
    return found


def _cell(row: Mapping[Hashable, Any] | None) -> str:
    return "" if row is None else with_interval(row["value"], row["low"], row["high"])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A name that stays within its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def report(table: pd.DataFrame, own: Mirrored, title: str) -> Any:
    """The report of a leaderboard: a table for each subject, and of the run that has it in wandb (`own`) value against
    cost, the rows, and the figures.
    """
    wr = reports()
    wanted = wr.Runset(name="the run with this table", filters=these_runs([own]))
    panels = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": TABLE}},
            chart_name="wandb/scatter/v0",
            chart_fields={"x": "cost_seconds", "y": "value"},
            chart_strings={"title": "Value against seconds, every method, subject and metric"},
            layout=wr.Layout(w=12, h=10),
        ),
        wr.WeavePanelSummaryTable(table_name=TABLE, layout=wr.Layout(x=12, w=12, h=10)),
    ]
    if own.images:
        panels.append(wr.MediaBrowser(media_keys=list(own.images), num_columns=2, layout=wr.Layout(y=10, w=24, h=12)))
    return wr.Report(
        project=own.project,
        entity=own.entity or "",
        title=title[:128],
        description="Intervals in brackets. Rows are in the order of the first metric, the highest first.",
        width="fluid",
        blocks=[
            wr.TableOfContents(),
            *(block for name, text in markdown(table).items() for block in (wr.H1(name), wr.MarkdownBlock(text))),
            wr.H1("All rows, and the cost"),
            wr.PanelGrid(runsets=[wanted], panels=panels),
        ],
    )
