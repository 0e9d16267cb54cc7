"""The influence tensor: one labelled array that every method fills and every metric reads, and its store.

In memory it is an `xarray.Dataset`; on disk a zarr store (`influence_store`). The whole tensor has the axes `query,
train, component, step, output`; a method fills those that have a meaning for it. Most (query, train) pairs are never
computed, so the train axis is kept *compactly*: an axis `candidate` with a coordinate `train[query, candidate]` that
names the training example ("" where a query has fewer candidates). `dense` gives the query × train form, in which a
pair that was not computed is NaN.

What has a value for each pair may be larger than memory: a method's answer and a store that was loaded are read when
values are asked for. Whoever reads more than a few queries goes through `blocks`, and keeps what it needs of each.

Variables (Q queries, C candidates, K components, S query sets):

    influence [Q, C] or [Q, C, K]   positive: training on the example made the query more likely; additive over K
    query_sq  [Q, K]                self-products, present where the similarity is a cosine
    train_sq  [Q, C, K]
    truth     [Q, C] bool           the candidate is a source of the query
    truth_known [Q] bool            it is known what the query's sources are; where it is not, `truth` says nothing
    bm25      [Q, C]                lexical scores of the same pairs: the cheap control (NaN when there are none)
    answered  [Q] bool              the model's own greedy answer is the query's; present where there are two stages
    sources   [Q] int               how many training examples are a source of the query; present where candidates are
                                    the best and the worst of `searched` (an attribute) training examples: of a query's
                                    columns in order of falling score, half are the first of all, half the last
    weight    [S, K]                1 for the components that count in the method's answer (select); absent = all count

and where tokens were asked for (R best candidates of each query, T and T' positions; NaN behind an example's end):

    best         [Q, R] int         their columns, best first; -1 where a query has fewer
    train_share  [Q, R, T]          shares of a pair's score by training token; they sum to the score
    query_share  [Q, R, T']         the same by token of the query

A path decomposition (`methods/explaind.py`) has those of the axes query, train, component, step and output that it
kept, `train` as a dense axis of ids; its own docstring names its variables.

Coordinates: `query`, `query_set` [Q], `train` [Q, C], `component`, `size` [K] (parameters), `query_set_name` [S], and
the tokens' texts `train_token` [Q, R, T] and `query_token` [Q, T'].
Where training texts were cut into pieces, or records name their source, also `example` [N], all training ids, with
`document` [N], the text that an example is a piece of, and `source` [N] ("" where it has none).
Attributes: `method`, `label`, `normalise` ("cosine" or "none"), `format_version`, and where it came from (`config`,
`versions`, `git_commit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.influence_store import FORMAT_VERSION, attributes, intact, load, save
from tdaexp.runtime.rows import Rows, lazy, runs

__all__ = ["FORMAT_VERSION", "attributes", "intact", "load", "save"]
EPSILON = 1e-12  # the small constant in the denominator of Algorithm 2 (Select or Project)


def build(
    influence: np.ndarray | Rows,
    *,
    query: list[str],
    query_set: list[str],
    train: np.ndarray | Rows,
    truth: np.ndarray,
    bm25: np.ndarray | Rows | None = None,
    component: list[str] | None = None,
    size: np.ndarray | None = None,
    query_sq: np.ndarray | Rows | None = None,
    train_sq: np.ndarray | Rows | None = None,
    truth_known: np.ndarray | None = None,
    belongs: dict[str, list[str]] | None = None,
    example: list[str] | None = None,
    sources: list[int] | None = None,
    searched: int | None = None,
    attrs: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Label raw arrays (shapes in the module's docstring) as an influence data set.

    `train` [Q, C] holds training ids as strings, "" where there is no candidate; influence there must be NaN. `Rows`
    stay where they are until values are asked for. `belongs` says what each training `example` [N] is a part of.
    The answer is a cosine when both self-products are given, else a plain sum over components.
    """
    dims = ("query", "candidate", "component")[: influence.ndim]
    data: dict[str, Any] = {
        "influence": (dims, _held(influence)),
        "truth": (("query", "candidate"), truth.astype(bool)),
        "bm25": (("query", "candidate"), np.full(train.shape, np.nan) if bm25 is None else _held(bm25)),
    }
    coords: dict[str, Any] = {
        "query": np.array(query, dtype=object),
        "query_set": ("query", np.array(query_set, dtype=object)),
        "train": (("query", "candidate"), _held(train, object)),
    }
    if component is not None:
        coords["component"] = np.array(component, dtype=object)
        coords["size"] = ("component", np.asarray(size, dtype=np.int64))
    if belongs:
        coords["example"] = np.array(example, dtype=object)
        coords |= {name: ("example", np.array(of, dtype=object)) for name, of in belongs.items()}
    if sources is not None:
        data["sources"] = ("query", np.asarray(sources, dtype=np.int64))
    if truth_known is not None:
        data["truth_known"] = ("query", np.asarray(truth_known, dtype=bool))
    cosine = query_sq is not None and train_sq is not None
    if query_sq is not None and train_sq is not None:
        data["query_sq"] = (("query", "component"), _held(query_sq))
        data["train_sq"] = (("query", "candidate", "component"), _held(train_sq))
    attributes = {
        "format_version": FORMAT_VERSION,
        "normalise": "cosine" if cosine else "none",
        **({} if searched is None else {"searched": searched}),
        **(attrs or {}),
    }
    return xr.Dataset(data, coords, attributes)


def blocks(dataset: xr.Dataset) -> Iterator[xr.Dataset]:
    """The data set by runs of its queries, each of a few MB; one where there is no query. Nothing is read before."""
    mine = [variable for variable in dataset.variables.values() if "query" in variable.dims]
    count = dataset.sizes["query"]
    for run in runs(count, sum(variable.nbytes for variable in mine) / max(count, 1)):
        yield dataset.isel(query=run)


def of_queries(dataset: xr.Dataset, places: np.ndarray) -> xr.Dataset:
    """The data set with the queries at `places` [n], in their order; those that follow each other are read as a run."""
    if len(places) and (np.diff(places) == 1).all():
        return dataset.isel(query=slice(int(places[0]), int(places[-1]) + 1))
    return dataset.isel(query=places)


def like(dataset: xr.Dataset, values: Any, attrs: dict[str, Any]) -> xr.Dataset:
    """Another answer about the same pairs: scores [Q, C] without components."""
    parts = {name: dataset[name] for name in ("truth", "truth_known", "bm25", "sources") if name in dataset}
    coords = {name: dataset[name] for name in ("query", "query_set", "train")}
    kept = {name: dataset.attrs[name] for name in ("searched",) if name in dataset.attrs}
    attributes = {"format_version": FORMAT_VERSION, "normalise": "none", **kept, **attrs}
    return xr.Dataset({"influence": (("query", "candidate"), values), **parts}, coords, attributes)


def itself(dataset: xr.Dataset) -> xr.Dataset:
    """Self-influence [train, component] from an answer in which each training example is its own query and candidate.

    Positive: the example supports itself. `self_influence.sum("component")` is the whole; nothing is read.
    """
    alone = dataset["influence"].isel(candidate=0, drop=True).variable
    known = {name: dataset[name].variable for name in ("component", "size")}
    train = dataset["query"].values
    attrs = {key: value for key, value in dataset.attrs.items() if key != "normalise"}
    named = xr.Variable(("train", "component"), alone._data)
    return xr.Dataset({"self_influence": named}, {"train": train, **known}, attrs)


def scores(dataset: xr.Dataset) -> xr.DataArray:
    """Return the method's answer [query, candidate]: the (weighted) sum over components, as a cosine if it is one."""
    if "score" in dataset or "component" not in dataset["influence"].dims:
        return dataset["score" if "score" in dataset else "influence"]
    values = np.concatenate([_scores(part).values for part in blocks(dataset)])
    return _labelled(dataset, values)


def scored(dataset: xr.Dataset) -> xr.Dataset:
    """The data set with what `scores` gives in memory, as the variable `score`: for whoever asks more than once.

    Its components and weights must then stay as they are.
    """
    return dataset if "candidate" not in dataset.dims else dataset.assign(score=scores(dataset))


def _scores(dataset: xr.Dataset) -> xr.Variable:
    weight = _weights(dataset)
    if dataset.attrs["normalise"] == "cosine":
        return _cosine(dataset, weight)
    return (dataset["influence"].variable * weight).sum("component", skipna=False).transpose("query", "candidate")


def cosine(dataset: xr.Dataset, weight: xr.DataArray | float = 1.0) -> xr.DataArray:
    """Reconstruct the cosine of a subset of components from sums (Select or Project, A.2).

    `weight` [component] or [query, component] is 1 for the components in the subset, else 0.
    """
    return _labelled(dataset, _cosine(dataset, weight.variable if isinstance(weight, xr.DataArray) else weight))


def _cosine(dataset: xr.Dataset, weight: xr.Variable | float) -> xr.Variable:
    def total(name: str) -> xr.Variable:  # of variables: coordinates of every pair would be compared at each step
        return (dataset[name].variable.astype(np.float64) * weight).sum("component", skipna=False)

    norms = np.sqrt(total("query_sq")) * np.sqrt(total("train_sq"))
    return (total("influence") / (norms + EPSILON)).transpose("query", "candidate")


def _labelled(dataset: xr.Dataset, values: np.ndarray | xr.Variable) -> xr.DataArray:
    return dataset["influence"].isel(component=0, drop=True).copy(deep=False, data=np.asarray(values))


def truth_known(dataset: xr.Dataset) -> np.ndarray:
    """Of which queries [Q] the sources are known: those count in accuracies, of the others nothing is right or wrong.

    A known source need not be among the candidates. A store that does not say (`truth_known`) is one of an earlier
    version, in which the truth of a query set was known where any of its queries had a source.
    """
    if "truth_known" in dataset:
        return dataset["truth_known"].values.astype(bool)
    sets, sourced = dataset["query_set"].values, dataset["truth"].values.any(axis=1)
    return np.isin(sets.astype(str), sets[sourced].astype(str))


def with_truth(dataset: xr.Dataset) -> xr.Dataset:
    """The data set with those of its queries alone whose sources are known."""
    known = truth_known(dataset)
    return dataset if known.all() else of_queries(dataset, np.flatnonzero(known))


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns [Q, min(k, C)] of the best candidates, best first, ties by column; -1 where there are fewer."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # NaN sorts last
    return np.where(np.isnan(np.take_along_axis(scores, order, axis=1)), -1, order)


def best(dataset: xr.Dataset, k: int) -> np.ndarray:
    """Columns [Q, min(k, C)] of each query's best candidates, as `top` gives them."""
    return np.concatenate([top(scores(part).values, k) for part in blocks(dataset)])


def train_ids(dataset: xr.Dataset) -> list[str]:
    """The ids of all training examples that are a candidate of any query, sorted."""
    found: set[str] = set()
    return sorted(found.union(*(pd.unique(part["train"].values.ravel()) for part in blocks(dataset))) - {""})


def dense(dataset: xr.Dataset) -> xr.DataArray:
    """Return the answer as [query, train] over all training ids that occur, NaN where a pair was not computed."""
    ids = train_ids(dataset)
    columns, full, done = pd.Index(ids), np.full((dataset.sizes["query"], len(ids)), np.nan), 0
    for part in blocks(dataset):
        names = part["train"].values
        places = columns.get_indexer(names.ravel()).reshape(names.shape)
        rows, there = np.nonzero(places >= 0)
        full[done + rows, places[rows, there]] = scores(part).values[rows, there]
        done += len(names)
    return xr.DataArray(full, dims=("query", "train"), coords={"query": dataset["query"].values, "train": ids})


def _weights(dataset: xr.Dataset) -> xr.Variable | float:
    """Per-query component weights: each query takes the subset of its own query set."""
    if "weight" not in dataset:
        return 1.0
    return dataset["weight"].sel(query_set_name=dataset["query_set"]).variable


def _held(values: np.ndarray | Rows, dtype: Any = None) -> Any:
    return lazy(values) if isinstance(values, Rows) else values if dtype is None else values.astype(dtype)
