"""Agreement of two methods' rankings: Spearman's rank correlation per query over the pairs that both scored."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def spearman(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Spearman's ρ per query [Q] of `scores` and `reference` [Q, C], ties by average rank.

    Only pairs that both have count. NaN where fewer than two do, or where either is constant over them.
    """
    both = ~(np.isnan(scores) | np.isnan(reference))
    left = _centred_ranks(np.where(both, scores, np.nan))
    right = left if reference is scores else _centred_ranks(np.where(both, reference, np.nan))
    covariance = (left * right).sum(axis=1)
    norms = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
    return np.asarray(np.divide(covariance, norms, out=np.full(len(norms), np.nan), where=norms > 0))


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along rows less their mean, 0 where NaN."""
    ranks = rankdata(values, axis=1, nan_policy="omit")
    known = ~np.isnan(values)
    mean = np.where(known, ranks, 0.0).sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return np.where(known, ranks - mean, 0.0)
