"""Influence by LiSSA: the damped inverse as a Neumann series on random batches.

Source: Agarwal et al. 2017; Koh and Liang 2017; a baseline of Bao et al. 2025. With g = −∇m(q) and batches B_t,

    x ← g + x − (G_t + λI) x / σ,      I(z, q) = x·∇ℓ(z) / σ

(`curvature.lissa` has the series and its stability). Sign: positive = helps, as in `ekfac`. Fills query, train and
component; additive over components. Cost: a product with a batch's GGN per query, step and repeat.

Scale: as `ekfac`. Limits: a short series acts as more damping, about σ / `depth`; noise of the batches stays. `astra`
and `cg` measure what is left.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr
from torch import Tensor

from tdaexp.curvature.inverse import IHVP
from tdaexp.curvature.inverse_settings import InverseSettings
from tdaexp.curvature.lissa import BatchProduct, largest_eigenvalue, lissa
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import repeated

log = logging.getLogger(__name__)
SAFETY = 1.5  # batches beyond those that the scale is estimated from may have more curvature
TRIED = 4  # batches that the scale is estimated from


@dataclass
class LiSSA(InverseSettings, Method):
    """Keys, beside those of `InverseSettings`: `depth` of the series, `repeats` that are averaged, `scale` σ (null =
    1.5 times the largest eigenvalue of a few batches, plus λ), `batch_size` in examples, `at_once` queries that are
    solved together.
    """

    depth: int = 200
    repeats: int = 1
    scale: float | None = None
    batch_size: int = 16
    at_once: int = 16

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        super().__post_init__()
        for key in ("depth", "repeats", "batch_size", "at_once"):
            if getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: must be at least 1")
        if self.scale is not None and not self.scale > 0:
            raise UserError(f"method.scale={self.scale}: must be above 0, or null to estimate it")

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Run the series in blocks of queries, all on the same batches, then dot training gradients with them."""
        ihvp = IHVP(self, problem, type(self))
        damping = ihvp.damping
        multiply = ihvp.batch_product(self.batch_size)
        scale = self.scale or self._scale(ihvp, multiply)

        def solver(gradients: Tensor) -> dict[str, Tensor]:
            found = lissa(multiply, gradients, damping=damping, scale=scale, depth=self.depth, repeats=self.repeats)
            return {"vectors": found}

        return ihvp.answer(*ihvp.in_blocks(self.at_once, {}, solver))

    def _scale(self, ihvp: IHVP, multiply: BatchProduct) -> float:
        """σ from the largest eigenvalues of the first batches, from the cache where they are there."""
        settings = [self.seed, self.batch_size, TRIED]
        store = ihvp.problem.training_store("scale", *ihvp.curvature, *settings, by=type(self))
        kept = BlockStore(store, {"largest": ((1,), "float64")}, [slice(0, 1)])
        with kept.pending() as missing:
            if missing:
                found = [
                    largest_eigenvalue(partial(multiply, step), ihvp.random("start")) for step in repeated(range(TRIED))
                ]
                kept.write(0, {"largest": np.array([max(found)])})
        scale = SAFETY * float(kept.read()["largest"][0]) + ihvp.damping
        log.info("LiSSA: scale %.4g; after %d steps like a damping of %.3g", scale, self.depth, scale / self.depth)
        return scale
