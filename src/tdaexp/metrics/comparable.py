"""Which stores may be ranked together, those of one model with the same queries, candidates and truth; what differs.

A section of a query set holds such stores. One that answers some of the queries only belongs to it too, as long as
those are the same; it is listed with its number of queries, and not ranked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics.stores import TOLD, by_query_set, flat_config, same_study

KEYS = (
    "seed",
    "stage",
    "model.",
    "dataset.",
    "candidates.",
    "decoding.",
    "trainer.fit.",
    "trainer.finetune.",
    "products",
)
"""Keys of a configuration that decide what is asked, of which model and among which candidates."""


@dataclass
class Section:
    """Stores of one query set that compare: `whole` has all the queries of any of them; `differs` says in words what is
    other than in the set's first section, "" there.
    """

    query_set: str
    whole: xr.Dataset
    labels: set[str] = field(default_factory=set)
    differs: str = ""


def sections(datasets: dict[str, xr.Dataset]) -> list[Section]:
    """The sections of stores by label, those of one query set one after the other, in order of first appearance."""
    found: dict[str, list[Section]] = {}
    parts = [(label, name, part) for label, store in datasets.items() for name, part in by_query_set(store).items()]
    order = {name: place for place, name in enumerate(dict.fromkeys(name for _, name, _ in parts))}
    for label, name, part in sorted(parts, key=lambda one: -one[2].sizes["query"]):  # stable
        mine = found.setdefault(name, [])
        home = next((one for one in mine if same_study(part, one.whole) and same_pairs(part, one.whole)), None)
        if home is None:
            home = Section(name, part)
            mine.append(home)
        home.labels.add(label)
    places = {label: place for place, label in enumerate(datasets)}
    for mine in found.values():
        mine.sort(key=lambda one: min(places[label] for label in one.labels))
        for other in mine[1:]:
            other.differs = difference(other.whole, mine[0].whole)
    return [one for name in sorted(found, key=order.__getitem__) for one in found[name]]


def same_pairs(part: xr.Dataset, whole: xr.Dataset) -> bool:
    """Whether the queries of `part` are among those of `whole`, with the same candidates and the same truth.

    In which order the candidates stand is no difference.
    """
    rows = {query: row for row, query in enumerate(whole["query"].values)}
    places = [rows.get(query, -1) for query in part["query"].values]
    if -1 in places:
        return False
    mine, theirs = part, whole.isel(query=places)
    if (influence.truth_known(mine) != influence.truth_known(theirs)).any():
        return False
    names = ("train", "truth")
    if all(np.array_equal(mine[name].values, theirs[name].values) for name in names):
        return True
    return all(a == b for a, b in zip(_pairs(mine), _pairs(theirs), strict=True))


def difference(other: xr.Dataset, first: xr.Dataset) -> str:
    """In words, what is other in a part of a store than in the first one of the same query set."""
    told = []
    shared = set(other["query"].values) & set(first["query"].values)
    if not same_study(other, first):
        told.append("another model or other texts")
    if len(shared) < min(other.sizes["query"], first.sizes["query"]):
        told.append(f"other queries ({len(shared)} of {other.sizes['query']} are the same)")
    for name, what in ((0, "other candidates"), (1, "another truth")):
        if _of_queries(other, shared, name) != _of_queries(first, shared, name):
            told.append(what)
    keys = _keys(other, first)
    return ", ".join(told or ["other pairs"]) + (f" ({', '.join(keys)})" if keys else "")


def _keys(other: xr.Dataset, first: xr.Dataset) -> list[str]:
    """The first few keys that differ, with the value of `other` and of `first`."""
    mine, theirs = (flat_config(one.attrs.get("config") or {}) for one in (other, first))
    differing = [key for key in sorted({*mine, *theirs}) if key.startswith(KEYS) and mine.get(key) != theirs.get(key)]
    above = {key for key in differing if "." not in key}  # a key that only follows one above it tells nothing
    told = [key for key in differing if "." not in key or key.rpartition(".")[2] not in above]
    return [f"{key}={_value(mine.get(key))}, not {_value(theirs.get(key))}" for key in told[:TOLD]]


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


def _pairs(part: xr.Dataset) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Candidates and sources of each query."""
    train, truth = part["train"].values, part["truth"].values
    return [(frozenset(names) - {""}, frozenset(names[own]) - {""}) for names, own in zip(train, truth, strict=True)]


def _of_queries(part: xr.Dataset, queries: set[str], which: int) -> dict[str, Any]:
    """Candidates (0), or sources with whether they are known (1), of some queries."""
    known = influence.truth_known(part)
    rows = zip(part["query"].values, _pairs(part), known, strict=True)
    return {
        query: pairs[0] if which == 0 else (pairs[1], bool(sure)) for query, pairs, sure in rows if query in queries
    }
