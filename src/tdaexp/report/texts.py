"""The training texts that each method puts next to a query, ready to be shown or logged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.metrics import retrieval
from tdaexp.metrics.stores import aligned, by_query_set
from tdaexp.report.shading import Shaded, shaded_pairs

Texts = dict[str, dict[str, str]]  # "query" and "train": id to text
SHOWN = 40  # queries per set on the page


@dataclass(frozen=True)
class Candidate:
    """A training text next to a query: `ranks` holds each method's rank and score, "" for none, `shaded` its
    tokens from each method that was asked for them.
    """

    id: str
    text: str
    source: bool
    ranks: list[str]
    shaded: list[Shaded]


@dataclass(frozen=True)
class Query:
    """A query with the candidates that any method has among its best; `hits`: has it a source first? Empty where its
    sources are not known.
    """

    id: str
    text: str
    hits: list[bool]
    candidates: list[Candidate]


def shown_queries(datasets: dict[str, xr.Dataset], texts: Texts, k: int) -> dict[str, list[Query]]:
    """Up to `SHOWN` queries per set of the first store, in the data's order.

    `texts["query"]` is read by `<query set>/<id>`, then by id; an id without a text is shown as it is.
    """
    first = next(iter(datasets.values()))
    shaded = shaded_pairs(datasets)
    found = {}
    for name, whole in by_query_set(first).items():
        known, part = influence.truth_known(whole), whole.isel(query=slice(SHOWN))
        columns = {label: aligned(part, dataset) for label, dataset in datasets.items()}
        truth = part["truth"].values
        hits = np.stack([retrieval.accuracy(values, truth) > 0 for values in columns.values()], axis=1)
        found[name] = [
            _query(part, name, row, columns, hits[row].tolist() if known[row] else [], texts, k, shaded)
            for row in range(part.sizes["query"])
        ]
    return found


def top_texts(label: str, dataset: xr.Dataset, texts: Texts, k: int) -> pd.DataFrame:
    """The k best training examples of every query, one row each: for loggers. `source` is None where none is known."""
    known, rows = iter(influence.truth_known(dataset)), []
    for part in influence.blocks(dataset):
        scores, train, truth = influence.scores(part).values, part["train"].values, part["truth"].values
        asked = zip(part["query_set"].values, part["query"].values, influence.top(scores, k), strict=True)
        for row, (group, query, best) in enumerate(asked):
            sure, query_text = next(known), _query_text(texts, group, query)
            rows += [
                {
                    "method": label,
                    "query_set": group,
                    "query": query,
                    "query_text": query_text,
                    "rank": rank,
                    "train": train[row, column],
                    "score": scores[row, column],
                    "source": bool(truth[row, column]) if sure else None,
                    "train_text": texts["train"].get(train[row, column], train[row, column]),
                }
                for rank, column in enumerate(best[best >= 0], start=1)
            ]
    return pd.DataFrame(rows)


def _query(
    part: xr.Dataset,
    name: str,
    row: int,
    columns: dict[str, np.ndarray],
    hits: list[bool],
    texts: Texts,
    k: int,
    shaded: dict[tuple[str, str, str], list[Shaded]],
) -> Query:
    """Candidates in the first method's order; those that no method has among its k best are left out."""
    scores = np.stack([values[row] for values in columns.values()])
    order = influence.top(scores, scores.shape[1])
    places = np.full(scores.shape, len(scores[0]))
    for method, best in enumerate(order):
        places[method, best[best >= 0]] = np.arange((best >= 0).sum())
    wanted = [column for column in np.argsort(places[0], kind="stable") if places[:, column].min() < k]
    train, query = part["train"].values[row], part["query"].values[row]
    candidates = [
        Candidate(
            id=train[column],
            text=texts["train"].get(train[column], train[column]),
            source=bool(part["truth"].values[row, column]),
            ranks=[
                "" if np.isnan(own[column]) else f"{place[column] + 1} · {own[column]:.3g}"
                for own, place in zip(scores, places, strict=True)
            ],
            shaded=shaded.get((name, query, train[column]), []),
        )
        for column in wanted
        if train[column]
    ]
    return Query(query, _query_text(texts, name, query), hits, candidates)


def _query_text(texts: Texts, group: str, query: str) -> str:
    return texts["query"].get(f"{group}/{query}", texts["query"].get(query, query))
