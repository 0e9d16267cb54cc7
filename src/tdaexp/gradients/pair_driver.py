"""The one walk over pairs of queries and training examples, block by block.

A block is a run of queries that are held in memory together, and all their candidates, which stream past them in
batches (`schedule`). What is held and how it is met is up to a `PairWork`; everything else is here: blocks within
`cache_gb`, their order, shared out over the processes of a run, halved where memory runs out, kept so that a killed run
goes on with the same bits. Each block's values are a pure function of the block.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np

from tdaexp.gradients.pairs import Pairs, pairs_of
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.schedule import Block, halves, kept_plan, listed, plan_blocks, rows_of
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import Shrinking, joined
from tdaexp.runtime.rehearsal import padded, sampled
from tdaexp.runtime.rows import Rows

FILE_BYTES = 1 << 20
"""Rows of a file, at most: results are read in another order than they are written in."""
H = TypeVar("H")
WriteQueries = Callable[[str, slice, np.ndarray], None]
"""Name of an array, a run of the block's queries, and their values [n, K]."""
WritePairs = Callable[[str, np.ndarray], None]
"""Name of an array, and values [P, K] of the pairs that meet, in their order."""


class PairWork(ABC, Generic[H]):
    """What is held of a block's queries (H), and how a batch of training examples meets it."""

    arrays: ClassVar[dict[str, str]]
    """What is computed: name to `pair` (an array [Q, C, K]) or `query` ([Q, K])."""
    doing: ClassVar[str]
    """For people who watch."""
    kind: str
    """Type of the arrays, as numpy names it."""
    width: int
    """K."""

    @abstractmethod
    def plan(self, pairs: np.ndarray, memory: float) -> list[Block]:
        """Blocks that hold at most so many bytes."""

    def ready(self) -> contextlib.AbstractContextManager[object]:
        """Context in which blocks may be computed."""
        return contextlib.nullcontext()

    def size(self, batch: list[int]) -> float:
        """How much work a batch of training examples is, beside others."""
        return float(len(batch))

    @abstractmethod
    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> H:
        """Get hold of a block's queries, in the order of `block.members`.

        `write` takes what is of `query`, now or once `later` is flushed.
        """

    @abstractmethod
    def meet(self, batch: list[int], held: H, pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """Let a batch of training examples meet the queries: `pairs` are places in the block and in the batch.

        `write` takes what is of `pair`, now or once `later` is flushed.
        """

    def done(self) -> None:
        """Called once, after the blocks that this process had to compute, if there were any."""
        return


def meet_pairs(work: PairWork[H], pairs: np.ndarray, *, store: Path, cache_gb: float) -> dict[str, Rows]:
    """Everything that `work` computes of the pairs, in the queries' order; NaN where there is no pair.

    `pairs` [Q, C] int64 index the training examples, -1 for no candidate. `store` is a folder named after all that the
    result depends on; what it already holds is not computed again. `cache_gb` (10^9 bytes) bounds what is held, and,
    of pairs of gradients, a block's result with it. The whole result stays in the store: rows of it are read when they
    are asked for.
    """
    pairs = np.asarray(pairs, dtype=np.int64)
    plan = kept_plan(store.with_name(store.name + ".plan.json"), work.plan(pairs, cache_gb * 1e9))
    order = listed(plan)
    shapes = {"pair": (*pairs.shape, work.width), "query": (len(pairs), work.width)}
    arrays = {name: (shapes[axes], work.kind) for name, axes in work.arrays.items()}
    cuts = rows_of(plan)
    row_bytes = pairs.shape[1] * work.width * np.dtype(work.kind).itemsize
    rows = min([FILE_BYTES // max(row_bytes, 1), *(cut.stop - cut.start for cut in cuts)])
    blocks = BlockStore(store, arrays, cuts, compressed=False, rows=max(1, rows))  # products are noise to a packer
    compute = Shrinking(partial(block_values, work, pairs), lambda block: halves(block, pairs), joined)
    with work.ready(), blocks.pending() as missing:
        for number in blocks.each(missing, work.doing, lambda n: _size(work, plan[n]), lambda n: _examples(plan[n])):
            blocks.write(number, compute(plan[number]))
    if missing:
        work.done()
    back = np.argsort(order)
    return {name: values.at(back) for name, values in blocks.rows().items()}


def block_values(work: PairWork[H], pairs: np.ndarray, block: Block) -> dict[str, np.ndarray]:
    """The values of a block's queries, in the order in which the block lists them."""
    candidates = pairs[block.members]
    shapes = {"pair": (*candidates.shape, work.width), "query": (len(candidates), work.width)}
    values = {name: np.full(shapes[axes], np.nan, work.kind) for name, axes in work.arrays.items()}
    later = Deferred()

    def write_queries(name: str, rows: slice, found: np.ndarray) -> None:
        values[name][rows] = found

    held = work.hold(block, write_queries, later)
    meeting = _Meeting(candidates)
    for batch in sampled(block.train, work.size):
        places, there = meeting.of(batch)

        def write(name: str, found: np.ndarray, places: tuple[np.ndarray, ...] = places) -> None:
            values[name][places] = found

        work.meet(batch, held, pairs_of(places[0], there), write, later)
    later.flush()
    return values


def _examples(block: Block) -> float:
    """Examples that a block has in its batches."""
    return float(sum(map(len, [*block.queries, *block.train])))


def _size(work: PairWork[H], block: Block) -> float:
    return sum(map(work.size, block.train)) + len(block.members) / max(1, len(block.train))


class _Meeting:
    """Finds the places [P] of a batch's examples in a table of candidates [n, C], sorted once."""

    def __init__(self, candidates: np.ndarray) -> None:
        self.shape, self.flat = candidates.shape, candidates.ravel()
        self.order = np.argsort(self.flat, kind="stable")
        self.ranked = self.flat[self.order]

    def of(self, batch: list[int]) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Rows and columns of the candidates in the batch, row by row, and their places in it."""
        wanted = np.sort(batch)
        first, last = (np.searchsorted(self.ranked, wanted, side) for side in ("left", "right"))
        count = last - first
        starts = np.repeat(first - np.concatenate([[0], np.cumsum(count)[:-1]]), count)
        found = np.sort(self.order[starts + np.arange(count.sum())])
        there = np.argsort(batch)[np.searchsorted(wanted, self.flat[found])]
        return np.unravel_index(found, self.shape), there


@dataclass
class GradientPairs(PairWork[H]):
    """The work on pairs of two sides of gradients: blocks are bounded by what one query's take, and its answers."""

    train: Gradients
    queries: Gradients
    tokens_per_batch: int

    def __post_init__(self) -> None:
        self.kind = self.train.kind

    def size(self, batch: list[int]) -> float:
        """Its positions, padding included."""
        return padded(self.train.lengths)(batch)

    def held_size(self, block: Block) -> Callable[[slice], float]:
        """The same of a batch of queries, given by its rows in a block."""
        members, size = block.members, padded(self.queries.lengths)
        return lambda rows: size(members[rows])

    @abstractmethod
    def held_bytes(self) -> np.ndarray:
        """Bytes that are held of each query [Q]."""

    def plan(self, pairs: np.ndarray, memory: float) -> list[Block]:
        """Queries in an order that lets them share candidates; batches of similar length."""
        check_pairs(pairs, self.train, self.queries)
        lengths = self.queries.lengths, self.train.lengths
        answers = list(self.arrays.values()).count("pair") * pairs.shape[1] * self.width * np.dtype(self.kind).itemsize
        return plan_blocks(pairs, *lengths, self.held_bytes() + answers, self.tokens_per_batch, memory)

    @contextlib.contextmanager
    def ready(self):  # type: ignore[no-untyped-def]
        """Both models are frozen."""
        with self.train.ready(), self.queries.ready():
            yield


def check_pairs(pairs: np.ndarray, train: Gradients, queries: Gradients) -> None:
    """Refuse pairs of another shape or outside the training set, sides that do not match, examples without loss."""
    mine, other = ({c.name: c.size for c in side.components.components} for side in (train, queries))
    if mine != other:
        odd = sorted(set(mine.items()) ^ set(other.items()))
        raise UserError(f"the two models differ in '{odd[0][0]}'; name the components that both have and share")
    if pairs.ndim != 2 or len(pairs) != len(queries):
        raise UserError(f"candidates of shape {pairs.shape} for {len(queries)} queries; give one row per query")
    if pairs.size and (pairs.min() < -1 or pairs.max() >= len(train)):
        raise UserError(f"a candidate's number is outside 0 … {len(train) - 1}, the training examples")
    queries.check(range(len(queries)), "query")
    train.check(np.unique(pairs[pairs >= 0]).tolist(), "training")
