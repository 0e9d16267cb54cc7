"""What the page shows of a question: the rows that any method has among its most helpful or most harmful."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics import retrieval
from tdaexp.metrics.stores import aligned, by_query_set
from tdaexp.report.answers import SIDES, Entry, entries, signed
from tdaexp.report.shading import Shaded, shaded_pairs
from tdaexp.report.texts import Passage, Texts, query_text

SHOWN = 40  # queries per set on the page
LETTERS = 2000  # of each part of a text on the page; the files have all


@dataclass(frozen=True)
class Row:
    """A training row next to a question: `places` holds each method's rank from this side's end and score, "" for none,
    `agrees` whether the score has the side's sign, `shaded` its tokens from each method that was asked for them.
    """

    id: str
    text: Passage
    source: bool | None
    agrees: bool
    places: list[tuple[str, str]]
    near: list[str]
    shaded: list[Shaded]


@dataclass(frozen=True)
class Query:
    """A question with its rows by side; `hits`: has a method a source first? Empty where its sources are not known."""

    id: str
    text: Passage
    hits: list[bool]
    sides: dict[str, list[Row]]


def shown_queries(datasets: dict[str, xr.Dataset], texts: Texts | None, k: int) -> dict[str, list[Query]]:
    """Up to `SHOWN` queries per set of the first store, in the data's order.

    Texts are read by `<query set>/<id>`, then by id; an id without a text is shown as it is.
    """
    first = next(iter(datasets.values()))
    shaded: dict[tuple[str, str], dict[str, list[Shaded]]] = {}
    for (group, query, row), those in shaded_pairs(datasets).items():
        shaded.setdefault((group, query), {})[row] = those
    found = {}
    for name, whole in by_query_set(first).items():
        known, part = influence.truth_known(whole), whole.isel(query=slice(SHOWN))
        scores = [aligned(part, dataset) for dataset in datasets.values()]
        hits = np.stack([retrieval.accuracy(values, part["truth"].values) > 0 for values in scores], axis=1)
        sides = [list(entries(part, values, known, texts, k)) for values in scores]
        found[name] = [
            Query(
                id=query,
                text=_cut(query_text(texts, name, query)),
                hits=hits[row].tolist() if known[row] else [],
                sides={
                    side: _rows(
                        side, [mine[row][side] for mine in sides], part["train"].values[row],
                        np.stack([values[row] for values in scores]),
                        shaded.get((name, query), {}),
                    )
                    for side in SIDES
                },
            )
            for row, query in enumerate(part["query"].values)
        ]  # fmt: skip
    return found


def _rows(
    side: str, found: list[list[Entry]], train: np.ndarray, scores: np.ndarray, shaded: dict[str, list[Shaded]]
) -> list[Row]:
    """One side of a question from the entries of each method: those of the first method, then what others add.

    `train` [C] are the candidates, `scores` [M, C] each method's.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    column = {row: place for place, row in enumerate(train)}
    for entry in (one for mine in found for one in mine):
        copies = [row for row, _ in entry.near]
        if not seen & {entry.row, *copies}:
            places = [_place(side, values, column[entry.row]) for values in scores]
            mine = shaded.get(entry.row, [])
            agrees = bool(signed(side, np.array(entry.score)) > 0)
            rows.append(Row(entry.row, _cut(entry.text), entry.source, agrees, places, copies, mine))
        seen |= {entry.row, *copies}
    return rows


def _place(side: str, scores: np.ndarray, column: int) -> tuple[str, str]:
    """A row's rank from a side's end, and its score; "" for none. `scores` are a method's [C]."""
    if np.isnan(scores[column]):
        return "", ""
    mine = signed(side, scores)
    ahead = (mine > mine[column]).sum() + (mine[:column] == mine[column]).sum()
    return str(ahead + 1), f"{scores[column]:+#.3g}"


def _cut(text: Passage) -> Passage:
    parts = (text.prompt, text.completion, text.rejected)
    return Passage(*(f"{one[:LETTERS]} …" if len(one) > LETTERS else one for one in parts))
