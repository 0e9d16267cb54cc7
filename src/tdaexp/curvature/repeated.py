"""Scores of a few pairs under several preconditioners: a query is held once for each, training examples pass once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdaexp.curvature.score import LayerPairs, Scoring
from tdaexp.gradients.pair_driver import block_values
from tdaexp.gradients.schedule import Block


def repeated_scores(
    sides: LayerPairs, times: int, rows: Sequence[int], pairs: np.ndarray, tokens_per_batch: int
) -> np.ndarray:
    """Scores [F, n, C], summed over components, of the queries `rows` and their `pairs` [n, C]; NaN where a pair is -1.

    `sides.precondition` is given each query's gradient F = `times` over, [F, O, I], and may treat each in its own way.
    """
    found = np.full((times, *pairs.shape), np.nan)
    work = Scoring(sides.train, sides.queries, tokens_per_batch, sides)
    table = np.full((len(sides.queries), pairs.shape[1]), -1, dtype=np.int64)
    table[list(rows)] = pairs
    for place, row in enumerate(rows):
        used = np.unique(table[row][table[row] >= 0]).tolist()
        block = Block([[row] * times], sides.train.batches(tokens_per_batch, used))
        with work.ready():
            found[:, place] = block_values(work, table, block)["scores"].sum(-1)
    return found
