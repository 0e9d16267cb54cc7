"""The pairs that are wanted: each query's extremes among all rows of an index, searched as the candidates say.

A search by faiss looks at some rows alone; those are scored again from the index's own rows, so that scores are the
same and only which pairs are found may differ. How many it misses is measured against the exact search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdaexp.data.best import EXACT, Best
from tdaexp.gradients.features import Changed, Sketches
from tdaexp.index.approximate import Approximate
from tdaexp.index.index import Index
from tdaexp.index.meeting import Meeting
from tdaexp.index.search import among, extremes
from tdaexp.problem import Problem
from tdaexp.runtime import ranks, seal
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.rehearsal import current
from tdaexp.runtime.rows import Rows

log = logging.getLogger(__name__)
MEASURED = 20
"""Questions that a search is measured by where nobody has measured it."""
AT_ONCE = 64
"""Questions whose finds are scored again together."""
Recall = dict[str, float]
"""Of `helpful` and `harmful` examples the share that was found, over so many `questions`."""


def found(index: Index, queries: Sketches, meeting: Meeting | None = None) -> Problem:
    """The index's problem about the pairs that are wanted, from sketches of its queries; all blocks are there.

    What changes rows of the index changes those of queries, too.
    """
    problem, meeting = index.problem, meeting or Meeting()
    if problem.wanted is None:
        raise ValueError("pairs were named before")
    asked = queries if meeting.change is None else Changed(queries, meeting.change)
    rows = Rows((len(asked.place), index.making.width), asked.dtype, lambda some: asked.rows(asked.place[some]))
    best, cache_gb = problem.wanted.best, problem.compute.cache_gb
    if best.search == EXACT:
        return problem.having(extremes(index, rows, best.k, meeting, cache_gb=cache_gb), {})
    return problem.having(*by_faiss(Approximate(index, meeting, best, cache_gb), rows))


def by_faiss(approximate: Approximate, queries: Rows) -> tuple[np.ndarray, dict[str, Any]]:
    """As `extremes`, by an approximate search; and what is told of it, for the store's attributes.

    Errors (UserError): its centroids are fitted to more rows than the stated memory holds.
    """
    index, best = approximate.index, approximate.best
    if current() is not None:
        return _rehearsed(approximate, len(queries)), {}
    answer = None
    if ranks.current().first and len(queries):
        with ranks.acting_as(ranks.ALONE):  # the others wait for the answer
            answer = _searched(approximate, queries)
    numbers, told = ranks.from_first(answer) or (np.zeros((0, best.size(range(len(index.place)))), dtype=np.int64), {})
    return numbers, told


def _searched(approximate: Approximate, queries: Rows) -> tuple[np.ndarray, dict[str, Any]]:
    index, best = approximate.index, approximate.best
    opened, begun, numbers, short = approximate.opened(), time.monotonic(), [], 0
    for start in range(0, len(queries), AT_ONCE):
        held = torch.from_numpy(queries[start : start + AT_ONCE])
        finds = approximate.finds(opened, held)
        lacking = [row for row, own in enumerate(finds) if len(own) < best.size(range(len(index.place)))]
        short += len(lacking)
        for row in lacking:  # its lists hold fewer rows than are wanted
            finds[row] = np.unique(extremes(index, held[row : row + 1].numpy(), best.k, approximate.meeting))
        numbers.append(among(index, held.to(index.problem.compute.device), best.k, approximate.meeting, finds))
    took = time.monotonic() - begun
    log.info("search by faiss (%s): %d questions in %.3g s", words(approximate), len(queries), took)
    if short:
        log.warning(
            "search by faiss: the lists of %d questions hold fewer than %d rows, so these were searched exactly; "
            "take more candidates.probes", short, best.size(range(len(index.place))),
        )  # fmt: skip
    every = np.concatenate(numbers)
    recall = _recall(approximate, queries, every)
    known = {} if recall is None else {f"search_{name}": value for name, value in recall.items()}
    return every, {"search": words(approximate), **known}


def words(approximate: Approximate) -> str:
    """What was searched, and how."""
    looked = f", {approximate.probes} lists looked through" if approximate.best.search == "ivf" else ""
    return f"{approximate.kind}{looked}, {approximate.rescored:,} rows a side scored again"


def _recall(approximate: Approximate, queries: Rows, numbers: np.ndarray) -> Recall | None:
    """What the search finds of the exact answer: measured by these questions, or as it was measured before."""
    best, note = approximate.best, _note(approximate)
    known = _known(note)
    count = best.measured
    if count is None:
        count = max(0, MEASURED - int(known["questions"])) if known else MEASURED
        if known and not count:
            log.info("search by faiss: %s, as measured before", _told(known, best))
    if not count:
        return known
    chosen = np.unique(np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(int))
    begun = time.monotonic()
    exact = extremes(approximate.index, queries.at(chosen), best.k, approximate.meeting, cache_gb=approximate.cache_gb)
    found = recall_of(numbers[chosen], exact)
    log.info("search by faiss: %s; these took %.3g s", _told(found, best), time.monotonic() - begun)
    if best.measured is None:
        found = _together(found, known)
        seal.write_note(note, found)
    return found


def _together(recall: Recall, known: Recall | None) -> Recall:
    """The recall of these questions and of those that were measured before, each question alike."""
    if known is None:
        return recall
    mine, other = recall["questions"], known["questions"]
    shares = {name: (mine * recall[name] + other * known[name]) / (mine + other) for name in recall}
    return shares | {"questions": mine + other}


def recall_of(numbers: np.ndarray, exact: np.ndarray) -> Recall:
    """Shares of the exact answer [Q, 2 k] that an answer [Q, 2 k] has, side by side."""
    half = (exact.shape[1] + 1) // 2
    sides = {"helpful": slice(0, half), "harmful": slice(half, None)}
    shares = {
        name: [np.isin(right[side], own[side]) for own, right in zip(numbers, exact, strict=True)]
        for name, side in sides.items()
        if exact[:, side].size
    }
    return {f"recall_{name}": float(np.mean(found)) for name, found in shares.items()} | {
        "questions": float(len(exact))
    }


def _told(recall: Mapping[str, float], best: Best) -> str:
    shares = {name.removeprefix("recall_"): value for name, value in recall.items() if name.startswith("recall_")}
    sides = [f"{100 * value:.1f} % of the {best.k} most {name}" for name, value in shares.items()]
    return f"recall {' and '.join(sides)}, of {recall['questions']:.0f} questions that were searched exactly"


def _note(approximate: Approximate) -> Path:
    settings = (
        approximate.best.k,
        approximate.probes if approximate.best.search == "ivf" else None,
        approximate.rescored,
    )
    return approximate.path / f"recall-{fingerprint(settings)}.json"


def _known(note: Path) -> Recall | None:
    try:
        return dict(seal.read_note(note))
    except (OSError, ValueError):
        return None


def _rehearsed(approximate: Approximate, queries: int) -> np.ndarray:
    """Exact products stand for the search, which takes less; what faiss keeps is a stage of its own."""
    rehearsal, index = current(), approximate.index
    if rehearsal is not None:
        rehearsal.begin()
        lists = approximate.lists if approximate.best.search == "ivf" else 0
        rehearsal.flop += 2.0 * len(index.place) * lists * index.making.width
        rehearsal.end("faiss's index").spent.disk += approximate.size
    return extremes(index, np.zeros((queries, index.making.width), index.dtype), approximate.best.k)
