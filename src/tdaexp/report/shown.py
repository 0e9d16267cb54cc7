"""What the page shows of a query: the training texts that any method puts next to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics import retrieval
from tdaexp.metrics.stores import aligned, by_query_set
from tdaexp.report.shading import Shaded, shaded_pairs
from tdaexp.report.texts import Texts, query_text, train_text

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
    first = np.argsort(places[0], kind="stable")
    wanted = first[places.min(axis=0)[first] < k]
    train, query = part["train"].values[row], part["query"].values[row]
    candidates = [
        Candidate(
            id=train[column],
            text=train_text(texts, train[column]).whole,
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
    return Query(query, query_text(texts, name, query).whole, hits, candidates)
