"""Products of stored sketches for candidate pairs: a block of queries is held, its candidates are read past it.

Every product is taken over one pair's rows by itself, so that neither blocks nor memory change a bit of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tdaexp.gradients.features import PIECE_BYTES, Features
from tdaexp.gradients.schedule import Block, kept_plan, listed, plan_blocks, rows_of
from tdaexp.runtime.blockstore import BlockStore

BESIDE = 4  # pieces beside the held queries: one that is read, the reader's own, its squares, copies of paired rows


def feature_products(
    queries: Features, train: Features, pairs: np.ndarray, *, store: Path, cache_gb: float = 2.0
) -> dict[str, np.ndarray]:
    """Dot products and squared norms of sketches, by component, for Q queries and their C candidates each.

    `pairs` [Q, C] int indexes the examples of `train`, -1 for no candidate. Returns `dot` [Q, C, K], `query_sq` [Q, K]
    and `train_sq` [Q, C, K] in the sketches' dtype, NaN where there is no candidate. `store` is a folder named after
    all that the result depends on. `cache_gb` (10^9 bytes) bounds the sketches that are in memory; with less of it,
    candidates are read more often.
    """
    by_row = np.argsort(queries.place)  # everything below is in the order of the rows on disk
    numbers = np.where(pairs < 0, -1, train.place[pairs])[by_row]
    memory, piece = feature_memory(cache_gb, max(queries.row_bytes, train.row_bytes))
    plan = kept_plan(
        store.with_name(store.name + ".plan.json"), feature_blocks(numbers, len(train.place), memory, piece)
    )
    order = listed(plan)
    slices = rows_of(plan)
    width, kind = len(queries.columns), str(queries.dtype)
    shapes = {"dot": (*pairs.shape, width), "train_sq": (*pairs.shape, width), "query_sq": (len(pairs), width)}
    blocks = BlockStore(store, {name: (shape, kind) for name, shape in shapes.items()}, slices)
    with blocks.pending() as missing:
        for number in blocks.each(missing, "products of sketches"):
            blocks.write(number, _block(queries, train, numbers, plan[number]))
    back = np.argsort(order)[queries.place]
    return {name: values[back] for name, values in blocks.read().items()}


def feature_memory(cache_gb: float, row: int) -> tuple[float, int]:
    """Bytes of queries that are held, and how many candidates are read at a time, for rows of so many bytes."""
    cache = cache_gb * 1e9
    piece = max(row, min(PIECE_BYTES, cache / 8))
    return (cache - BESIDE * piece) / row, int(piece // row)


def feature_blocks(pairs: np.ndarray, train: int, held: float, piece: int) -> list[Block]:
    """Blocks of at most `held` queries (one at least), their candidates in pieces of `piece` rows, in order."""
    ones = np.ones(max(train, len(pairs)), dtype=np.int64)
    return plan_blocks(pairs, ones[: len(pairs)], ones[:train], ones[: len(pairs)], piece, held)


def _block(queries: Features, train: Features, pairs: np.ndarray, block: Block) -> dict[str, np.ndarray]:
    """The values of a block's queries, in the order in which the block lists them."""
    members = block.members
    held, columns = queries.rows(members), list(queries.columns.values())
    shape = (len(members), pairs.shape[1], len(columns))
    dot, train_sq = np.full(shape, np.nan, dtype=held.dtype), np.full(shape, np.nan, dtype=held.dtype)
    flat = pairs[members].ravel()
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    for piece in block.train:  # a run of the block's candidates in ascending order
        first, last = np.searchsorted(ranked, [piece[0], piece[-1] + 1])
        places = np.unravel_index(order[first:last], shape[:2])
        there = np.searchsorted(piece, ranked[first:last])
        rows = train.rows(piece)
        train_sq[places] = _squares(rows, columns)[there]
        for number, column in enumerate(columns):
            dot[places[0], places[1], number] = _paired(held[:, column], rows[:, column], places[0], there)
    return {"dot": dot, "train_sq": train_sq, "query_sq": _squares(held, columns)}


def _paired(left: np.ndarray, right: np.ndarray, lefts: np.ndarray, rights: np.ndarray) -> np.ndarray:
    """Dot products [P] of rows of left [n, d] and right [m, d], a few pairs at a time."""
    step = max(1, PIECE_BYTES // (2 * left.shape[1] * left.itemsize))
    found = np.empty(len(lefts), dtype=left.dtype)
    for start in range(0, len(lefts), step):
        some = slice(start, start + step)
        found[some] = np.einsum("pd,pd->p", left[lefts[some]], right[rights[some]])
    return found


def _squares(rows: np.ndarray, columns: list[slice]) -> np.ndarray:
    """Squared norms [n, K] of rows by component, a few rows at a time."""
    step = max(1, PIECE_BYTES // (rows.shape[1] * rows.itemsize))
    found = np.empty((len(rows), len(columns)), dtype=rows.dtype)
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        for number, column in enumerate(columns):
            found[some, number] = (rows[some, column] ** 2).sum(1)
    return found
