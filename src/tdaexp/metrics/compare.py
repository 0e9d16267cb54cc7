"""Several stores in one table, with the controls that every table carries."""

from __future__ import annotations

from typing import Any

import pandas as pd
import xarray as xr

from tdaexp.metrics.controls import bm25_answer
from tdaexp.metrics.judge import Judgement, assess
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import by_query_set, has_products

CONTROLS = ("BM25", "random")


def reference_of(datasets: dict[str, xr.Dataset]) -> xr.Dataset | None:
    """The store that tells what the full gradient scores: method `full` if there, else any with products."""
    full = [dataset for dataset in datasets.values() if dataset.attrs.get("method") == "full"]
    able = [dataset for dataset in full + list(datasets.values()) if has_products(dataset)]
    return able[0] if able else None


def compare(datasets: dict[str, xr.Dataset], settings: MetricSettings) -> pd.DataFrame:
    """One row per method label and query set, and per query set the rows `BM25` and `random`.

    Columns: `method`, `query_set`, `queries`, `accuracy` and `heldout` (each with `_low` and `_high`),
    `selected`, `mrr`, `recall`, `share`, `fidelity`, `rank_correlation`, `minus_bm25` (with bounds),
    `vs_bm25` (+, −, ≈ or nothing), and one column `cost_<name>` per entry of the stores' attribute `cost`.
    The control rows are computed on the pairs of the first store that holds the query set; NaN is what a
    method does not have.
    """
    reference = reference_of(datasets)
    rows: list[dict[str, Any]] = []
    chance: dict[str, Judgement] = {}
    for label, dataset in datasets.items():
        cost = {f"cost_{key}": value for key, value in dataset.attrs.get("cost", {}).items()}
        for name, found in assess(dataset, settings, reference).items():
            rows.append({"method": label, "query_set": name} | _row(found) | cost)
            chance.setdefault(name, found)
    return pd.DataFrame(rows + _controls(datasets, settings, reference, chance))


def _controls(
    datasets: dict[str, xr.Dataset],
    settings: MetricSettings,
    reference: xr.Dataset | None,
    chance: dict[str, Judgement],
) -> list[dict[str, Any]]:
    """Rows of the controls that are not among the stores themselves."""
    methods = {dataset.attrs.get("method") for dataset in datasets.values()}
    parts: dict[str, xr.Dataset] = {}
    for dataset in datasets.values():
        parts = by_query_set(dataset) | parts
    rows = []
    for name, found in chance.items():
        if "bm25" not in methods and not parts[name]["bm25"].isnull().all():
            lexical = _row(assess(bm25_answer(parts[name]), settings, reference)[name])
            # Lexical scores are no gradient similarities, and BM25 against itself tells nothing.
            own = {key: None for key in lexical if key == "fidelity" or "bm25" in key}
            rows.append({"method": "BM25", "query_set": name} | lexical | own)
        if found.random == found.random:
            exact = {key: found.random for key in ("accuracy", "heldout")}
            rows.append(
                {"method": "random", "query_set": name, "queries": found.queries, "selected": False} | exact
            )
    return rows


def _row(found: Judgement) -> dict[str, Any]:
    row: dict[str, Any] = {"queries": found.queries}
    for key, interval in (("accuracy", found.accuracy), ("heldout", found.held_out)):
        row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    row |= {"selected": found.selected, "mrr": found.mrr.value}
    row |= {key: getattr(found, key) for key in ("recall", "share", "fidelity", "rank_correlation")}
    difference = found.minus_bm25
    row |= {
        "minus_bm25": difference.value,
        "minus_bm25_low": difference.low,
        "minus_bm25_high": difference.high,
    }
    return row | {"vs_bm25": found.verdict}
