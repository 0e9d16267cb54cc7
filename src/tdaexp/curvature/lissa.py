"""LiSSA: (G + λI)⁻¹ b by a Neumann series on random batches of the training examples.

    v_0 = b,   v_{j+1} = b + v_j - (G_j + λI) v_j / σ,   (G + λI)⁻¹ b ≈ v_depth / σ, averaged over the repeats

Source: Agarwal et al. 2017; Koh and Liang 2017, section 3. G_j is the GGN of the j-th batch alone.

Stability: with σ ≥ λ_max(G_j) + λ for every batch no step lengthens an error, and |v_j| ≤ (j + 1) |b|; a series that
breaks this bound diverges. The slowest direction keeps (1 - λ/σ)^depth of its error: to see the directions of low
curvature the depth must exceed σ/λ, and less depth acts as more damping, about σ/depth. Cost: depth x repeats products
with a batch's GGN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tdaexp.curvature.cg import Product
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import repeated

BatchProduct = Callable[[int, Tensor], Tensor]
"""(number of the step, counted through all repeats; vectors [K, n]) to that step's batch GGN times the vectors."""

SLACK = 1.01  # rounding may exceed the bound of a series that stays within it


def lissa(multiply: BatchProduct, rhs: Tensor, *, damping: float, scale: float, depth: int, repeats: int) -> Tensor:
    """Approximate (G + `damping` I)⁻¹ b for the rows b of `rhs` [K, n]; `scale` is σ.

    Errors (UserError): the series diverges; `scale` is too small for some batch.
    """
    bound = torch.linalg.vector_norm(rhs, dim=1, dtype=torch.float64)
    total, current = torch.zeros_like(rhs), rhs
    for step in track(repeated(range(depth * repeats)), "LiSSA", depth * repeats):
        if step % depth == 0:
            current = rhs.clone()
        current = rhs + current - (multiply(step, current) + damping * current) / scale
        length = torch.linalg.vector_norm(current, dim=1, dtype=torch.float64)
        if not bool((length <= SLACK * (step % depth + 2) * bound).all()):
            raise UserError(
                f"LiSSA diverges at step {step % depth + 1} of {depth}: scale={scale:.4g} is below the largest "
                f"eigenvalue of a batch's curvature; set method.scale={2 * scale:.2g} or more, "
                "or a larger method.batch_size"
            )
        if step % depth == depth - 1:
            total += current
    return total / (repeats * scale)


def largest_eigenvalue(multiply: Product, start: Tensor, iterations: int = 12) -> float:
    """Estimate λ_max of a positive semi-definite matrix from below, by power iteration from `start` [n]."""
    vector, value = start[None], 0.0
    for _ in repeated(range(iterations)):
        vector = vector / torch.linalg.vector_norm(vector)
        product = multiply(vector)
        value = float((vector.double() * product.double()).sum())
        if not value > 0:
            return 0.0
        vector = product
    return value
