"""The report of a run: numbers as files, figures as PNG and SVG, and one page that holds it all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from tdaexp import influence
from tdaexp.metrics import selection
from tdaexp.metrics.comparable import same_pairs
from tdaexp.metrics.compare import judge_all, reference_of, tabulate
from tdaexp.metrics.judge import flat_metrics
from tdaexp.metrics.proximity import flat_proximity
from tdaexp.metrics.selection import ComponentStudy
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import by_query_set, same_study
from tdaexp.report import component_plots, curve_plots, influence_plots
from tdaexp.report.answers import top_rows
from tdaexp.report.dashboards.swept import with_held_out
from tdaexp.report.dashboards.workspace import METHODS, TEXTS
from tdaexp.report.figures import render
from tdaexp.report.loggers import RunLogger
from tdaexp.report.methods_page import methods_page
from tdaexp.report.page import Picture
from tdaexp.report.shown import shown_queries
from tdaexp.report.tables import print_table
from tdaexp.report.texts import Texts
from tdaexp.runtime.csvs import frame_csv
from tdaexp.runtime.files import atomic_path, write_json, write_text
from tdaexp.runtime.progress import doing


def write_report(
    folder: Path,
    datasets: dict[str, xr.Dataset],
    texts: Texts | None,
    settings: MetricSettings,
    logger: RunLogger | None = None,
    near: pd.DataFrame | None = None,
) -> dict[str, float]:
    """Judge the stores, write everything into `folder`, print the table, and return the flat metrics.

    Files: `report.html`, `metrics.json`, `table.csv`, `components.csv` (where a store has products), and the
    figures as `plots/*.png` and `plots/*.svg`. With one store, metrics are named `<query set>/<metric>`;
    with several, the store's label stands before. `texts` maps query and
    training ids to texts (None: the page shows none). `logger` mirrors metrics, figures and tables. `near` tells how
    near the checkpoints of two training stages are (`metrics.proximity`), and is written to `proximity.csv`.
    """
    logger = logger or RunLogger()
    doing("judging the scores")
    datasets = {label: influence.scored(dataset) for label, dataset in datasets.items()}
    reference = reference_of(datasets, settings)
    studies = {} if reference is None else selection.study(reference, settings)
    judged = judge_all(datasets, settings)
    table = tabulate(datasets, judged, settings)
    metrics: dict[str, float] = {}
    for label, dataset in datasets.items():
        prefix = f"{label}/" if len(datasets) > 1 else ""
        # What selection can reach is a property of the products, so one store of several carries it.
        own = flat_metrics(judged[label], settings, studies if dataset is reference else {})
        metrics |= {prefix + key: value for key, value in own.items()}
    if near is not None:
        metrics |= flat_proximity(near)
        write_text(folder / "proximity.csv", frame_csv(near))
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "table.csv", frame_csv(table))
    if studies:
        write_text(folder / "components.csv", frame_csv(component_table(studies)))
    doing("drawing figures")
    pictures = _draw(folder, studies, _drawn(table, datasets, reference), near) if settings.plots else []
    first = next(iter(datasets.values()))
    told = {label: dataset for label, dataset in datasets.items() if _beside(dataset, first)}
    doing("writing the page")
    queries = shown_queries(told, texts, settings.top_k) if texts else {}
    write_text(folder / "report.html", methods_page(datasets, table, studies, pictures, queries, list(told), settings))
    doing("mirroring the run")
    _mirror(logger, folder, metrics, pictures)
    logger.log_table(_tables(datasets)[1], table)
    if texts:
        logger.log_table(_tables(datasets)[0], _top_texts(told, texts if logger.texts else None, settings.top_k))
    print_table(table)
    return metrics


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


def _drawn(table: pd.DataFrame, datasets: dict[str, xr.Dataset], reference: xr.Dataset | None) -> pd.DataFrame:
    """The rows for the figures: of each query set the section that the reference stands in, or the first."""
    label = next((label for label, dataset in datasets.items() if dataset is reference), None)
    mine = table[table["method"] == label].set_index("query_set")["section"].to_dict()
    drawn = table[table["section"] == table["query_set"].map(lambda name: mine.get(name, 0))]
    drawn.attrs |= table.attrs
    return drawn


def component_table(studies: dict[str, ComponentStudy]) -> pd.DataFrame:
    """Single-component accuracies of every query set, one row per component."""
    first = next(iter(studies.values())).table.drop(columns="accuracy")
    return first.assign(**{name: study.table["accuracy"].to_numpy() for name, study in studies.items()})


def _draw(
    folder: Path, studies: dict[str, ComponentStudy], table: pd.DataFrame, near: pd.DataFrame | None
) -> list[Picture]:
    figures: list[tuple[str, str, Figure]] = []
    if table["heldout"].notna().any():
        caption = "Retrieval accuracy of every method, on queries that it was not selected on, with intervals."
        figures.append(("accuracies", caption, curve_plots.accuracies(table[table["heldout"].notna()])))
    if studies:
        figures += _study_figures(studies, table)
    figures += _influence_figures(table, near)
    pictures = []
    for name, caption, figure in figures:
        for kind in ("png", "svg"):
            with atomic_path(folder / "plots" / f"{name}.{kind}") as temporary:
                temporary.write_bytes(render(figure, kind))
        pictures.append(Picture(name, caption, (folder / "plots" / f"{name}.svg").read_bytes()))
    return pictures


def _influence_figures(table: pd.DataFrame, near: pd.DataFrame | None) -> list[tuple[str, str, Figure]]:
    figures = []
    if influence_plots.has_times(table):
        caption = "Rank correlation with the reference against time. Hollow: a query's pairs; solid: with the overhead."
        figures.append(("accuracy_time", caption, influence_plots.accuracy_time(table)))
    if influence_plots.has_dampings(table):
        caption = "Retrieval against damping, with intervals. Without damping: MRR dashed, recall in wide dots."
        figures.append(("damping", caption, influence_plots.by_damping(table)))
    if near is not None:
        caption = "How far fine-tuning moved the weights of each component, absolute and relative to their norm."
        figures.append(("proximity", caption, influence_plots.nearness(near)))
    return figures


def _study_figures(studies: dict[str, ComponentStudy], table: pd.DataFrame) -> list[tuple[str, str, Figure]]:
    figures = [
        (
            "accuracy_curve",
            "Greedy selection by accuracy: what the growing subset retrieves, on the queries that it was "
            "found on and on held-out ones, against the full gradient, projections and controls. The curve "
            "takes the best component first, whatever its size; a run with a budget (outlined marks) chooses "
            "among those that fit, so it can lie left of the curve.",
            curve_plots.accuracy_curve(studies, table),
        ),
        (
            "fidelity_curve",
            "Greedy selection by similarity to the full gradient's scores, beside the similarity that "
            "selection by accuracy has.",
            curve_plots.fidelity_curve(studies, table),
        ),
        (
            "components",
            "Retrieval accuracy of every component alone. Components outside the layers stand at the right.",
            component_plots.every_component(studies),
        ),
        (
            "by_size",
            "Accuracy of single components by their number of parameters. Dashed: full gradient.",
            component_plots.by_size(studies),
        ),
    ]
    if next(iter(studies.values())).table["depth"].notna().any():
        caption = "Accuracy of single components by depth. Dashed: full gradient."
        figures.append(("by_depth", caption, component_plots.by_depth(studies)))
    return figures


def _mirror(logger: RunLogger, folder: Path, metrics: dict[str, float], pictures: list[Picture]) -> None:
    logger.log_metrics(with_held_out(metrics))
    if pictures:
        logger.log_images({picture.name: folder / "plots" / f"{picture.name}.png" for picture in pictures})
