"""Products of stored sketches for candidate pairs: a block of queries is held, its candidates are read past it.

Every product is taken over one pair's rows by itself, so that neither blocks nor memory change a bit of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tdaexp.gradients.features import PIECE_BYTES, Sketches
from tdaexp.gradients.pair_driver import PairWork, WritePairs, WriteQueries, meet_pairs
from tdaexp.gradients.pairs import Pairs
from tdaexp.gradients.schedule import Block, plan_blocks
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.rehearsal import arithmetic, repeated
from tdaexp.runtime.rows import Rows

BESIDE = 4  # pieces beside the held queries: one that is read, the reader's own, its squares, copies of paired rows


def feature_products(
    queries: Sketches, train: Sketches, pairs: np.ndarray, *, store: Path, cache_gb: float = 2.0, squares: bool = True
) -> dict[str, Rows]:
    """Dot products and squared norms of sketches, by component, for Q queries and their C candidates each.

    `pairs` [Q, C] int indexes the examples of `train`, -1 for no candidate. Returns `dot` [Q, C, K] and, with
    `squares`, `query_sq` [Q, K] and `train_sq` [Q, C, K] in the sketches' dtype, NaN where there is no candidate.
    `store` is a folder named after all that the result depends on. `cache_gb` (10^9 bytes) bounds the sketches that are
    in memory; with less of it, candidates are read more often.
    """
    # The walk is in the order of the rows on disk.
    by_row = np.argsort(queries.place)
    numbers = np.where(pairs < 0, -1, train.place[pairs])[by_row]
    work = (FeaturePairs if squares else FeatureDots)(queries, train)
    found = meet_pairs(work, numbers, store=store, cache_gb=cache_gb)
    return {name: values.at(queries.place) for name, values in found.items()}


class FeatureDots(PairWork[np.ndarray]):
    """Holds the queries' rows, reads the candidates' past them; both are numbered as on disk."""

    arrays = {"dot": "pair"}  # noqa: RUF012 (a constant of the class)
    doing = "products of sketches"

    def __init__(self, queries: Sketches, train: Sketches) -> None:
        self.queries, self.train = queries, train
        self.columns = list(queries.columns.values())
        self.width, self.kind = len(self.columns), str(queries.dtype)

    def plan(self, pairs: np.ndarray, memory: float) -> list[Block]:
        """Blocks of queries that fit beside the candidates that are read at a time, in order."""
        held, piece = feature_memory(memory, max(self.queries.row_bytes, self.train.row_bytes))
        ones = np.ones(max(len(self.train.place), len(pairs)), dtype=np.int64)
        queries = ones[: len(pairs)]
        return plan_blocks(pairs, queries, ones[: len(self.train.place)], queries, piece, held)

    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> np.ndarray:
        """Rows [n, entries] of the queries."""
        return self.queries.rows(block.members)

    def meet(self, batch: list[int], held: np.ndarray, pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """Read some candidates, and multiply each pair's rows by themselves."""
        self.multiply(self.train.rows(batch), held, pairs, write)

    def multiply(self, rows: np.ndarray, held: np.ndarray, pairs: Pairs, write: WritePairs) -> None:
        """Dot products of the candidates' rows and the held ones."""
        left, right = pairs.left.numpy(), pairs.right.numpy()
        dots = [_paired(held[:, column], rows[:, column], left, right) for column in self.columns]
        write("dot", np.stack(dots, axis=1))


class FeaturePairs(FeatureDots):
    """The same, and the squared norms of both sides."""

    arrays = {"dot": "pair", "train_sq": "pair", "query_sq": "query"}  # noqa: RUF012 (a constant of the class)

    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> np.ndarray:
        """Rows [n, entries] of the queries, and their squared norms."""
        held = super().hold(block, write, later)
        write("query_sq", slice(None), _squares(held, self.columns))
        return held

    def multiply(self, rows: np.ndarray, held: np.ndarray, pairs: Pairs, write: WritePairs) -> None:
        """Products, and the candidates' squared norms."""
        write("train_sq", _squares(rows, self.columns)[pairs.right.numpy()])
        super().multiply(rows, held, pairs, write)


def feature_memory(cache: float, row: int) -> tuple[float, int]:
    """Queries that are held, and how many candidates are read at a time, for rows of so many bytes."""
    piece = max(row, min(PIECE_BYTES, cache / 8))
    return (cache - BESIDE * piece) / row, int(piece // row)


def _paired(left: np.ndarray, right: np.ndarray, lefts: np.ndarray, rights: np.ndarray) -> np.ndarray:
    """Dot products [P] of rows of left [n, d] and right [m, d], a few pairs at a time."""
    step = max(1, PIECE_BYTES // (2 * left.shape[1] * left.itemsize))
    found = np.empty(len(lefts), dtype=left.dtype)
    arithmetic(2.0 * len(lefts) * left.shape[1])
    for start in repeated(range(0, len(lefts), step)):
        some = slice(start, start + step)
        found[some] = np.einsum("pd,pd->p", left[lefts[some]], right[rights[some]])
    return found


def _squares(rows: np.ndarray, columns: list[slice]) -> np.ndarray:
    """Squared norms [n, K] of rows by component, a few rows at a time."""
    step = max(1, PIECE_BYTES // (rows.shape[1] * rows.itemsize))
    found = np.empty((len(rows), len(columns)), dtype=rows.dtype)
    arithmetic(2.0 * rows.size)
    for start in repeated(range(0, len(rows), step)):
        some = slice(start, start + step)
        for number, column in enumerate(columns):
            found[some, number] = (rows[some, column] ** 2).sum(1)
    return found
