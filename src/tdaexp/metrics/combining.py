"""Several questions as one: the mean of their measurements, for methods that are linear in what a query measures.

Such a method's score is a product of the training example's side with the gradient of the query's measurement, so its
answer about the mean measurement is the mean of its answers. A cosine is not: each query is scaled by its own norm.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.data.dataset import MEAN
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint


def check_candidates(query_set: list[str], pairs: np.ndarray) -> None:
    """Refuse (UserError) queries of a set that are scored against different training examples; `pairs` [Q, C].

    Each query has its candidates in an order of its own.
    """
    for name in dict.fromkeys(query_set):
        mine = np.sort(pairs[np.array(query_set) == name], axis=1)
        if (mine != mine[0]).any():
            raise UserError(
                f"dataset.combine=mean: the questions of '{name}' have different candidates, and a mean over some of "
                "them is no answer; add candidates=all"
            )


def mean_query(dataset: xr.Dataset) -> xr.Dataset:
    """A store with one query for each query set, `mean`: the mean of their scores, components and lexical scores.

    A training example is a source of it where it is one of any. Queries of a set have the same candidates
    (`check_candidates`), here in the order of its first query. Components of all pairs of one query are in memory.
    """
    sets = dataset["query_set"].values
    names = list(dict.fromkeys(sets.tolist()))
    sums: dict[str, list[np.ndarray]] = {"influence": [], "bm25": [], "truth": []}
    for name in names:
        mine = influence.of_queries(dataset, np.flatnonzero(sets == name))
        total = [0.0, 0.0, 0.0]
        wanted = mine["train"][0].values
        for part in influence.blocks(mine):
            columns = columns_of(wanted, part["train"].values)
            for place, variable in enumerate(sums):
                values = part[variable].values
                for row, own in enumerate(columns):
                    total[place] = total[place] + values[row][own].astype(np.float64)
        for of, whole in zip(sums.values(), total, strict=True):
            of.append(np.asarray(whole) / mine.sizes["query"])
    known = influence.truth_known(dataset)
    first = dataset.isel(query=[int(np.flatnonzero(sets == name)[0]) for name in names])
    dims = dataset["influence"].dims
    kept = {name: one for name, one in first.data_vars.items() if "query" not in one.dims}
    return xr.Dataset(
        {
            **kept,
            "influence": (dims, np.stack(sums["influence"]).astype(dataset["influence"].dtype)),
            "bm25": (dims[:2], np.stack(sums["bm25"])),
            "truth": (dims[:2], np.stack(sums["truth"]) > 0),
            "truth_known": ("query", np.array([known[sets == name].all() for name in names])),
        },
        {
            **{name: one for name, one in first.coords.items() if "query" not in one.dims},
            "query": np.array([MEAN] * len(names), dtype=object),
            "query_set": ("query", np.array(names, dtype=object)),
            "train": (dims[:2], first["train"].values),
        },
        {**dataset.attrs, "combine": MEAN, "study": fingerprint(dataset.attrs.get("study"), MEAN)},
    )


def columns_of(wanted: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns [Q, C] at which each query's candidates `train` [Q, C] are those of `wanted` [C]; "" is none."""
    place = np.empty(len(wanted), dtype=int)
    place[np.argsort(wanted, kind="stable")] = np.arange(len(wanted))
    found = np.argsort(train, axis=1, kind="stable")[:, place]
    if (np.take_along_axis(train, found, axis=1) != wanted).any():
        raise ValueError("queries of a set have different candidates")
    return found
