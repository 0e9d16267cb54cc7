"""Whitening of sketches: R^(−½) of the second moments R of two sets of sketches, each component by itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tdaexp.gradients.features import Sketches, pieces
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import arithmetic

Matrices = dict[str, np.ndarray]
"""A symmetric matrix [k, k] float64 for each component."""


def mixed_second_moments(first: Sketches, second: Sketches, share: float, cache_gb: float) -> Matrices:
    """`share` E[φ φᵀ] over the first examples and the rest over the second, by component."""
    found: Matrices = {}
    for side, weight in ((first, share), (second, 1 - share)):
        for name, moment in _second_moments(side, cache_gb).items() if weight > 0 else ():
            found[name] = np.add(found.get(name, 0.0), weight * moment)
    return found


def _second_moments(features: Sketches, cache_gb: float) -> Matrices:
    widths = {name: column.stop - column.start for name, column in features.columns.items()}
    found = {name: np.zeros((width, width)) for name, width in widths.items()}
    for _, rows in pieces(features, cache_gb * 1e9):
        for name, column in features.columns.items():
            own = rows[:, column].astype(np.float64)
            arithmetic(2.0 * own.size * own.shape[1])
            found[name] += own.T @ own
    return {name: one / len(features.place) for name, one in found.items()}


def whiteners(moments: Mapping[str, np.ndarray], relative_damping: float) -> Matrices:
    """(R + λI)^(−½) of each component, λ a fraction of R's mean eigenvalue.

    Errors (UserError): R is singular and there is no damping.
    """
    found = {}
    for name, moment in moments.items():
        values, vectors = torch.linalg.eigh(torch.from_numpy(moment))
        damped = values.clamp(min=0) + relative_damping * float(values.mean())
        if float(damped.min()) <= torch.finfo(torch.float32).eps * float(damped.max()):
            raise UserError(
                f"component '{name}': the {len(damped)} dimensions of its projections are more than its gradients "
                "span, so that they cannot be whitened; set method.relative_damping=0.1, or fewer method.dimensions"
            )
        found[name] = (vectors @ torch.diag(damped.rsqrt()) @ vectors.T).numpy()
    return found


def whitened(columns: Mapping[str, slice], matrices: Matrices, rows: np.ndarray) -> np.ndarray:
    """Sketches [n, entries], each component times its symmetric matrix; `columns` are its entries."""
    found = np.empty_like(rows)
    for name, column in columns.items():
        arithmetic(2.0 * rows[:, column].size * len(matrices[name]))
        found[:, column] = rows[:, column].astype(np.float64) @ matrices[name]
    return found
