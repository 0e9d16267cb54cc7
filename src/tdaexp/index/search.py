"""Search in an index: products of queries with its rows, piece by piece, of which the extremes are kept.

All rows are met, or those alone that another search has found (`index.approximate`). Memory is that of some queries, a
piece of rows and their products, whatever the size of the corpus. At equal score the earlier example comes first, so
that none is among the best and the worst.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdaexp.index.blocks import Block
from tdaexp.index.index import Index
from tdaexp.index.meeting import Meeting
from tdaexp.index.running import Running
from tdaexp.runtime import ranks
from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import current
from tdaexp.runtime.rows import Rows

SCORE_BYTES = 1 << 25
"""Of products at a time, in float64."""


def extremes(
    index: Index, queries: np.ndarray | Rows, k: int, meeting: Meeting | None = None, *, cache_gb: float = 2.0
) -> np.ndarray:
    """Numbers [Q, min(2 k, N)] of each query's k best examples and its k worst ones, in order of falling score.

    `queries` [Q, D] meet the N rows of the index. `cache_gb` (10^9 bytes) bounds the queries that are held at a time;
    for the others the index is read again.
    """
    device, count = index.problem.compute.device, len(index.place)
    if current() is not None:
        return _rehearsed(index, len(queries), min(2 * k, count))
    step = max(1, int(cache_gb * 1e9 / 2 // (2 * index.row_bytes)))
    numbers = []
    if ranks.current().first:
        for start in range(0, len(queries), step):
            held = torch.from_numpy(queries[start : start + step]).to(device)
            pieces = index.pieces(max(1, SCORE_BYTES // (8 * len(held))))
            numbers.append(_met(index, held, k, meeting or Meeting(), pieces))
    return ranks.from_first(np.concatenate(numbers) if numbers else np.zeros((0, min(2 * k, count)), dtype=np.int64))


def among(index: Index, queries: Tensor, k: int, meeting: Meeting, found: Sequence[np.ndarray]) -> np.ndarray:
    """As `extremes`, of the examples alone that were `found` for each query: numbers [n], at least 2 k different ones.

    `queries` [Q, D] are few.
    """
    union = np.unique(np.concatenate(found))
    member = np.zeros((len(queries), len(union)), dtype=bool)
    for row, own in enumerate(found):
        member[row, np.searchsorted(union, own)] = True
    pieces = index.pieces_of(union, max(1, SCORE_BYTES // (8 * len(queries))))
    return _met(index, queries, k, meeting, pieces, torch.from_numpy(member).to(queries.device))


def _met(
    index: Index,
    queries: Tensor,
    k: int,
    meeting: Meeting,
    pieces: Sequence[tuple[Block, slice | np.ndarray]],
    member: Tensor | None = None,
) -> np.ndarray:
    """The best and the worst of the rows in `pieces`; `member` [Q, rows] says which of these a query meets."""
    count, device, done = len(index.place), queries.device, 0
    # All of a small corpus are on one side.
    best = Running(count if count <= 2 * k else k, queries)
    worst = Running(0 if count <= 2 * k else k, queries, late=True)
    for block, some in track(pieces, "search in the index", len(pieces), stoppable=True):
        rows = meeting.changed(index.read(block, some, device).to(queries.dtype))
        numbers = torch.arange(some.start, some.stop) if isinstance(some, slice) else torch.from_numpy(some)
        numbers = block.start + numbers.to(device)
        scores = meeting.scores(queries, rows, numbers)
        others = None if member is None else ~member[:, done : done + len(rows)]
        done += len(rows)
        best.meet(scores if others is None else scores.masked_fill(others, -torch.inf), numbers)
        worst.meet(-scores if others is None else (-scores).masked_fill(others, -torch.inf), numbers)
    return torch.cat([best.numbers, worst.numbers.flip(1)], dim=1).cpu().numpy()


def _rehearsed(index: Index, queries: int, columns: int) -> np.ndarray:
    """What the products take, as a stage of its own; pairs that stand for those that would be found."""
    rehearsal, count = current(), len(index.place)
    if rehearsal is not None:
        rehearsal.begin()
        rehearsal.flop += 2.0 * queries * count * index.making.width
        rehearsal.end("search in the index")
    return np.tile(np.arange(columns), (queries, 1))
