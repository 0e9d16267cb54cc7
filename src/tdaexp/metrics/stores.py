"""Reading influence data sets: their query sets, their pairs in another store, the share of parameters they
use.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence


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
    return influence.scores(dataset.drop_vars(["weight", "score"], errors="ignore") if "weight" in dataset else dataset)


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
