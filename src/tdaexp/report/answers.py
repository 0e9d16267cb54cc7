"""The answer to act on: each question's most helpful and most harmful rows, and what each row did to all questions.

A score above 0 says that training on the row made the answer more likely, below 0 less likely. The most helpful rows
have the highest scores, the most harmful ones the lowest; no row is both. Where few scores are below 0, the other
harmful rows are those that helped least, where few are above 0, the other helpful ones those that harmed least; their
scores say so. Stores are read by blocks of queries (`influence.blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.report.likeness import Likeness
from tdaexp.report.texts import Passage, Texts, query_text, train_text

SIDES = ("helpful", "harmful")
REACH = 4  # times as many rows as are shown are looked through for near-identical ones
AT_ONCE = 200  # queries whose rows are compared with each other
TOP_COLUMNS = ["query", "query_set", "side", "rank", "row", "document", "score", "near_identical", "text"]


@dataclass(frozen=True)
class Entry:
    """A training row next to a question: its `rank` among all rows (1 has the highest score on the helpful side, the
    lowest on the other), the `document` that it is a piece of (itself where it is whole; None: the data has no pieces),
    whether it is a `source` of the question (None: not known), and the ids and scores of further rows there that read
    almost the same (`near`), which are shown with it.
    """

    rank: int
    row: str
    score: float
    text: Passage
    source: bool | None
    near: list[tuple[str, float]]
    document: str | None = None


Sides = dict[str, list[Entry]]


@dataclass(frozen=True)
class Question:
    """A query with the entries of its most helpful and most harmful rows (`SIDES`), best and worst first."""

    query_set: str
    query: str
    text: Passage
    sides: Sides


def questions(dataset: xr.Dataset, texts: Texts | None, k: int) -> Iterator[Question]:
    """Each query of a store of pairs, in its order, with up to `k` entries on each side."""
    known = influence.truth_known(dataset)
    done = 0
    for block in influence.blocks(dataset):
        for start in range(0, block.sizes["query"], AT_ONCE):
            part = block.isel(query=slice(start, start + AT_ONCE))
            names = zip(part["query_set"].values, part["query"].values, strict=True)
            found = entries(part, influence.scores(part).values, known[done:], texts, k)
            for (group, name), sides in zip(names, found, strict=True):
                yield Question(group, name, query_text(texts, group, name), sides)
            done += part.sizes["query"]


def entries(
    part: xr.Dataset, scores: np.ndarray, known_sources: np.ndarray, texts: Texts | None, k: int
) -> Iterator[Sides]:
    """For each query of a small store up to `k` entries on each side by some scores [Q, C]; ties go by candidate.

    `known_sources` [Q or more] says of which queries the sources are.
    """
    train, truth = part["train"].values, part["truth"].values
    best = {side: influence.top(signed(side, scores), REACH * k) for side in SIDES}
    shown = pd.unique(np.concatenate([_at(train, columns).ravel() for columns in best.values()]))
    known = {row: train_text(texts, row) for row in shown if row}
    documents = _documents(part)
    place, likeness = {row: number for number, row in enumerate(known)}, Likeness(list(known.values()))
    for query, sure in zip(range(len(scores)), known_sources, strict=False):
        worst = best["harmful"][query][:k]
        taken = {column for column in worst.tolist() if scores[query, column] < 0}
        sides: Sides = {}
        for side, columns in best.items():
            ranked = [(rank, one) for rank, one in enumerate(columns[query].tolist(), start=1) if one >= 0]
            ranked = [(rank, one) for rank, one in ranked if one not in taken]
            rows = [train[query, column] for _, column in ranked]
            groups = likeness.groups(np.array([place[row] for row in rows], dtype=int), k)
            sides[side] = [
                Entry(
                    rank=ranked[first][0],
                    row=rows[first],
                    score=float(scores[query, ranked[first][1]]),
                    text=known[rows[first]],
                    source=bool(truth[query, ranked[first][1]]) if sure else None,
                    near=[(rows[other], float(scores[query, ranked[other][1]])) for other in others],
                    document=documents.get(rows[first]),
                )
                for first, *others in groups
            ]
            taken = {ranked[one][1] for group in groups for one in group}
        yield sides


def signed(side: str, scores: np.ndarray) -> np.ndarray:
    """Scores that are the higher, the more a row belongs on the side."""
    return scores if side == "helpful" else -scores


def _documents(dataset: xr.Dataset) -> dict[str, str]:
    """The document of each training example by its id; empty where texts were not cut."""
    if "document" not in dataset.coords:
        return {}
    return dict(zip(dataset["example"].values, dataset["document"].values, strict=True))


def _at(train: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Ids [Q, n] at some columns [Q, n], "" where a column is -1."""
    return np.where(columns < 0, "", train[np.arange(len(train))[:, None], columns])


def top_rows(dataset: xr.Dataset, texts: Texts | None, k: int) -> pd.DataFrame:
    """The `k` most helpful and the `k` most harmful rows of each query, as `TOP_COLUMNS`.

    `side` is helpful or harmful, `rank` counts from the highest or the lowest score, from 1, and `near_identical` lists
    the ids of further rows of that side that read almost the same: they have no line of their own. `document` is what
    a row is a piece of ("" where texts were not cut), `text` its prompt and completion.
    """
    found = [line for one in questions(dataset, texts, k) for line in lines(one)]
    return pd.DataFrame(found, columns=TOP_COLUMNS)


def lines(one: Question) -> Iterator[tuple[object, ...]]:
    """A question's entries as `TOP_COLUMNS`."""
    for side, found in one.sides.items():
        for entry in found:
            near = [row for row, _ in entry.near]
            place = (entry.rank, entry.row, entry.document or "")
            yield one.query, one.query_set, side, *place, entry.score, near, entry.text.whole


def row_table(
    dataset: xr.Dataset, texts: Texts | None, self_influence: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Each training row in the data's order: `mean`, `highest` and `lowest` score over the queries that it was scored
    for, their number `queries`, `self_influence` where it is given (by id), and `text`.

    A row that is a candidate of no query has NaN and 0 queries; where pairs were found, no such row is there.
    """
    places = {row: number for number, row in enumerate(texts["train"] if texts else ())}
    total, count, highest, lowest = (np.zeros(0) for _ in range(4))
    for part in influence.blocks(dataset):
        scores = influence.scores(part).values
        there = ~np.isnan(scores)
        codes, names = pd.factorize(part["train"].values[there])
        mine = np.array([places.setdefault(row, len(places)) for row in names], dtype=int)[codes]
        total, count = _wider(total, len(places), 0), _wider(count, len(places), 0)
        highest, lowest = _wider(highest, len(places), -np.inf), _wider(lowest, len(places), np.inf)
        total += np.bincount(mine, weights=scores[there], minlength=len(places))
        count += np.bincount(mine, minlength=len(places))
        np.maximum.at(highest, mine, scores[there])
        np.minimum.at(lowest, mine, scores[there])
    scored = count > 0
    columns = {
        "row": list(places),
        "mean": np.divide(total, count, out=np.full(len(places), np.nan), where=scored),
        "highest": np.where(scored, highest, np.nan),
        "lowest": np.where(scored, lowest, np.nan),
        "queries": count.astype(int),
    }
    if self_influence is not None:
        columns["self_influence"] = np.array([self_influence.get(row, np.nan) for row in places])
    return pd.DataFrame(columns | {"text": [train_text(texts, row).whole for row in places]})


def _wider(values: np.ndarray, length: int, fill: float) -> np.ndarray:
    return np.concatenate([values, np.full(length - len(values), fill)])
