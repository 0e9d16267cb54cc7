"""What an analysis found, and how it is written: tables as CSV, figures as PNG and SVG, and one page that holds all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from tdaexp.report.figures import render
from tdaexp.report.loggers import RunLogger
from tdaexp.report.page import Picture, page
from tdaexp.report.trust_panel import panel
from tdaexp.runtime.csvs import frame_csv
from tdaexp.runtime.files import atomic_path, write_json, write_text
from tdaexp.runtime.progress import doing
from tdaexp.trust.check import Check


@dataclass(frozen=True)
class Statement:
    """One sentence or two about a claim; `tone` is good (it was reproduced), bad (it was not), cause (it was
    contradicted, and `text` says by what) or open.
    """

    claim: str
    text: str
    tone: str = "open"


@dataclass(frozen=True)
class Drawing:
    """A figure with its file name (without suffix) and its caption; `wide` takes the page's whole width."""

    name: str
    caption: str
    figure: Figure
    wide: bool = False


@dataclass
class Findings:
    """Flat `metrics`, tables by file name, drawings and statements, in the order of the page."""

    title: str
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


def draw(folder: Path, drawings: list[Drawing]) -> list[tuple[Picture, bool]]:
    """Write every figure as `plots/NAME.png` and `.svg`; returns the pictures for a page, and whether they are wide."""
    pictures = []
    for one in drawings:
        for kind in ("png", "svg"):
            with atomic_path(folder / "plots" / f"{one.name}.{kind}") as temporary:
                temporary.write_bytes(render(one.figure, kind))
        svg = (folder / "plots" / f"{one.name}.svg").read_bytes()
        pictures.append((Picture(one.name, one.caption, svg), one.wide))
    return pictures


def write_findings(
    folder: Path,
    findings: Findings,
    stores: dict[str, xr.Dataset],
    logger: RunLogger | None = None,
    trust: Sequence[Check] = (),
) -> dict[str, float]:
    """Write `report.html`, `metrics.json`, a CSV file for each table, and `plots/`; returns the metrics.

    `stores`, by label, are those that the findings rest on: the page tells where they came from. `trust` are the
    checks of the one store.
    """
    logger = logger or RunLogger()
    write_json(folder / "metrics.json", findings.metrics)
    doing("writing figures, tables and the page")
    for name, table in findings.tables.items():
        write_text(folder / f"{name}.csv", frame_csv(table))
        logger.log_table(name, table)
    pictures = draw(folder, findings.drawings)
    write_text(folder / "report.html", findings_page(findings, pictures, stores, trust))
    logger.log_metrics(findings.metrics)
    if pictures:
        logger.log_images({picture.name: folder / "plots" / f"{picture.name}.png" for picture, _ in pictures})
    return findings.metrics


def findings_page(
    findings: Findings,
    pictures: list[tuple[Picture, bool]],
    stores: dict[str, xr.Dataset],
    trust: Sequence[Check] = (),
) -> str:
    """Render the page."""
    return page(
        "findings.html",
        stores,
        title=findings.title,
        statements=findings.statements,
        tables={name: _cells(table) for name, table in findings.tables.items()},
        pictures=pictures,
        trust=panel({findings.title: trust}),
    )


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    return list(map(str, table.columns)), rows
