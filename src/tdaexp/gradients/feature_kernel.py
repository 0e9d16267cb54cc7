"""Influence in a linear model of projected gradients: φ(q)ᵀ (ΦᵀΦ + ridge)⁻¹ φ(z), from sketches on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from tdaexp.gradients.features import Features, pieces
from tdaexp.runtime.errors import UserError

Piece = tuple[np.ndarray, np.ndarray]
"""Numbers [n] of training examples, and their projected gradients [n, K, k]."""


def parts(features: Features, components: int, cache_gb: float) -> Iterator[Piece]:
    """Numbers [n] and projected gradients [n, K, k] of all examples, in pieces that fit the cache."""
    for numbers, rows in pieces(features, cache_gb * 1e9):
        yield numbers, rows.reshape(len(rows), components, -1)


def whole(features: Features, components: int, cache_gb: float) -> np.ndarray:
    """Projected whole gradients [N, k]: the sum over components."""
    summed = [(numbers, rows.sum(1)) for numbers, rows in parts(features, components, cache_gb)]
    back = np.argsort(np.concatenate([numbers for numbers, _ in summed]))
    return np.concatenate([rows for _, rows in summed])[back]


def kernel(
    queries: np.ndarray, train: Iterable[Piece], fitted: np.ndarray, pairs: np.ndarray, ridge: float
) -> np.ndarray:
    """φ(q)ᵀ (ΦᵀΦ + ridge)⁻¹ φ(z) by component [Q, C, K], in float64.

    From `queries` [Q, k], `train` in pieces of numbers [n] and φ [n, K, k], and Φ = `fitted` [M, k], the examples that
    the model was trained on. `ridge` is a fraction of the mean eigenvalue of ΦᵀΦ. NaN where `pairs` [Q, C] is -1.
    Errors (UserError): ΦᵀΦ is singular and there is no ridge.
    """
    phi = fitted.astype(np.float64)
    gram = phi.T @ phi
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    if np.linalg.cond(gram) > 1 / np.finfo(np.float32).eps:
        raise UserError(
            f"trak: {len(gram)} dimensions for {len(phi)} training examples leave ΦᵀΦ singular; set method.ridge=0.01, "
            "or fewer method.dimensions"
        )
    solved = np.linalg.solve(gram, queries.T.astype(np.float64)).T
    order = np.argsort(pairs, axis=None, kind="stable")
    ranked, values = pairs.ravel()[order], None
    for numbers, rows in train:
        if values is None:
            values = np.full((*pairs.shape, rows.shape[1]), np.nan)
        first, last = (np.searchsorted(ranked, numbers, side) for side in ("left", "right"))
        found = np.concatenate([order[start:stop] for start, stop in zip(first, last, strict=True)])
        there = np.repeat(np.arange(len(rows)), last - first)
        for start in range(0, len(found), len(rows)):  # at most as many paired rows at a time as the piece has
            some = slice(start, start + len(rows))
            places = np.unravel_index(found[some], pairs.shape)
            values[places] = np.einsum("pd,pkd->pk", solved[places[0]], rows[there[some]], optimize=True)
    if values is None:
        raise ValueError("there is no training example")
    return values
