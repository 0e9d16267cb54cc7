"""Scores summed over what training examples belong to: the documents that they are pieces of, and their sources."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence


def by_document(dataset: xr.Dataset) -> xr.Dataset:
    """A store of pieces as a store of documents: each pair's score is the sum over the document's pieces.

    Documents stand in the order of their first candidates, the source of a query is a document with a piece that is
    one, and components are summed. A store without pieces comes back as it is.
    """
    if "document" not in dataset.coords:
        return dataset
    document = dict(zip(dataset["example"].values, dataset["document"].values, strict=True))
    answers = [_of_documents(part, document) for part in influence.blocks(dataset)]
    width = max((len(names) for part in answers for names, *_ in part), default=0)
    rows = [row for part in answers for row in part]
    shape = (len(rows), width)
    train, values = np.full(shape, "", dtype=object), np.full(shape, np.nan)
    truth, bm25 = np.zeros(shape, bool), np.full(shape, np.nan)
    for k, (names, summed, true, lexical) in enumerate(rows):
        there = slice(len(names))
        train[k, there], values[k, there], truth[k, there], bm25[k, there] = names, summed, true, lexical
    belongs = {}
    if "source" in dataset.coords:
        first = dict(zip(reversed(dataset["document"].values), reversed(dataset["source"].values), strict=True))
        belongs["source"] = list(dict(sorted(first.items())).values())
    return influence.build(
        values,
        query=dataset["query"].values.tolist(),
        query_set=dataset["query_set"].values.tolist(),
        train=train,
        truth=truth,
        truth_known=influence.truth_known(dataset),
        bm25=bm25,
        belongs=belongs,
        example=sorted(set(dataset["document"].values)) if belongs else None,
        attrs={**dataset.attrs, "normalise": "none"},
    )


Row = tuple[list[str], np.ndarray, np.ndarray, np.ndarray]


def _of_documents(part: xr.Dataset, document: dict[str, str]) -> list[Row]:
    """For each query its documents, their scores, whether they are a source, and the score of the words."""
    found = []
    columns = (part["train"].values, influence.scores(part).values, part["truth"].values, part["bm25"].values)
    for train, scores, truth, bm25 in zip(*columns, strict=True):
        real = train != ""
        codes, names = pd.factorize(np.array([document[name] for name in train[real]], dtype=object))
        _, first = np.unique(codes, return_index=True)
        summed = np.bincount(codes, scores[real].astype(np.float64), minlength=len(names))
        true = np.bincount(codes, truth[real], minlength=len(names)) > 0
        found.append((list(names), summed, true, bm25[real][first]))
    return found


def by_source(dataset: xr.Dataset) -> pd.DataFrame:
    """For each query and source of training records: `sum`, `mean` and `count` of the scores of its candidates.

    Columns `query_set`, `query`, `source` ("" = none named), `sum`, `mean`, `count`; sources in alphabetical order.
    Empty where training records name no source.
    """
    columns = ["query_set", "query", "source", "sum", "mean", "count"]
    if "source" not in dataset.coords:
        return pd.DataFrame(columns=columns)
    codes, names = pd.factorize(dataset["source"].values, sort=True)
    code = pd.Series(codes, index=dataset["example"].values)
    rows = []
    for part in influence.blocks(dataset):
        answers = influence.scores(part).values
        sets, queries = part["query_set"].values, part["query"].values
        for query_set, query, train, scores in zip(sets, queries, part["train"].values, answers, strict=True):
            real = (train != "") & ~np.isnan(scores)
            own = code[train[real]].to_numpy()
            count = np.bincount(own, minlength=len(names))
            total = np.bincount(own, scores[real].astype(np.float64), minlength=len(names))
            rows += [
                (query_set, query, names[k], total[k], total[k] / count[k], count[k]) for k in np.flatnonzero(count)
            ]
    return pd.DataFrame(rows, columns=columns)
