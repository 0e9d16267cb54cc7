"""Influence by ASTRA: the damped inverse by EK-FAC-preconditioned steps on random batches.

Source: Wang et al. 2025. With P EK-FAC's damped inverse and g = −∇m(q), steps over batches B_t lead from x = 0
to x = (G + λI)⁻¹ g:

    x ← x − α_t P [(G_t + λI) x − g],      I(z, q) = x·∇ℓ(z)

(`curvature.astra` has the rate and the stability). Sign: positive = helps, as in `ekfac`. Fills query, train and
component; additive over components. Where `cg` runs over all examples of the GGN in every iteration, a step runs over
a batch, so that the examples may be many. Each query's relative residual over all of them is measured at the end, and
marked as in `cg` where it is above the tolerance. Cost: a product with a batch's GGN per query and step, and one with
all of it.

Scale: as `ekfac`. Limits: what the last steps leave is told as a residual, not removed; otherwise those of `cg`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr
from torch import Tensor

from tdaexp.curvature.astra import astra, largest_preconditioned
from tdaexp.curvature.cg import Product, relative_residual
from tdaexp.curvature.convergence import marked, with_marks
from tdaexp.curvature.inverse import IHVP
from tdaexp.curvature.inverse_settings import InverseSettings
from tdaexp.curvature.lissa import BatchProduct
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import repeated

log = logging.getLogger(__name__)
SAFETY = 1.5  # batches beyond those that the rate is estimated from may have more curvature
TRIED = 4  # batches that the rate is estimated from


@dataclass
class ASTRA(InverseSettings, Method):
    """Keys, beside those of `InverseSettings`: `steps` T, `rate` α of the first (null = 1 / (1.5 times the largest
    eigenvalue of P (G_t + λI) of a few batches)), `batch_size` in examples, `tolerance` of the relative residual,
    beyond which a query is marked, `at_once` queries that are solved together.
    """

    steps: int = 128
    rate: float | None = None
    batch_size: int = 16
    tolerance: float = 0.03
    at_once: int = 16

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        for key in ("steps", "batch_size", "at_once"):
            if getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: must be at least 1")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"method.rate={self.rate}: must be above 0, or null to estimate it")
        if not self.tolerance > 0:
            raise UserError(f"method.tolerance={self.tolerance}: must be above 0; try 0.03")

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Take the steps in blocks of queries, all on the same batches, then dot training gradients with them."""
        ihvp = IHVP(self, problem, type(self))
        damping, precondition = ihvp.damping, ihvp.factored()
        multiply = ihvp.batch_product(self.batch_size)
        rate = self.rate or self._rate(ihvp, multiply, precondition)

        def solver(gradients: Tensor) -> dict[str, Tensor]:
            found = astra(multiply, gradients, precondition=precondition, damping=damping, rate=rate, steps=self.steps)
            return {"vectors": found, "residual": relative_residual(ihvp.ggn.multiply, found, gradients, damping)}

        vectors, notes = ihvp.in_blocks(self.at_once, {"residual": "float64"}, solver)
        advice = f"raise method.steps (now {self.steps}), method.batch_size or the damping (now {damping:.3g})"
        notes = with_marks(notes, self.tolerance, "ASTRA", advice)
        return marked(ihvp.answer(vectors, notes), self.label, self.tolerance)

    def _rate(self, ihvp: IHVP, multiply: BatchProduct, precondition: Product) -> float:
        """α from the largest eigenvalues of the first batches, from the cache where they are there."""
        settings = [self.seed, self.batch_size, TRIED, ihvp.damping]
        store = ihvp.problem.training_store("rate", *ihvp.curvature, *settings, by=type(self))
        kept = BlockStore(store, {"largest": ((1,), "float64")}, [slice(0, 1)])
        with kept.pending() as missing:
            if missing:
                found = [
                    largest_preconditioned(partial(multiply, step), precondition, ihvp.random("start"), ihvp.damping)
                    for step in repeated(range(TRIED))
                ]
                kept.write(0, {"largest": np.array([max(found)])})
        rate = 1 / (SAFETY * float(kept.read()["largest"][0]))
        log.info("ASTRA: rate %.3g, falling to zero in %d steps", rate, self.steps)
        return rate
