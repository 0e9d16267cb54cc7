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

WINDOWS = (1, 2, 4, 8, 16)
"""Examples may be sorted by length within so many batches' worth of tokens: less padding, but a looser order."""

PADDING = 1.2
"""The narrowest window is taken whose batches hold at most so many times the real tokens."""


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
    query_batches = _batches(_query_order(pairs, query_lengths), query_lengths, tokens_per_batch)
    visited = pairs[np.concatenate(query_batches)].ravel()
    distinct, first = np.unique(visited[visited >= 0], return_index=True)
    return Schedule(query_batches, _batches(distinct[np.argsort(first)], train_lengths, tokens_per_batch))


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


def _batches(order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> list[list[int]]:
    """Cut `order` into batches, sorted by length in windows that are as narrow as little padding allows."""
    batches: list[list[int]] = []
    for window in WINDOWS:
        place = np.cumsum(lengths[order]) // (window * tokens_per_batch)
        arranged = order[np.lexsort((lengths[order], place))]
        batches = token_budget_batches(lengths, arranged.tolist(), tokens_per_batch)
        padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
        if padded <= PADDING * lengths[order].sum():
            break
    return batches
