"""The influence tensor: one labelled array that every method fills and every metric reads, and its store.

In memory it is an `xarray.Dataset`; on disk a zarr store. The whole tensor has the axes `query, train, component,
step, output`; a method fills those that have a meaning for it. Most (query, train) pairs are never computed, so the
train axis is kept *compactly*: an axis `candidate` with a coordinate `train[query, candidate]` that names the training
example ("" where a query has fewer candidates). `dense` gives the query × train form, in which a pair that was not
computed is NaN.

Variables (Q queries, C candidates, K components, S query sets):

    influence [Q, C] or [Q, C, K]   positive: training on the example made the query more likely; additive over K
    query_sq  [Q, K]                self-products, present where the similarity is a cosine
    train_sq  [Q, C, K]
    truth     [Q, C] bool           the candidate is a source of the query
    truth_known [Q] bool            it is known what the query's sources are; where it is not, `truth` says nothing
    bm25      [Q, C]                lexical scores of the same pairs: the cheap control (NaN when there are none)
    answered  [Q] bool              the model's own greedy answer is the query's; present where there are two stages
    weight    [S, K]                1 for the components that count in the method's answer (select); absent = all count

and where tokens were asked for (R best candidates of each query, T and T' positions; NaN behind an example's end):

    best         [Q, R] int         their columns, best first; -1 where a query has fewer
    train_share  [Q, R, T]          shares of a pair's score by training token; they sum to the score
    query_share  [Q, R, T']         the same by token of the query

A path decomposition (`methods/explaind.py`) has those of the axes query, train, component, step and output that it
kept, `train` as a dense axis of ids; its own docstring names its variables.

Coordinates: `query`, `query_set` [Q], `train` [Q, C], `component`, `size` [K] (parameters), `query_set_name` [S], and
the tokens' texts `train_token` [Q, R, T] and `query_token` [Q, T'].
Attributes: `method`, `label`, `normalise` ("cosine" or "none"), `format_version`, and where it came from (`config`,
`versions`, `git_commit`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tdaexp.runtime import seal
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path

FORMAT_VERSION = 2
ATTRIBUTES = ".zattrs"
EPSILON = 1e-12  # the small constant in the denominator of Algorithm 2 (Select or Project)


def build(
    influence: np.ndarray,
    *,
    query: list[str],
    query_set: list[str],
    train: np.ndarray,
    truth: np.ndarray,
    bm25: np.ndarray | None = None,
    component: list[str] | None = None,
    size: np.ndarray | None = None,
    query_sq: np.ndarray | None = None,
    train_sq: np.ndarray | None = None,
    truth_known: np.ndarray | None = None,
    attrs: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Label raw arrays (shapes in the module's docstring) as an influence data set.

    `train` [Q, C] holds training ids as strings, "" where there is no candidate; influence there must be NaN.
    The answer is a cosine when both self-products are given, else a plain sum over components.
    """
    dims = ("query", "candidate", "component")[: influence.ndim]
    data: dict[str, Any] = {
        "influence": (dims, influence),
        "truth": (("query", "candidate"), truth.astype(bool)),
        "bm25": (("query", "candidate"), np.full(train.shape, np.nan) if bm25 is None else bm25),
    }
    coords: dict[str, Any] = {
        "query": np.array(query, dtype=object),
        "query_set": ("query", np.array(query_set, dtype=object)),
        "train": (("query", "candidate"), train.astype(object)),
    }
    if component is not None:
        coords["component"] = np.array(component, dtype=object)
        coords["size"] = ("component", np.asarray(size, dtype=np.int64))
    if truth_known is not None:
        data["truth_known"] = ("query", np.asarray(truth_known, dtype=bool))
    cosine = query_sq is not None and train_sq is not None
    if cosine:
        data["query_sq"] = (("query", "component"), query_sq)
        data["train_sq"] = (("query", "candidate", "component"), train_sq)
    attributes = {
        "format_version": FORMAT_VERSION,
        "normalise": "cosine" if cosine else "none",
        **(attrs or {}),
    }
    return xr.Dataset(data, coords, attributes)


def scores(dataset: xr.Dataset) -> xr.DataArray:
    """Return the method's answer [query, candidate]: the (weighted) sum over components, as a cosine if it is one."""
    if "component" not in dataset["influence"].dims:
        return dataset["influence"]
    weight = _weights(dataset)
    if dataset.attrs["normalise"] == "cosine":
        return cosine(dataset, weight)
    return (dataset["influence"] * weight).sum("component", skipna=False)


def cosine(dataset: xr.Dataset, weight: xr.DataArray | float = 1.0) -> xr.DataArray:
    """Reconstruct the cosine of a subset of components from sums (Select or Project, A.2).

    `weight` [component] or [query, component] is 1 for the components in the subset, else 0.
    """
    dot = (dataset["influence"].astype(np.float64) * weight).sum("component", skipna=False)
    query_norm = np.sqrt((dataset["query_sq"].astype(np.float64) * weight).sum("component", skipna=False))
    train_norm = np.sqrt((dataset["train_sq"].astype(np.float64) * weight).sum("component", skipna=False))
    return (dot / (query_norm * train_norm + EPSILON)).transpose("query", "candidate")


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
    return dataset if known.all() else dataset.isel(query=known)


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns [Q, min(k, C)] of the best candidates, best first, ties by column; -1 where there are fewer."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # NaN sorts last
    return np.where(np.isnan(np.take_along_axis(scores, order, axis=1)), -1, order)


def dense(dataset: xr.Dataset) -> xr.DataArray:
    """Return the answer as [query, train] over all training ids that occur, NaN where a pair was not computed."""
    values, names = scores(dataset).values, dataset["train"].values
    ids = sorted(set(names.ravel()) - {""})
    column = {name: k for k, name in enumerate(ids)}
    full = np.full((len(names), len(ids)), np.nan)
    for row in range(len(names)):
        for name, value in zip(names[row], values[row], strict=True):
            if name:
                full[row, column[name]] = value
    return xr.DataArray(full, dims=("query", "train"), coords={"query": dataset["query"].values, "train": ids})


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write the data set as a zarr store, with a checksum of each of its files; it appears complete or not at all."""
    plain = dataset.copy()
    plain.attrs = {"tdaexp": json.dumps(dataset.attrs)}
    with atomic_path(path) as temporary:
        plain.to_zarr(temporary, zarr_format=2, consolidated=True)
        seal.seal(temporary)


def load(path: Path) -> xr.Dataset:
    """Read a store; a missing, foreign, damaged or older one is a `UserError`."""
    if not path.exists():
        raise UserError(f"{path}: no such influence store; run attribute.py first or name another folder")
    try:
        written = _written(path).get("format_version")
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable influence store ({said}); delete it and run again") from error
    broken = seal.damage(path)
    if written != FORMAT_VERSION and (broken is None or not (path / seal.SEAL).exists()):
        raise UserError(
            f"{path}: written in format {written}, this version reads {FORMAT_VERSION}; "
            "delete the store and run attribute.py again"
        )
    if broken:  # zarr reads a chunk that was lost as NaN, without a word
        raise UserError(f"{path}: not a readable influence store ({broken}); delete it and run again")
    try:
        with xr.open_zarr(path, chunks=None, consolidated=True) as stored:
            dataset = _plain_strings(stored.load())
        dataset.attrs = json.loads(dataset.attrs["tdaexp"])
    except Exception as error:
        raise UserError(f"{path}: not a readable influence store ({error}); delete it and run again") from error
    return dataset


def intact(path: Path) -> bool:
    """Whether a store is there, of this version, and each of its files reads as it was written."""
    try:
        return _written(path).get("format_version") == FORMAT_VERSION and seal.damage(path) is None
    except Exception:  # whatever a file that was cut off, or another program's, makes of it
        return False


def attributes(path: Path) -> dict[str, Any]:
    """Read a store's attributes alone; empty where there are none that can be read."""
    try:
        return {} if seal.damage(path, lambda name: name == ATTRIBUTES) else _written(path)
    except Exception:  # `load` says what is wrong with it
        return {}


def _written(path: Path) -> dict[str, Any]:
    return dict(json.loads(json.loads((path / ATTRIBUTES).read_text(encoding="utf-8"))["tdaexp"]))


def _weights(dataset: xr.Dataset) -> xr.DataArray | float:
    """Per-query component weights: each query takes the subset of its own query set."""
    if "weight" not in dataset:
        return 1.0
    return dataset["weight"].sel(query_set_name=dataset["query_set"]).drop_vars("query_set_name")


def _plain_strings(dataset: xr.Dataset) -> xr.Dataset:
    """Zarr hands back numpy's StringDType, which few libraries know: use object arrays of str, as `build` does."""
    strings = [name for name in dataset.variables if dataset[name].dtype.kind == "T"]
    return dataset.assign_coords({name: (dataset[name].dims, dataset[name].values.astype(object)) for name in strings})
