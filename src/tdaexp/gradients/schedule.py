"""Which examples run together and in which order, so that each training example is run as few times as possible.

All of it is a pure function of pairs, lengths and the token budget: results may depend in their last bits on which
examples share a batch, so batches must not depend on what happens to be cached or done already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from tdaexp.data.examples import token_budget_batches

WINDOW = 4
"""Examples are sorted by length within this many batches' worth of tokens: little padding, order nearly kept."""


@dataclass(frozen=True)
class Schedule:
    """`query_batches` lists all queries once, `train_batches` every training example that occurs in a pair once."""

    query_batches: list[list[int]]
    train_batches: list[list[int]]

    def home(self, examples: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch and row [N] of each training example, -1 where it is never needed."""
        batch, row = np.full(examples, -1), np.full(examples, -1)
        for number, members in enumerate(self.train_batches):
            batch[members], row[members] = number, np.arange(len(members))
        return batch, row


def schedule(
    pairs: np.ndarray, query_lengths: np.ndarray, train_lengths: np.ndarray, tokens_per_batch: int
) -> Schedule:
    """Order queries so that neighbours share candidates, and training examples by first use; cut both into batches.

    `pairs` [Q, C] int64, -1 where there is no candidate; lengths in tokens.
    """
    queries = _windows(_query_order(pairs, query_lengths), query_lengths, tokens_per_batch)
    query_batches = token_budget_batches(query_lengths, queries, tokens_per_batch)
    visited = pairs[queries].ravel()
    visited = visited[visited >= 0]
    distinct, first = np.unique(visited, return_index=True)
    train = _windows(distinct[np.argsort(first)], train_lengths, tokens_per_batch)
    return Schedule(query_batches, token_budget_batches(train_lengths, train, tokens_per_batch))


def _query_order(pairs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """By length where all queries have all candidates; else the order that clusters shared candidates.

    Reverse Cuthill-McKee on the graph of queries and candidates brings queries with common candidates together.
    """
    queries, (rows, columns) = len(pairs), np.nonzero(pairs >= 0)
    used, candidate = np.unique(pairs[rows, columns], return_inverse=True)
    if len(rows) == queries * len(used):
        return np.argsort(lengths, kind="stable")
    nodes = queries + len(used)
    edges = csr_array((np.ones(len(rows)), (rows, queries + candidate)), shape=(nodes, nodes))
    order = reverse_cuthill_mckee((edges + edges.T).tocsr(), symmetric_mode=True)
    return order[order < queries].astype(np.int64)


def _windows(order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> np.ndarray:
    """Sort by length inside consecutive windows of `WINDOW` batches' tokens."""
    window = np.cumsum(lengths[order]) // (WINDOW * tokens_per_batch)
    return order[np.lexsort((lengths[order], window))]
