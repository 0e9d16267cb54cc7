"""Conjugate gradients for (G + λI) x = b, many right-hand sides at once, each with steps of its own.

Source: Hestenes and Stiefel 1952; for influence functions Koh and Liang 2017, section 3. G is positive semi-definite
and known by its products alone; a preconditioner changes the way to the solution, not the solution. A right-hand side
that has converged takes no further part, so that its solution depends on nobody else's. Memory: five vectors per
right-hand side. Cost: one product per iteration, and one for the true residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import repeated

Product = Callable[[Tensor], Tensor]
"""[K, n] to G's products with the K rows [K, n]."""


@dataclass(frozen=True)
class Solution:
    """`vectors` [K, n]; `residual` [K] float64, |b - (G + λI) x| / |b| as computed anew; `iterations` [K] int64."""

    vectors: Tensor
    residual: Tensor
    iterations: Tensor


def conjugate_gradients(
    multiply: Product,
    rhs: Tensor,
    *,
    damping: float,
    iterations: int,
    tolerance: float,
    precondition: Product | None = None,
) -> Solution:
    """Solve (G + `damping` I) x = b for the rows b of `rhs` [K, n]; `precondition` applies an approximate inverse.

    Stops each row at a relative residual of `tolerance`, and all at `iterations`. Whether a row converged is for the
    caller to read off its `residual`: that is the true one, and rounding may keep it above the tolerance (for float32,
    near 1e-7 |G| / `damping`).
    """
    size = norms(rhs).clamp_min(torch.finfo(torch.float64).tiny)
    x, r = torch.zeros_like(rhs), rhs.clone()
    z = r if precondition is None else precondition(r)
    p, used = z.clone(), torch.zeros(len(rhs), dtype=torch.int64, device="cpu")
    slope = dots(r, z)
    active = norms(r) > tolerance * size
    for _ in track(repeated(range(iterations)), "conjugate gradients", iterations):
        rows = torch.nonzero(active)[:, 0]
        if not len(rows):
            break
        product = multiply(p[rows]) + damping * p[rows]
        curvature = dots(p[rows], product)
        # Rounding can leave no curvature along p: such a row is as far as it can get.
        step = torch.where(curvature > 0, slope[rows] / curvature, 0.0).to(x.dtype)[:, None]
        x[rows] += step * p[rows]
        r[rows] -= step * product
        z = r[rows] if precondition is None else precondition(r[rows])
        before, slope[rows] = slope[rows], dots(r[rows], z)
        p[rows] = z + (slope[rows] / before).to(x.dtype)[:, None] * p[rows]
        used[rows.cpu()] += 1
        active[rows] = (norms(r[rows]) > tolerance * size[rows]) & (curvature > 0)
    return Solution(x, relative_residual(multiply, x, rhs, damping), used)


def relative_residual(multiply: Product, x: Tensor, rhs: Tensor, damping: float) -> Tensor:
    """|b - (G + `damping` I) x| / |b| of the rows [K] float64."""
    size = norms(rhs).clamp_min(torch.finfo(torch.float64).tiny)
    return norms(rhs - multiply(x) - damping * x) / size


def dots(left: Tensor, right: Tensor) -> Tensor:
    """Dot products [K] float64 of rows."""
    return torch.stack([a.double() @ b.double() for a, b in zip(left, right, strict=True)])


def norms(rows: Tensor) -> Tensor:
    """Lengths [K] float64 of rows."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return found
