"""Several stores in one table, with the controls that every table carries."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import xarray as xr

from tdaexp.metrics.comparable import Section, sections
from tdaexp.metrics.controls import bm25_answer
from tdaexp.metrics.judge import Judgement, assess
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import has_products, same_study
from tdaexp.runtime.errors import UserError, unknown

CHANCE = "random (expected)"
CONTROLS = {"bm25": "BM25", "random": "random"}  # method to control


def reference_of(datasets: dict[str, xr.Dataset], settings: MetricSettings) -> xr.Dataset | None:
    """The store that others are compared with: the one that `metric.reference` names by label or method.

    Without one, the store that tells what the full gradient scores: method `full` if there, else any with products.
    Errors (UserError): no store of that name, or several of that method.
    """
    if settings.reference is not None:
        return _named(datasets, settings.reference)
    full = [dataset for dataset in datasets.values() if dataset.attrs.get("method") == "full"]
    able = [dataset for dataset in full + list(datasets.values()) if has_products(dataset)]
    return able[0] if able else None


def _named(datasets: dict[str, xr.Dataset], name: str) -> xr.Dataset:
    if name in datasets:
        return datasets[name]
    found = {label: dataset for label, dataset in datasets.items() if dataset.attrs["method"] == name}
    if not found:
        choices = [*datasets, *(str(dataset.attrs["method"]) for dataset in datasets.values())]
        raise unknown("method", name, choices, "metric.reference")
    if len(found) > 1:
        raise UserError(f"metric.reference={name}: several stores are of this method; name one of {', '.join(found)}")
    return next(iter(found.values()))


def compare(datasets: dict[str, xr.Dataset], settings: MetricSettings) -> pd.DataFrame:
    """Judge the stores and tabulate them (`tabulate`)."""
    return tabulate(datasets, judge_all(datasets, settings), settings)


def judge_all(datasets: dict[str, xr.Dataset], settings: MetricSettings) -> dict[str, dict[str, Judgement]]:
    """Judgements by store and query set, each against the reference for its own model and queries."""
    return {label: assess(dataset, settings, _own(dataset, datasets, settings)) for label, dataset in datasets.items()}


def _own(dataset: xr.Dataset, datasets: dict[str, xr.Dataset], settings: MetricSettings) -> xr.Dataset | None:
    """The reference among the stores of the same model and queries; None where it has no run of this model."""
    peers = {name: other for name, other in datasets.items() if same_study(dataset, other)}
    named = settings.reference
    elsewhere = any(named in (name, other.attrs["method"]) for name, other in datasets.items())
    if elsewhere and not any(named in (name, other.attrs["method"]) for name, other in peers.items()):
        return None
    return reference_of(peers, settings)


def tabulate(
    datasets: dict[str, xr.Dataset], judged: dict[str, dict[str, Judgement]], settings: MetricSettings
) -> pd.DataFrame:
    """One row per method label and query set, and per section of a query set the controls BM25 and random.

    Rows compare within a section (`comparable`): its number `section` counts from 0 in each query set, and `differs`
    says what is other than in section 0.

    Columns: `method` (the store's label), `kind` (its method), `damping`, `query_set`, `section`, `differs`, `control`
    (`BM25`, `random` or nothing), `projected`, `queries`, `with_truth` (of how many queries the sources are known: the
    numbers of retrieval are of those), `accuracy` and `heldout` (each with `_low` and `_high`), `selected`, `mrr`,
    `recall` and `rank_correlation` (with bounds), `share`, `fidelity`, `answered`, `mrr_sd`, `minus_bm25` (with
    bounds), `vs_bm25` (+, −, ≈ or nothing), and one column `cost_<name>` per entry of the stores' attribute `cost`.
    The control rows are computed on the pairs of the section; NaN is what a method does not have. The
    table's own attributes `top_k` and `reference` say what recall and rank correlation refer to.
    """
    rows: list[dict[str, Any]] = []
    places = _places(sections(datasets))
    for label, dataset in datasets.items():
        control = CONTROLS.get(dataset.attrs["method"], "")
        kind = {"control": control, "projected": "projection" in dataset.attrs}
        kind |= {"kind": dataset.attrs["method"], "damping": damping_of(dataset)}
        cost = {f"cost_{key}": value for key, value in dataset.attrs.get("cost", {}).items()}
        for name, found in judged[label].items():
            number = next(k for k, one in enumerate(places[name]) if label in one.labels)
            place = {"query_set": name, "section": number, "differs": places[name][number].differs}
            rows.append({"method": label} | place | kind | _row(found) | cost)
    for name, mine in places.items():
        for number, section in enumerate(mine):
            place = {"query_set": name, "section": number, "differs": section.differs}
            stored = {row["control"] for row in rows if (row["query_set"], row["section"]) == (name, number)}
            reference = _own(section.whole, datasets, settings)
            controls = _controls(name, section.whole, settings, reference, with_bm25="BM25" not in stored)
            rows += [row | place for row in controls]
    table = pd.DataFrame(rows).fillna({"vs_bm25": ""})
    table.attrs |= {"top_k": settings.top_k, "reference": settings.reference}
    return table


def _places(every: list[Section]) -> dict[str, list[Section]]:
    """Sections by query set."""
    found: dict[str, list[Section]] = {}
    for one in every:
        found.setdefault(one.query_set, []).append(one)
    return found


def damping_of(dataset: xr.Dataset) -> float:
    """The fixed damping that a store's method was told; NaN where it has none."""
    told = (dataset.attrs.get("config") or {}).get("method", {}).get("damping")
    return math.nan if told is None else float(told)


def _controls(
    name: str, part: xr.Dataset, settings: MetricSettings, reference: xr.Dataset | None, with_bm25: bool
) -> list[dict[str, Any]]:
    """Rows of BM25, unless a store holds it, and of the exact chance; only what is known."""
    rows: list[dict[str, Any]] = []
    lexical = assess(bm25_answer(part), settings, reference)[name]
    if with_bm25 and not math.isnan(lexical.bm25.value):
        # Lexical scores are no gradient similarities, and BM25 against itself tells nothing.
        row = {key: value for key, value in _row(lexical).items() if key != "fidelity" and "bm25" not in key}
        rows.append({"method": "BM25", "query_set": name, "control": "BM25", "projected": False} | row)
    if not math.isnan(lexical.random):
        row = {
            "queries": lexical.queries,
            "with_truth": lexical.with_truth,
            "accuracy": lexical.random,
            "heldout": lexical.random,
            "selected": False,
        }
        rows.append({"method": CHANCE, "query_set": name, "control": "random", "projected": False} | row)
    return rows


def _row(found: Judgement) -> dict[str, Any]:
    row: dict[str, Any] = {"queries": found.queries, "with_truth": found.with_truth}
    for key, interval in (("accuracy", found.accuracy), ("heldout", found.held_out)):
        row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    row |= {"selected": found.selected}
    for key in ("mrr", "recall", "rank_correlation"):
        interval = getattr(found, key)
        row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    row |= {key: getattr(found, key) for key in ("share", "fidelity", "answered", "mrr_sd")}
    difference = found.minus_bm25
    row |= {
        "minus_bm25": difference.value,
        "minus_bm25_low": difference.low,
        "minus_bm25_high": difference.high,
    }
    return row | {"vs_bm25": found.verdict}
