"""Tables for people: the comparison on a terminal, and its cells as text for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tdaexp.report.console import of_width
from tdaexp.report.figures import percent

HEADINGS = {
    "method": "method",
    "runs": "runs",
    "queries": "queries",
    "heldout": "accuracy",
    "accuracy": "in-sample",
    "vs_bm25": "vs BM25",
    "mrr": "MRR",
    "recall": "recall@k",
    "share": "parameters",
    "fidelity": "similarity to full",
    "rank_correlation": "rank corr.",
    "overhead": "overhead",
    "pairwise": "per query",
}
RETRIEVAL, RANKING = {"heldout", "accuracy", "vs_bm25", "recall"}, {"rank_correlation", "overhead", "pairwise"}
STAGES = ("overhead", "gradients", "scoring")
NAMED = 20  # jobs without a result on a terminal


def parts_of(table: pd.DataFrame) -> list[tuple[str, int]]:
    """Query sets and sections: the parts of a comparison in which rows may be ranked together."""
    keys = zip(table["query_set"], table["section"], strict=True)
    order = {name: place for place, name in enumerate(dict.fromkeys(table["query_set"]))}
    return sorted(dict.fromkeys((str(name), int(number)) for name, number in keys), key=lambda k: (order[k[0]], k[1]))


def part_of(table: pd.DataFrame, query_set: str, section: int = 0) -> pd.DataFrame:
    """The rows of one part."""
    return table[(table["query_set"] == query_set) & (table["section"] == section)]


def rows_of(table: pd.DataFrame, query_set: str, section: int = 0) -> list[dict[str, str]]:
    """The cells of one part by column name (`HEADINGS`), best accuracy first, then methods that answer some of the
    queries only, controls last.

    With a named reference the best is the one that ranks most like it.

    The column `heldout` is the accuracy on queries that were not used for selecting; `accuracy` is filled
    only for methods that selected on the queries.
    """
    mine = part_of(table.join(times(table)), query_set, section)
    is_control = mine["control"] != ""
    best = "rank_correlation" if table.attrs.get("reference") else "heldout"
    asked = mine["queries"].max()  # a method may answer some of the queries only: then it says how many
    mine = mine.assign(last=is_control, some=~complete(mine))
    mine = mine.sort_values(["last", "some", best], ascending=[True, True, False], kind="stable")
    counts = ["" if one == asked or math.isnan(one) else f"{one:.0f}" for one in mine["queries"]]
    return [
        _cells(line) | {"queries": count, "runs": runs_of(line.to_dict())}
        for (_, line), count in zip(mine.iterrows(), counts, strict=True)
    ]


def complete(part: pd.DataFrame) -> pd.Series:
    """Which rows of a part may be ranked: of all its queries, and of every model that others are means over."""
    return (part["queries"] >= part["queries"].max()) & (part.get("missing", pd.Series(0, part.index)) == 0)


def runs_of(line: Mapping[Any, Any]) -> str:
    """Number of runs that a mean is of; where there could be more, of how many."""
    if "runs" not in line:
        return ""
    return f"{line['runs']:.0f}" + (f" of {line['runs'] + line['missing']:.0f}" if line["missing"] else "")


def columns_of(rows: list[dict[str, str]]) -> list[str]:
    """Columns that hold anything."""
    return [name for name in HEADINGS if any(row[name] for row in rows)]


def headings(table: pd.DataFrame) -> dict[str, str]:
    """Headings by column, with the k of recall@k and the reference of the correlations, where the table knows them."""
    named = dict(HEADINGS)
    if table.attrs.get("top_k"):
        named["recall"] = f"recall@{table.attrs['top_k']}"
    if table.attrs.get("reference"):
        named["fidelity"] = f"similarity to {table.attrs['reference']}"
        named["rank_correlation"] = f"rank corr. with {table.attrs['reference']}"
    return named


def title(table: pd.DataFrame, query_set: str, section: int = 0) -> str:
    """Title of a part: its name, its number of queries, of how many the source is known if not of all, how many the
    model answers by itself, and what differs from the query set's first part.
    """
    part = part_of(table, query_set, section)
    queries, answered = int(part["queries"].max()), part["answered"].dropna()
    told = f"{queries} queries{sources(int(part['with_truth'].max()), queries)}"
    told += f", {percent(answered.iloc[0])} answered by the model itself" if len(answered) else ""
    told += f"; means over {', '.join(table.attrs['over'])}" if table.attrs.get("over") else ""
    differs = part["differs"].iloc[0]
    return f"{query_set} ({told})" + (f", apart from the others: {differs}" if differs else "")


def sources(known: int, queries: int) -> str:
    """Of how many queries the source is known; nothing where it is of all."""
    if known == queries:
        return ""
    return f", the source known of {known}" if known else ", no source known"


def print_table(table: pd.DataFrame, console: Console | None = None) -> None:
    """Print the comparison, one table for each part.

    With a named reference the columns are those of ranking and cost, else those of retrieval.
    """
    console = of_width(console)
    for name, section in parts_of(table):
        rows = rows_of(table, name, section)
        console.print(Text(title(table, name, section), style="italic"))
        shown = Table(header_style="bold", box=SIMPLE)
        hidden = RETRIEVAL if table.attrs.get("reference") else RANKING
        columns = [column for column in columns_of(rows) if column not in hidden]
        for column in columns:
            left = column in ("method", "vs_bm25")
            # Folded, not cut: two labels may differ in their last letters only.
            shown.add_column(Text(headings(table)[column]), justify="left" if left else "right", overflow="fold")
        for row in rows:
            # Text, not markup: a label may say [damping=0.1]
            shown.add_row(*(Text(row[column]) for column in columns), style="dim" if row["control"] else None)
        console.print(shown)


def print_missing(missing: Sequence[str], console: Console | None = None) -> None:
    """Say which jobs have no result, so that the table is a part of what was asked for."""
    if missing:
        console = of_width(console)
        console.print(Text(partial(missing), style="yellow"))
        for job in [*missing[:NAMED], *(["…"] if len(missing) > NAMED else [])]:
            console.print(Text(f"  {job}"), overflow="fold")


def partial(missing: Sequence[str]) -> str:
    """That a table is partial, and of how many jobs there is no result."""
    return f"Partial: {len(missing)} job{' has' if len(missing) == 1 else 's have'} no result yet"


def number(value: float, digits: int = 3) -> str:
    """A number with a fixed count of digits; nothing for NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """0.836 [0.814, 0.859]; without bounds the value alone."""
    bounds = f" [{number(low)}, {number(high)}]" if number(low) else ""
    return number(value) + bounds


def seconds(value: float) -> str:
    """A duration for people."""
    if value is None or math.isnan(value):
        return ""
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.2f} h"


def costs(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Seconds by stage and method (table 2 of Select or Project): heading and rows, if known."""
    names = [column for column in table.columns if column.startswith("cost_")]
    known = table.drop_duplicates("method").dropna(subset=names, how="all") if names else table[:0]
    heading = ["method", *(name.removeprefix("cost_") for name in names), "total"]
    rows = []
    for _, line in known.iterrows():
        values = [float(line[name]) for name in names]
        total = sum(value for value in values if not math.isnan(value))
        rows.append([line["method"], *map(seconds, values), seconds(total)])
    return heading, rows


def times(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds per row that serve all queries (`overhead`) and that one query costs (`pairwise`); NaN where not known.

    A query's cost is that of its gradient and of scoring all its pairs; the queries of all sets count.
    """
    costs = {name: table.get(f"cost_{name}", pd.Series(math.nan, table.index)) for name in STAGES}
    queries = table.groupby("method")["queries"].transform("sum")
    return pd.DataFrame({"overhead": costs["overhead"], "pairwise": (costs["gradients"] + costs["scoring"]) / queries})


def _cells(line: pd.Series) -> dict[str, str]:
    difference = with_interval(line["minus_bm25"], line["minus_bm25_low"], line["minus_bm25_high"])
    return {
        "method": line["method"],
        "control": line["control"],
        "heldout": with_interval(line["heldout"], line["heldout_low"], line["heldout_high"]),
        "accuracy": number(line["accuracy"]) if line["selected"] else "",
        "vs_bm25": f"{line['vs_bm25']} {difference}" if line["vs_bm25"] else "",
        "mrr": with_interval(line["mrr"], line["mrr_low"], line["mrr_high"]),
        "recall": number(line["recall"]),
        "share": percent(line["share"]) if number(line["share"]) else "",
        "fidelity": number(line["fidelity"], 4),
        "rank_correlation": with_interval(
            line["rank_correlation"], line["rank_correlation_low"], line["rank_correlation_high"]
        ),
        "overhead": seconds(line["overhead"]),
        "pairwise": seconds(line["pairwise"]),
    }
