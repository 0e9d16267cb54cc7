"""Eigenbases of the Kronecker factors, in float64.

Source: Bao et al. 2025, equation 5. A covariance has no negative eigenvalue but by rounding: those are set to zero, and
the lowest one is reported. One that rounding cannot explain means a damaged factor, and is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.runtime.errors import UserError

ROUNDING = 1e-3
"""Largest share of the top eigenvalue that a negative one may have in a sum formed in float32."""


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Eigenvalues `values` [d] float64, ascending and not negative; orthonormal columns `vectors` [d, d] float64.

    `lowest` is the least eigenvalue before clamping.
    """

    values: Tensor
    vectors: Tensor
    lowest: float


def eigenbasis(matrix: Tensor, name: str) -> Eigenbasis:
    """Decompose a symmetric positive semi-definite matrix [d, d]; `name` is for messages.

    Errors (UserError): entries that are not finite, an eigenvalue below -1e-3 of the largest.
    """
    wide = matrix.to(torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise UserError(f"{name}: the covariance is not finite; delete the stored factors and fit again")
    values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
    lowest, highest = float(values[0]), float(values[-1])
    if lowest < -ROUNDING * max(highest, 0.0):
        raise UserError(
            f"{name}: eigenvalue {lowest:.3g} beside a largest of {highest:.3g}: this is no covariance; delete the "
            "stored factors and fit again, or fit with trainer.precision=float32"
        )
    return Eigenbasis(values.clamp(min=0), vectors, lowest)
