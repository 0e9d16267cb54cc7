"""The report of a run: numbers as files, figures as PNG and SVG, and one page that holds it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.metrics import selection
from tdaexp.metrics.averaging import average, mean_metrics
from tdaexp.metrics.axes import axes_of
from tdaexp.metrics.comparable import same_pairs
from tdaexp.metrics.compare import judge_all, reference_of, tabulate
from tdaexp.metrics.grouping import groups_of
from tdaexp.metrics.judge import flat_metrics
from tdaexp.metrics.proximity import flat_proximity
from tdaexp.metrics.selection import ComponentStudy
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import by_query_set, same_study
from tdaexp.report.answers import top_rows
from tdaexp.report.dashboards.swept import with_held_out
from tdaexp.report.dashboards.workspace import METHODS, RETRAINED, TEXTS
from tdaexp.report.latex import table_tex
from tdaexp.report.loggers import RunLogger
from tdaexp.report.methods_figures import draw, drawn_rows
from tdaexp.report.methods_page import methods_page
from tdaexp.report.page import Picture
from tdaexp.report.retrained import flat_retrained, print_retrained
from tdaexp.report.shown import shown_queries
from tdaexp.report.tables import print_missing, print_table
from tdaexp.report.texts import Texts
from tdaexp.runtime.csvs import frame_csv
from tdaexp.runtime.files import write_json, write_text
from tdaexp.runtime.progress import doing
from tdaexp.trust.check import Check


@dataclass(frozen=True)
class Comparison:
    """Stores by label, judged: the `groups` that are one row each, the `table` of these and that of single `runs`, what
    is known of the components of the `reference`, and the flat `metrics`.
    """

    datasets: dict[str, xr.Dataset]
    groups: dict[str, list[str]]
    reference: xr.Dataset | None
    studies: dict[str, ComponentStudy]
    table: pd.DataFrame
    runs: pd.DataFrame
    metrics: dict[str, float]


def compared(datasets: dict[str, xr.Dataset], settings: MetricSettings, over: Sequence[str] = ()) -> Comparison:
    """Judge the stores; those that differ in the keys `over` alone are one row, their mean (`metrics.averaging`).

    Components are studied of single runs only. With one store, metrics are named `<query set>/<metric>`; with several,
    the store's label stands before.
    """
    datasets = {label: influence.scored(dataset) for label, dataset in datasets.items()}
    groups = groups_of(datasets, over) if over else {label: [label] for label in datasets}
    reference = None if over else reference_of(datasets, settings)
    studies = {} if reference is None else selection.study(reference, settings)
    judged = judge_all(datasets, settings)
    table = runs = tabulate(datasets, judged, settings)
    if over:
        table = average(runs, datasets, groups, settings.confidence)
        table.attrs["over"] = list(over)
    # What selection can reach is a property of the products, so one store of several carries it.
    flat = {
        label: flat_metrics(judged[label], settings, studies if dataset is reference else {})
        for label, dataset in datasets.items()
    }
    metrics = _named(flat, groups if over else None, settings.confidence)
    return Comparison(datasets, groups, reference, studies, table, runs, metrics)


def write_report(
    folder: Path,
    datasets: dict[str, xr.Dataset],
    texts: Texts | None,
    settings: MetricSettings,
    logger: RunLogger | None = None,
    near: pd.DataFrame | None = None,
    judged_again: pd.DataFrame | None = None,
    trust: Mapping[str, Sequence[Check]] = MappingProxyType({}),
    over: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> dict[str, float]:
    """Judge the stores (`compared`), write everything into `folder`, print the table, and return the flat metrics.

    Files: `report.html`, `metrics.json`, `table.csv` and `table.tex`, `components.csv` (where a store has products),
    `runs.csv` (where rows are means: each run), and the figures as `plots/*.png` and `plots/*.svg`. `texts` maps query
    and training ids to texts (None: the page shows none). `logger` mirrors metrics, figures and tables. `near` tells
    how near the checkpoints of two training stages are (`metrics.proximity`), and is written to `proximity.csv`;
    `judged_again` how the stores fare where models are trained again (`retrained.frame`), to `retrained.csv`. `trust`
    has the checks of the stores by label. `missing` are jobs without a result, in words: the table is partial.
    """
    logger = logger or RunLogger()
    doing("judging the scores")
    found = compared(datasets, settings, over)
    metrics = found.metrics | ({} if near is None else flat_proximity(near))
    metrics |= {} if judged_again is None else flat_retrained(judged_again)
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "table.tex", table_tex(found.table, settings, missing))
    for name, table in _files(found, near, judged_again).items():
        write_text(folder / f"{name}.csv", frame_csv(table))
    doing("drawing figures")
    drawn = drawn_rows(
        found.table, next((label for label, one in found.datasets.items() if one is found.reference), None)
    )
    axes = axes_of(found.datasets, found.groups)
    pictures = draw(folder, found.studies, drawn, near, axes, judged_again) if settings.plots else []
    doing("writing the page")
    first = next(iter(found.datasets.values()))
    told = {label: dataset for label, dataset in found.datasets.items() if _beside(dataset, first)}
    queries = shown_queries(told, texts, settings.top_k) if texts else {}
    judged = found.datasets, found.groups, found.table, found.studies
    page = methods_page(*judged, pictures, queries, list(told), settings, trust, judged_again, missing)
    write_text(folder / "report.html", page)
    doing("mirroring the run")
    _mirror(logger, folder, metrics, pictures)
    of_texts, of_methods = _tables(found.datasets)
    logger.log_table(of_methods, found.table)
    if texts:
        logger.log_table(of_texts, _top_texts(told, texts if logger.texts else None, settings.top_k))
    print_table(found.table)
    if judged_again is not None:
        logger.log_table(RETRAINED, judged_again)
        print_retrained(judged_again)
    print_missing(missing)
    return metrics


def _files(found: Comparison, near: pd.DataFrame | None, judged_again: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The tables that are written as CSV, by name."""
    tables = {
        "table": found.table,
        "runs": None if found.runs is found.table else found.runs,
        "components": component_table(found.studies) if found.studies else None,
        "proximity": near,
        "retrained": judged_again,
    }
    return {name: table for name, table in tables.items() if table is not None}


def _named(
    flat: dict[str, dict[str, float]], means: dict[str, list[str]] | None, confidence: float
) -> dict[str, float]:
    """Metrics of all stores, their labels before them unless there is one; of groups (`means`) the means."""
    if means is not None:
        flat = {label: mean_metrics([flat[one] for one in own], confidence) for label, own in means.items()}
    single = len(flat) == 1
    return {key if single else f"{label}/{key}": one for label, own in flat.items() for key, one in own.items()}


def _tables(datasets: dict[str, xr.Dataset]) -> tuple[str, str]:
    """Names of the mirrored tables of texts and of methods. A comparison's are others than those of the runs that it
    compares, so that wandb, which puts tables of one name under each other, shows no row twice.
    """
    return (TEXTS, METHODS) if len(datasets) > 1 else ("top_texts", "comparison")


def _top_texts(datasets: dict[str, xr.Dataset], texts: Texts | None, k: int) -> pd.DataFrame:
    """Each method's best and worst rows of every query, in one table; without texts where there are none."""
    found = []
    for label, dataset in datasets.items():
        rows = top_rows(dataset, texts, k)
        near = rows.pop("near_identical").map(" ".join)
        rows = rows if texts else rows.drop(columns="text")
        found.append(rows.assign(near_identical=near).assign(method=label))
    return pd.concat(found, ignore_index=True)


def _beside(dataset: xr.Dataset, first: xr.Dataset) -> bool:
    """Whether a store's scores may stand beside the first one's: on the same pairs, of its queries or of some."""
    if not same_study(dataset, first):
        return False
    mine, theirs = by_query_set(dataset), by_query_set(first)
    return all(
        name not in theirs or same_pairs(part, theirs[name]) or same_pairs(theirs[name], part)
        for name, part in mine.items()
    )


def component_table(studies: dict[str, ComponentStudy]) -> pd.DataFrame:
    """Single-component accuracies of every query set, one row per component."""
    first = next(iter(studies.values())).table.drop(columns="accuracy")
    return first.assign(**{name: study.table["accuracy"].to_numpy() for name, study in studies.items()})


def _mirror(logger: RunLogger, folder: Path, metrics: dict[str, float], pictures: list[Picture]) -> None:
    logger.log_metrics(with_held_out(metrics))
    if pictures:
        logger.log_images({picture.name: folder / "plots" / f"{picture.name}.png" for picture in pictures})
