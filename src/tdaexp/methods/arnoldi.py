"""Influence in the span of the curvature's dominant eigenvectors, found by Arnoldi's iteration.

Source: Schioppa et al. 2022 ("Scaling up influence functions"), section 3; a baseline of Bao et al. 2025. With U the
`rank` dominant eigenvectors of G and μ their eigenvalues,

    I(z, q) = −Σ_r (u_r·∇m(q)) (u_r·∇ℓ(z)) / (μ_r + λ)

What lies outside their span is lost: as λ grows this does not become the dot product, but that of the projected
gradients. Sign: positive = helps, as in `ekfac`. Fills query, train and component; additive over components. Cost:
`steps` products with G, once for all queries.

Scale: as `ekfac`. Limits: the span above; eigenvectors that have not converged after `steps` products count as the
others do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import xarray as xr

from tdaexp.curvature.inverse import IHVP
from tdaexp.curvature.inverse_settings import InverseSettings
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Arnoldi(InverseSettings, Method):
    """Keys, beside those of `InverseSettings`: `steps` of the iteration, `rank` eigenvectors that are kept of them."""

    queries: int | None = None
    steps: int = 100
    rank: int = 60

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        if not 1 <= self.rank <= self.steps:
            raise UserError(f"method.rank={self.rank}: must lie between 1 and method.steps={self.steps}")

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Find the eigenvectors, then project each query when it is asked for."""
        ihvp = IHVP(self, problem, type(self))
        pairs, damping = ihvp.eigenpairs(self.steps, self.rank), ihvp.damping
        exact = int((pairs.errors <= 0.01 * pairs.values).sum())
        log.info(
            "Arnoldi: eigenvalues %.4g to %.4g, %d of %d to within 1 %%",
            pairs.values[0],
            pairs.values[-1],
            exact,
            len(pairs.values),
        )

        def vectors(queries: list[int]) -> torch.Tensor:
            return pairs.inverse(ihvp.gradients(queries), damping)

        return ihvp.answer(vectors, {})
