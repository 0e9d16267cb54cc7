"""Exact search in an index: products of queries with all rows, block by block, of which the extremes are kept.

Memory is that of some queries, a piece of rows and their products, whatever the size of the corpus. At equal score the
earlier example comes first, so that none is among the best and the worst.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.features import Changed, Sketches
from tdaexp.index.index import Index
from tdaexp.influence import EPSILON
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import current
from tdaexp.runtime.rows import Rows

Norms = Callable[[Tensor], Tensor]
"""Of rows [n, D] what their products are divided by [n], float64."""
Change = Callable[[np.ndarray], np.ndarray]
"""Of rows [n, D] what is met in their place [n, D]."""
SCORE_BYTES = 1 << 25
"""Of products at a time, in float64."""


def euclidean(rows: Tensor) -> Tensor:
    """Norms [n] of rows [n, D]."""
    found: Tensor = rows.double().norm(dim=1)
    return found


def found(
    index: Index,
    queries: Sketches,
    *,
    norms: Norms | None = None,
    change: Change | None = None,
    weights: Callable[[], np.ndarray] | None = None,
) -> Problem:
    """The index's problem about the pairs that are wanted, from sketches of its queries; all blocks are there.

    Keys as for `extremes`; `change` is of both sides.
    """
    problem = index.problem
    asked = queries if change is None else Changed(queries, change)
    rows = Rows((len(asked.place), index.making.width), asked.dtype, lambda some: asked.rows(asked.place[some]))
    k = 0 if problem.wanted is None else problem.wanted.k
    cache_gb = problem.compute.cache_gb
    return problem.having(extremes(index, rows, k, norms=norms, change=change, weights=weights, cache_gb=cache_gb))


def extremes(
    index: Index,
    queries: np.ndarray | Rows,
    k: int,
    *,
    norms: Norms | None = None,
    change: Change | None = None,
    weights: Callable[[], np.ndarray] | None = None,
    cache_gb: float = 2.0,
) -> np.ndarray:
    """Numbers [Q, min(2 k, N)] of each query's k best examples and its k worst ones, in order of falling score.

    `queries` [Q, D] are met with the N rows of the index, or with what `change` makes of these; where there are `norms`
    the products are divided by those of both sides, as `influence.cosine` does, and where there are `weights` [N] those
    of an example are multiplied by its own. `cache_gb` (10^9 bytes) bounds the queries that are held at a time; for the
    others the index is read again.
    """
    device, count = index.problem.compute.device, len(index.place)
    if current() is not None:
        return _rehearsed(index, len(queries), min(2 * k, count))
    step = max(1, int(cache_gb * 1e9 / 2 // (2 * index.row_bytes)))
    own = None if weights is None else torch.from_numpy(weights()).to(device)
    numbers = []
    if ranks.current().first:
        for start in range(0, len(queries), step):
            held = torch.from_numpy(queries[start : start + step]).to(device)
            numbers.append(_of_some(index, held, k, norms, change, own))
    return ranks.from_first(np.concatenate(numbers) if numbers else np.zeros((0, min(2 * k, count)), dtype=np.int64))


def _of_some(
    index: Index, queries: Tensor, k: int, norms: Norms | None, change: Change | None, weights: Tensor | None
) -> np.ndarray:
    count, device = len(index.place), queries.device
    # All of a small corpus are on one side.
    best = Running(count if count <= 2 * k else k, queries)
    worst = Running(0 if count <= 2 * k else k, queries, late=True)
    own = torch.empty(0) if norms is None else norms(queries)[:, None]
    pieces = index.pieces(max(1, SCORE_BYTES // (8 * len(queries))))
    for block, some in track(pieces, "search in the index", len(pieces), stoppable=True):
        rows, first = index.read(block, some, device).to(queries.dtype), block.start + some.start
        if change is not None:
            rows = torch.from_numpy(change(rows.cpu().numpy())).to(device)
        scores = (queries @ rows.T).double()
        if norms is not None:
            scores /= own * norms(rows) + EPSILON
        if weights is not None:
            scores *= weights[first : first + len(rows)]
        best.meet(scores, first)
        worst.meet(-scores, first)
    return torch.cat([best.numbers, worst.numbers.flip(1)], dim=1).cpu().numpy()


class Running:
    """The k highest scores that each of Q queries has met, falling, and the `numbers` of the rows that had them.

    At equal score the earlier row comes first, or the later one (`late`).
    """

    def __init__(self, k: int, queries: Tensor, late: bool = False) -> None:
        shape, device = (len(queries), 0), queries.device
        self.k, self.late = k, late
        self.scores = torch.empty(shape, dtype=torch.float64, device=device)
        self.numbers = torch.empty(shape, dtype=torch.int64, device=device)

    def meet(self, scores: Tensor, first: int) -> None:
        """Meet rows [n] from number `first` on, all later than those before, by their scores [Q, n]."""
        if not self.k:
            return
        columns = torch.arange(scores.shape[1], device=scores.device)
        if self.scores.shape[1] == self.k:  # most rows are above nobody's last one
            last = self.scores[:, -1:]
            columns = columns[((scores >= last) if self.late else (scores > last)).any(0)]
        columns = columns.flip(0) if self.late else columns
        found = [(self.scores, self.numbers), (scores[:, columns], (first + columns).expand(len(scores), -1))]
        every, numbers = (torch.cat(one, dim=1) for one in zip(*(found[::-1] if self.late else found), strict=True))
        every, order = every.sort(dim=1, descending=True, stable=True)
        self.scores, self.numbers = every[:, : self.k], numbers.gather(1, order[:, : self.k])


def _rehearsed(index: Index, queries: int, columns: int) -> np.ndarray:
    """What the products take, as a stage of its own; pairs that stand for those that would be found."""
    rehearsal, count = current(), len(index.place)
    if rehearsal is not None:
        rehearsal.begin()
        rehearsal.flop += 2.0 * queries * count * index.making.width
        rehearsal.end("search in the index")
    return np.tile(np.arange(columns), (queries, 1))
