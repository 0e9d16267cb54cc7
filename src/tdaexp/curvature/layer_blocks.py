"""Scores a block of layers at a time: queries' gradients and factors of one block are all that is in memory.

A preconditioned query gradient is as large as the model. With B blocks a held query takes 1/B of that, so that B times
as many fit beside each other and meet the same training passes, and factors are read from disk once per block of
queries and layers. The price: queries run B times. Layers do not mix in a block-diagonal inverse: values stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tdaexp.curvature.layers import cut
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.runtime.rows import Rows


def scores_by_blocks(
    sides: LayerPairs,
    pairs: np.ndarray,
    blocks: int,
    *,
    store: Callable[[list[str]], Path],
    tokens_per_batch: int,
    cache_gb: float,
) -> Rows:
    """As `pair_scores`, [Q, C, K], in `blocks` blocks of layers; `store` names the folder for a block's components."""
    names: list[str] = []
    found: list[Rows] = []
    for part in cut(sides.layers, blocks):
        mine = part.components.names
        names += mine
        found.append(
            pair_scores(
                sides.part(part), pairs, store=store(mine), tokens_per_batch=tokens_per_batch, cache_gb=cache_gb
            )
        )
    columns = [names.index(name) for name in sides.layers.components.names]

    def read(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([values[rows] for values in found], axis=-1)[..., columns]

    return Rows((*pairs.shape, len(columns)), found[0].dtype, read)
