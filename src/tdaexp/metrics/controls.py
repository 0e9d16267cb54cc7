"""The cheap controls that belong in every table: guessing, and lexical overlap."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics import retrieval


def random_accuracy(dataset: xr.Dataset) -> np.ndarray:
    """Exact chance [Q] that a uniformly random order of the candidates puts a source first; of all examples that were
    searched where candidates are what was found among them.
    """
    if "sources" in dataset:
        return np.asarray(dataset["sources"].values / dataset.attrs["searched"])
    candidates = dataset["train"].values != ""
    sources = (dataset["truth"].values & candidates).sum(axis=1)
    return np.asarray(sources / np.maximum(candidates.sum(axis=1), 1))


def bm25_accuracy(dataset: xr.Dataset) -> np.ndarray | None:
    """Retrieval accuracy per query [Q] of the BM25 scores stored beside the answer; None where there are none."""
    scores = dataset["bm25"].values
    if np.isnan(scores).all():
        return None
    return retrieval.accuracy(scores, dataset["truth"].values)


def bm25_answer(dataset: xr.Dataset) -> xr.Dataset:
    """BM25's own answer as an influence data set, so that every metric of a method can be had for it too."""
    return influence.like(dataset, dataset["bm25"].variable, {"method": "bm25", "label": "BM25"})
