"""Similarity of a method's scores to those of the full gradient (Select or Project, section 5.3)."""

from __future__ import annotations

import numpy as np

from tdaexp.selection.subsets import similarity


def fidelity(scores: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Cosine between each query's two score vectors over its candidates: [Q, C] and [Q, C], to [Q].

    Only pairs that both have count; a query without any is NaN.
    """
    both = ~(np.isnan(scores) | np.isnan(full))
    values = similarity(np.where(both, scores, 0.0).T, np.where(both, full, 0.0).T)
    return np.where(both.any(axis=1), values, np.nan)
