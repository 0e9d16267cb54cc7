"""Reading influence data sets: their query sets, their pairs in another store, the share of parameters they
use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence

TOLD = 3  # keys that a label names


def by_query_set(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """Cut a data set into its query sets, in order of appearance."""
    names = dataset["query_set"].values
    return {str(name): influence.of_queries(dataset, np.flatnonzero(names == name)) for name in dict.fromkeys(names)}


def has_products(dataset: xr.Dataset) -> bool:
    """Tell whether any subset of components can be scored: products and self-products of the gradients
    themselves.

    A projection also stores products per component, but of sketches, and says so by its attribute
    `projection`.
    """
    cosine = "component" in dataset["influence"].dims and dataset.attrs["normalise"] == "cosine"
    return cosine and "projection" not in dataset.attrs


def full_scores(dataset: xr.Dataset) -> xr.DataArray:
    """Scores [query, candidate] of all components together, whatever subset the method's own answer takes."""
    return influence.scores(dataset.drop_vars("weight", errors="ignore"))


def share(dataset: xr.Dataset) -> float:
    """Share of the model's parameters (or dimensions) that the answer uses; NaN for methods that use no gradient.

    A sketch states its share as an attribute; of what there is, chosen components count by their parameters. Components
    that the method does not look at count as not used: the attribute `parameters` says how many the model has.
    `dataset` holds one query set.
    """
    if "component" not in dataset["influence"].dims:
        return float("nan")
    sizes = used = dataset["size"].values
    if "weight" in dataset:
        used = dataset["weight"].sel(query_set_name=dataset["query_set"].values[0]).values * sizes
    whole = dataset.attrs.get("parameters", sizes.sum())
    return float(dataset.attrs.get("share", 1.0)) * float(used.sum() / whole)


def same_study(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two stores are about the same model, training examples and queries, so that their scores compare."""
    return one.attrs.get("study") == other.attrs.get("study")


def distinct_labels(datasets: list[xr.Dataset]) -> list[str]:
    """Labels of the stores; where several have one label, what differs in their configurations stands behind it.

    Of the keys that differ the first `TOLD` are named, and beyond them those without which two would look the same.
    """
    labels = [str(dataset.attrs["label"]) for dataset in datasets]
    configs = [flat_config(dataset.attrs.get("config", {})) for dataset in datasets]
    for label in [label for label, count in Counter(labels).items() if count > 1]:
        same = [k for k, own in enumerate(labels) if own == label]
        keys = sorted({key for k in same for key in configs[k]})
        differing = _told({key: [str(configs[k].get(key)) for k in same] for key in keys})
        enough = _enough(differing, [configs[k] for k in same])
        for number, k in enumerate(same, start=1):
            values = {key: configs[k].get(key) for key in enough}
            told = ", ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())
            labels[k] = f"{label} [{told}]" if told else label
            labels[k] += f" ({number})" if labels[k] in labels[:k] else ""
    return labels


def _enough(keys: list[str], configs: list[dict[str, Any]]) -> list[str]:
    """The first keys, and of the others those that tell more configurations apart."""

    def kinds(chosen: list[str]) -> int:
        return len({tuple(str(config.get(key)) for key in chosen) for config in configs})

    chosen = keys[:TOLD]
    for key in keys[TOLD:]:
        if kinds([*chosen, key]) > kinds(chosen):
            chosen.append(key)
    return chosen


def _told(values: dict[str, list[str]]) -> list[str]:
    """Keys whose values differ, without those that only follow a key of the same name above them (`seed`)."""
    differing = [key for key, own in values.items() if len(set(own)) > 1]
    return [key for key in differing if "." not in key or values.get(key.rpartition(".")[2]) != values[key]]


def flat_config(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, without those that only say how a result is judged."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flat_config(value, f"{above}{key}.")
        else:
            flat[above + key] = value
    return {key: value for key, value in flat.items() if not key.startswith("metric.")}


def aligned(
    dataset: xr.Dataset, reference: xr.Dataset, answer: Callable[[xr.Dataset], xr.DataArray] = influence.scores
) -> np.ndarray:
    """Fetch the reference's answer for the pairs of `dataset` [Q, C]; NaN where it has not computed a pair.

    Queries are the same when query set and id are. All of it is in memory: `dataset` is a block of one.
    """
    rows = {key: row for row, key in enumerate(_keys(reference))}
    places = np.array([rows.get(key, -1) for key in _keys(dataset)], dtype=np.int64)
    found, train = np.full(dataset["train"].shape, np.nan), dataset["train"].values
    theirs = influence.of_queries(reference, places[places >= 0])
    known = zip(np.flatnonzero(places >= 0), theirs["train"].values, answer(theirs).values, strict=True)
    for row, names, values in known:
        found[row] = _fetched(train[row], names, values)
    return found


def _fetched(wanted: np.ndarray, names: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values [C] of the names `wanted`, from `values` of `names` [C']; NaN for "" and for what is not there."""
    if np.array_equal(wanted, names):
        return np.where(wanted == "", np.nan, values)
    index = pd.Index(names)
    last = ~index.duplicated(keep="last")
    places = index[last].get_indexer(wanted)
    return np.where((places < 0) | (wanted == ""), np.nan, values[last][places])


def _keys(dataset: xr.Dataset) -> list[tuple[str, str]]:
    return list(zip(dataset["query_set"].values, dataset["query"].values, strict=True))
