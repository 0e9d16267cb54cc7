"""Some of many examples or queries, chosen by a hash of the seed and their id, so that their order plays no part."""

from __future__ import annotations

import logging

from tdaexp.problem import Problem
from tdaexp.runtime.fingerprint import fingerprint

log = logging.getLogger(__name__)


def by_hash(ids: list[str], count: int | None, seed: int) -> list[int]:
    """Places of `count` of the ids (null = all), chosen and ordered by a hash of seed and id."""
    order = sorted(range(len(ids)), key=lambda place: fingerprint(seed, ids[place]))
    return order[:count]


def some_queries(problem: Problem, count: int | None, seed: int) -> Problem:
    """The problem with `count` queries of each query set (null = all), in the problem's order."""
    if count is None:
        return problem
    kept: list[int] = []
    for name in dict.fromkeys(problem.query_set):
        places = [place for place, own in enumerate(problem.query_set) if own == name]
        kept += [places[k] for k in by_hash([problem.queries.ids[place] for place in places], count, seed)]
    if len(kept) == len(problem.query_set):
        return problem
    log.info("%d of %d queries are answered (method.queries=%d of each set)", len(kept), len(problem.query_set), count)
    return problem.of_queries(sorted(kept))
