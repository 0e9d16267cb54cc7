"""The self-contained page: one HTML file that opens anywhere and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import pandas as pd
import xarray as xr
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tdaexp.metrics.selection import ComponentStudy, by_type
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.figures import count_label
from tdaexp.report.shading import LEVELS
from tdaexp.report.summary import findings
from tdaexp.report.tables import columns_of, costs, headings, number, rows_of
from tdaexp.report.texts import Query


@dataclass(frozen=True)
class Picture:
    """A figure: file name without suffix, caption, and its SVG."""

    name: str
    caption: str
    svg: bytes

    @property
    def source(self) -> str:
        """The picture as a data URI: ids inside one SVG cannot meet those of another."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def page(
    datasets: dict[str, xr.Dataset],
    table: pd.DataFrame,
    studies: dict[str, ComponentStudy],
    pictures: list[Picture],
    queries: dict[str, list[Query]],
    settings: MetricSettings,
) -> str:
    """Render the report."""
    environment = Environment(
        loader=PackageLoader("tdaexp.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    heading, cost_rows = costs(table)
    return environment.get_template("report.html").render(
        labels=list(datasets),
        findings=findings(table),
        tables=_tables(table),
        headings=headings(table),
        pictures=pictures,
        types=_types(studies),
        sets=list(studies),
        components=_components(studies),
        queries=queries,
        shaded=any(one.shaded for items in queries.values() for query in items for one in query.candidates),
        levels=LEVELS,
        totals=table.groupby("query_set", sort=False)["queries"].max().astype(int).to_dict(),
        cost_heading=heading,
        cost_rows=cost_rows,
        provenance=[provenance_of(label, dataset) for label, dataset in datasets.items()],
        settings=settings,
        percent=f"{100 * settings.confidence:g}",
    )


def _tables(table: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for name in dict.fromkeys(table["query_set"]):
        rows = rows_of(table, name)
        found.append({"name": name, "rows": rows, "columns": columns_of(rows)})
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


def provenance_of(label: str, dataset: xr.Dataset) -> dict[str, Any]:
    """Where a store came from: its plain attributes, package versions, and the configuration as YAML."""
    special = ("config", "versions", "cost")
    plain = {key: value for key, value in dataset.attrs.items() if key not in special and value is not None}
    versions = dataset.attrs.get("versions", {})
    config = dataset.attrs.get("config")
    return {
        "label": label,
        "facts": plain,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "config": "" if config is None else yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    }
