"""Dominant eigenpairs of the GGN by Arnoldi's iteration, which for a symmetric matrix is Lanczos's.

    Q_mᵀ G Q_m = T_m (tridiagonal),   T_m = Y M Yᵀ,   U = Q_m Y: the r largest Ritz values μ with their vectors

Source: Schioppa et al. 2022, section 3 and algorithm 1; Golub and Van Loan 2013, section 10.1, with full
reorthogonalisation, without which converged vectors come back as copies. The basis is stored step by step, so that a
killed run goes on. Memory: steps x n numbers. Cost: one product per step, and 4 n numbers per earlier step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from tdaexp.curvature.cg import Product
from tdaexp.runtime import ranks
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.limits import refuse_beyond
from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import current, repeated


@dataclass(frozen=True)
class Eigenpairs:
    """`values` [r] float64, largest first; `vectors` [r, n], orthonormal rows; `errors` [r] = |G u - μ u|."""

    values: np.ndarray
    vectors: Tensor
    errors: np.ndarray

    def inverse(self, vectors: Tensor, damping: float) -> Tensor:
        """U (M + `damping` I)⁻¹ Uᵀ v for vectors [K, n]; what lies outside the span of U is lost."""
        weights = torch.from_numpy(1 / (self.values + damping)).to(vectors)
        return (vectors @ self.vectors.T * weights) @ self.vectors

    def converged(self, tolerance: float = 0.1) -> Eigenpairs:
        """The pairs whose error is at most so many times their value; at least the first."""
        count = max(1, int((self.errors <= tolerance * self.values).sum()))
        return Eigenpairs(self.values[:count], self.vectors[:count], self.errors[:count])

    def precondition(self, vectors: Tensor, damping: float) -> Tensor:
        """An approximate inverse of G + `damping` I: exact on the span of U, 1 / (smallest μ + `damping`) elsewhere."""
        rest = 1 / (self.values[-1] + damping)
        weights = torch.from_numpy(1 / (self.values + damping) - rest).to(vectors)
        found: Tensor = rest * vectors + (vectors @ self.vectors.T * weights) @ self.vectors
        return found


def dominant_eigenpairs(multiply: Product, start: Tensor, *, steps: int, rank: int, store: Path) -> Eigenpairs:
    """The `rank` largest Ritz pairs of a symmetric matrix after `steps` products, from the vector `start` [n].

    There are fewer where the matrix has fewer distinct eigenvalues (the iteration ends by itself).
    """
    steps = min(steps, len(start))  # there are no more directions
    needed = 2.0 * (steps + 1) * len(start) * start.element_size()
    if current() is None:  # a plan may be of another machine
        refuse_beyond(needed, f"method.steps={steps}", "take fewer, or fewer components")
    kind = str(start.dtype).removeprefix("torch.")
    arrays = {"next": ((steps, len(start)), kind), "alpha": ((steps,), "float64"), "beta": ((steps,), "float64")}
    blocks = BlockStore(store, arrays, [slice(step, step + 1) for step in range(steps)])
    with ranks.first_alone(), blocks.pending() as missing:
        done = missing[0] if missing else steps  # each step needs all before it, so one that is damaged starts over
        basis = torch.zeros(steps + 1, len(start), dtype=start.dtype, device=start.device)
        basis[0] = start / torch.linalg.vector_norm(start)
        if done:
            basis[1 : done + 1] = torch.from_numpy(blocks.group["next"][:done]).to(start)
        for step in track(repeated(range(done, steps)), "Arnoldi", steps, done, stoppable=True):
            scale = max(blocks.group["alpha"][:step], default=0.0)
            alpha, beta, following = _extend(multiply, basis[: step + 1], scale)
            basis[step + 1] = following
            row = {"next": following.cpu().numpy()[None], "alpha": np.array([alpha]), "beta": np.array([beta])}
            blocks.write(step, row)
    kept = blocks.read()
    return _ritz(basis, kept["alpha"], kept["beta"], rank)


def _extend(multiply: Product, basis: Tensor, scale: float) -> tuple[float, float, Tensor]:
    """One step from the basis [j + 1, n]: T's new entries α_j and β_j, and the next basis vector.

    The iteration ends (β = 0) where nothing new is left but rounding, in proportion to the product or to `scale`, the
    largest α so far; the vectors behind its end are zero.
    """
    last = basis[-1]
    if not bool(last.any()):
        return 0.0, 0.0, last
    product = multiply(last[None])[0]
    alpha = float(last.double() @ product.double())
    size = max(float(torch.linalg.vector_norm(product)), scale)
    for _ in range(2):  # once is not enough in floating point, twice is (Kahan and Parlett)
        product = product - (basis @ product) @ basis
    beta = float(torch.linalg.vector_norm(product))
    if beta <= 10 * torch.finfo(basis.dtype).eps * size:
        return alpha, 0.0, torch.zeros_like(last)
    return alpha, beta, product / beta


def _ritz(basis: Tensor, alpha: np.ndarray, beta: np.ndarray, rank: int) -> Eigenpairs:
    ends = np.flatnonzero(beta == 0)
    steps = int(ends[0]) + 1 if len(ends) else len(alpha)
    values, vectors = eigh_tridiagonal(alpha[:steps], beta[: steps - 1])
    chosen = np.argsort(-values)[:rank]
    rows = torch.from_numpy(vectors[:, chosen].T.copy()).to(basis)
    errors = beta[steps - 1] * np.abs(vectors[-1, chosen])
    return Eigenpairs(values[chosen], rows @ basis[:steps], errors)
