"""ASTRA: (G + λI)⁻¹ b by steps on random batches of the training examples, preconditioned by EK-FAC.

    x_0 = 0,   x_{t+1} = x_t - α_t P [(G_t + λI) x_t - b],   α_t = α (1 - t / T)

G_t is the GGN of the t-th batch alone, P = (G_EKFAC + λI)⁻¹. Source: the preconditioned Neumann series of Wang et al.
2025 ("Better training data attribution via better inverse Hessian-vector products"); without P and with α_t = 1/σ it is
LiSSA.

Why the rate falls: at a constant one x_t ends as a cloud around the solution, as wide as α times the difference between
batches. A batch sees every example equally often (epochs without replacement), so that the noise of an epoch's batches
cancels but for a term in α²; falling to zero, the rate takes that term along. Averaging the later x_t at a constant
rate, the usual remedy where batches are independent, keeps a bias in α here (`tests/curvature/test_astra.py`).

Stability: with α ≤ 2 / λ_max(P (G_t + λI)) for every batch no step lengthens an error in the norm of P⁻¹, so that
|x_t| ≤ (α_0 + … + α_{t-1}) |P b| in that norm; steps that break this bound diverge. With x = P y the norm is √(x·y).
Cost: T products with a batch's GGN. Memory: four vectors per right-hand side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdaexp.curvature.cg import Product, dots
from tdaexp.curvature.lissa import SLACK, BatchProduct
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import repeated


def astra(
    multiply: BatchProduct, rhs: Tensor, *, precondition: Product, damping: float, rate: float, steps: int
) -> Tensor:
    """Approximate (G + `damping` I)⁻¹ b for the rows b of `rhs` [K, n]; `rate` is α, `steps` T.

    Errors (UserError): the steps diverge; `rate` is too large for some batch.
    """
    dual, x = torch.zeros_like(rhs), torch.zeros_like(rhs)
    unit, gone = dots(rhs, precondition(rhs)).sqrt(), 0.0
    for step in track(repeated(range(steps)), "ASTRA", steps):
        pace = rate * (1 - step / steps)
        dual = dual - pace * (multiply(step, x) + damping * x - rhs)
        x = precondition(dual)
        gone += pace
        if not bool((dots(x, dual).clamp_min(0).sqrt() <= SLACK * gone * unit).all()):
            raise UserError(
                f"ASTRA diverges at step {step + 1} of {steps}: rate={rate:.4g} is too large for a batch's curvature; "
                f"set method.rate={rate / 2:.2g} or less, or a larger method.batch_size"
            )
    return x


def largest_preconditioned(
    multiply: Product, precondition: Product, start: Tensor, damping: float, iterations: int = 12
) -> float:
    """Estimate λ_max of P (G + `damping` I) from below, by power iteration from `start` [n].

    P A is symmetric in the inner product of A = G + λI, so that its Rayleigh quotient is (A v)ᵀ P (A v) / vᵀ A v.
    """
    vector, value = start[None], 0.0
    for _ in repeated(range(iterations)):
        vector = vector / torch.linalg.vector_norm(vector)
        product = multiply(vector) + damping * vector
        following = precondition(product)
        value = float(dots(product, following) / dots(vector, product))
        vector = following
    return value
