"""Scores of a few pairs at several dampings: each query is held once for each, and training examples pass once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.score import LayerPairs, Precondition, Scoring
from tdaexp.gradients.pair_driver import block_values
from tdaexp.gradients.schedule import Block


def redamped_scores(
    sides: Callable[[Precondition], LayerPairs],
    inverses: Sequence[Precondition],
    rows: Sequence[int],
    pairs: np.ndarray,
    tokens_per_batch: int,
) -> np.ndarray:
    """Scores [F, n, C], summed over components, of the queries `rows` and their `pairs` [n, C]; NaN where a pair is -1.

    `inverses` are F preconditioners, one for each damping; `sides` makes the two sides of a score with one.
    """

    def each(name: str, gradient: Tensor) -> Tensor:
        return torch.cat([own(name, gradient[k : k + 1]) for k, own in enumerate(inverses)])

    found = np.full((len(inverses), *pairs.shape), np.nan)
    both = sides(each)
    work = Scoring(both.train, both.queries, tokens_per_batch, both)
    for place, (row, own) in enumerate(zip(rows, pairs, strict=True)):
        train = both.train.batches(tokens_per_batch, np.unique(own[own >= 0]).tolist())
        table = np.full((len(both.queries), len(own)), -1, dtype=np.int64)
        table[row] = own
        with work.ready():
            values = block_values(work, table, Block([[row] * len(inverses)], train))
        found[:, place] = values["scores"].sum(-1)
    return found
