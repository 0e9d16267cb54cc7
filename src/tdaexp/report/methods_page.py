"""What the page of `evaluate.py` shows of a comparison of methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd
import xarray as xr

from tdaexp.metrics.selection import ComponentStudy, by_type
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.figures import count_label
from tdaexp.report.page import Picture, page
from tdaexp.report.retrained import cells, parts
from tdaexp.report.shown import Query
from tdaexp.report.summary import findings
from tdaexp.report.tables import columns_of, costs, headings, number, partial, parts_of, rows_of, title
from tdaexp.report.trust_panel import panel
from tdaexp.trust.check import Check


def methods_page(
    datasets: dict[str, xr.Dataset],
    labels: Collection[str],
    table: pd.DataFrame,
    studies: dict[str, ComponentStudy],
    pictures: list[Picture],
    queries: dict[str, list[Query]],
    told: list[str],
    settings: MetricSettings,
    trust: Mapping[str, Sequence[Check]],
    judged_again: pd.DataFrame | None = None,
    missing: Sequence[str] = (),
) -> str:
    """Render the report of the rows `labels`; `queries` are shown with the scores of the stores `told`.

    `trust` has the checks of the stores by label, `judged_again` (`retrained.frame`) are tables of their own, `missing`
    are jobs without a result, in words.
    """
    heading, cost_rows = costs(table)
    return page(
        "report.html",
        datasets,
        labels=list(labels),
        findings=findings(table),
        tables=_tables(table),
        judged=[] if judged_again is None else [(*told_of[:2], cells(told_of[2])) for told_of in parts(judged_again)],
        headings=headings(table),
        pictures=pictures,
        types=_types(studies),
        sets=list(studies),
        studied={name: study.asked for name, study in studies.items()},
        components=_components(studies),
        queries=queries,
        told=told,
        sourced=any(query.hits for items in queries.values() for query in items),
        apart=bool((table["section"] > 0).any()),
        shaded=any(
            row.shaded for items in queries.values() for query in items for rows in query.sides.values() for row in rows
        ),
        files=len(datasets) == 1,
        totals=table[table["section"] == 0].groupby("query_set", sort=False)["queries"].max().astype(int).to_dict(),
        cost_heading=heading,
        cost_rows=cost_rows,
        settings=settings,
        trust=panel(trust),
        over=table.attrs.get("over", []),
        partial=partial(missing) if missing else "",
        missing=missing,
        percent=f"{100 * settings.confidence:g}",
    )


def _tables(table: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for name, section in parts_of(table):
        rows = rows_of(table, name, section)
        found.append({"name": title(table, name, section), "rows": rows, "columns": columns_of(rows)})
    return found


def _types(studies: dict[str, ComponentStudy]) -> list[list[str]]:
    """Rows of table 1: type, number of components, parameters each, mean accuracy per query set."""
    if not studies:
        return []
    rows = [
        [str(kind), f"{line['components']:.0f}", count_label(line["parameters"])]
        + [number(line[name]) for name in studies]
        for kind, line in by_type(studies).iterrows()
    ]
    full = ["full gradient", "", count_label(next(iter(studies.values())).table["size"].sum())]
    return [*rows, full + [number(study.full) for study in studies.values()]]


def _components(studies: dict[str, ComponentStudy]) -> list[list[str]]:
    """Rows of the single components: name, parameters, accuracy per query set, in parameter order."""
    if not studies:
        return []
    first = next(iter(studies.values())).table
    accuracy = [study.table["accuracy"].tolist() for study in studies.values()]
    return [
        [name, count_label(size), *(number(values[place], 4) for values in accuracy)]
        for place, (name, size) in enumerate(zip(first["component"], first["size"], strict=True))
    ]
