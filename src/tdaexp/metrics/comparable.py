"""Which stores may be ranked together, those of one model with the same queries, candidates and truth; what differs.

A section of a query set holds such stores. One that answers some of the queries only belongs to it too, as long as
those are the same; it is listed with its number of queries, and not ranked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics.labels import TOLD, asked, differing, spelt
from tdaexp.metrics.stores import by_query_set, same_study

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
    if not set(part["query"].values) <= set(whole["query"].values):
        return False
    return _same(part, whole, _candidates) and _same(part, whole, _sources)


def difference(other: xr.Dataset, first: xr.Dataset) -> str:
    """In words, what is other in a part of a store than in the first one of the same query set."""
    told = []
    shared = set(other["query"].values) & set(first["query"].values)
    if not same_study(other, first):
        told.append("another model or other texts")
    if len(shared) < min(other.sizes["query"], first.sizes["query"]):
        told.append(f"other queries ({len(shared)} of {other.sizes['query']} are the same)")
    for look, what in ((_candidates, "other candidates"), (_sources, "another truth")):
        if not _same(other, first, look):
            told.append(what)
    keys = _keys(other, first)
    return ", ".join(told or ["other pairs"]) + (f" ({', '.join(keys)})" if keys else "")


def _keys(other: xr.Dataset, first: xr.Dataset) -> list[str]:
    """The first few keys that differ, with the value of `other` and of `first`; a group speaks for its keys."""
    mine, theirs = asked(other), asked(first)
    every = [key for key in differing([mine, theirs]) if f"{key}.".startswith(KEYS)]
    told = [key for key in every if not any(key.startswith(f"{group}.") for group in every)]
    return [f"{key}={spelt(mine.get(key))}, not {spelt(theirs.get(key))}" for key in told[:TOLD]]


def _same(one: xr.Dataset, other: xr.Dataset, look: Callable[[xr.Dataset], list[Any]]) -> bool:
    """Whether the queries that are in both look the same, a block of them at a time."""
    rows = {query: row for row, query in enumerate(other["query"].values)}
    places = np.array([rows.get(query, -1) for query in one["query"].values], dtype=np.int64)
    mine = influence.of_queries(_asked(one), np.flatnonzero(places >= 0))
    theirs = influence.of_queries(_asked(other), places[places >= 0])
    done = 0
    for part in influence.blocks(mine):
        counterpart = theirs.isel(query=slice(done, done + part.sizes["query"]))
        done += part.sizes["query"]
        same = all(np.array_equal(part[name].values, counterpart[name].values) for name in part.data_vars)
        if not same and look(part) != look(counterpart):
            return False
    return True


def _asked(dataset: xr.Dataset) -> xr.Dataset:
    """Candidates and truth alone."""
    known = ("query", influence.truth_known(dataset))
    return xr.Dataset({"train": dataset["train"].variable, "truth": dataset["truth"].variable, "truth_known": known})


def _candidates(part: xr.Dataset) -> list[Any]:
    """The candidates of each query."""
    return [frozenset(names) - {""} for names in part["train"].values]


def _sources(part: xr.Dataset) -> list[Any]:
    """The sources among the candidates of each query, and whether they are known."""
    names, truth, known = (part[name].values for name in ("train", "truth", "truth_known"))
    return [(frozenset(n[own]) - {""}, bool(sure)) for n, own, sure in zip(names, truth, known, strict=True)]
