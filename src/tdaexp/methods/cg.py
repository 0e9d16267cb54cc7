"""Influence by conjugate gradients: the exact damped inverse, to a stated residual. The reference for approximations.

Source: Koh and Liang 2017; Bao et al. 2025, section 5.1, where it is the ground truth. All chosen
components are inverted together,

    I(z, q) = −∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z)

with G the GGN of the training loss, summed over an example's tokens (`curvature.inverse`; the solver: `curvature.cg`).
Sign: positive = helps, as in `ekfac`. Fills query, train and component; additive over components. A query whose
residual stays above the tolerance is marked (`residual` and `converged` per query and, for all of them, as attributes)
and counted in the log. Cost: a product per query and iteration, each about four forward passes over the examples of the
GGN, after the fit of the preconditioner.

Scale: as `ekfac`. Limits: exact for this G over `examples` of the training set, at this λ; the influence function
itself is first order, and a model that is not at a minimum is not what it is about. Small λ takes more iterations.

`curvature_blocks=matrix` (or `joint`, `layer`: EK-FAC's own blocks) inverts each diagonal block of the same G exactly
and leaves out what lies between blocks: the most that a block-diagonal approximation such as EK-FAC could reach. A
query's residual is then that of its worst block. Cost: a solution for each block.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import xarray as xr
from torch import Tensor

from tdaexp.curvature.cg import Product, conjugate_gradients
from tdaexp.curvature.convergence import marked, with_marks
from tdaexp.curvature.inverse import IHVP, Notes
from tdaexp.curvature.inverse_settings import InverseSettings
from tdaexp.curvature.joint_blocks import BLOCKS, blocks_of
from tdaexp.gradients.vector_products import Vectors
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown

log = logging.getLogger(__name__)
PRECONDITIONERS = ("ekfac", "arnoldi", "none")
WHOLE = "all"
"""Of `curvature_blocks`: one block."""


@dataclass
class CG(InverseSettings, Method):
    """Keys, beside those of `InverseSettings`: `iterations` at most, `tolerance` of the relative residual
    |b - (G + λI) x| / |b|, `preconditioner` (`ekfac`: EK-FAC's damped inverse over the same examples; `arnoldi`: the
    dominant eigenvectors, after `arnoldi_steps` products; `none`: the solution is the same, the way to it longer),
    `at_once` queries that are solved together, `curvature_blocks` (what is inverted together: `all` chosen components,
    or blocks as those of `ekfac`, `matrix`, `joint` or `layer`, with nothing between them).
    """

    iterations: int = 60
    tolerance: float = 3e-3
    preconditioner: str = "arnoldi"
    arnoldi_steps: int = 100
    at_once: int = 16
    curvature_blocks: str = WHOLE

    def __post_init__(self) -> None:
        """Refuse impossible numbers and an unknown preconditioner."""
        super().__post_init__()
        for key in ("iterations", "at_once", "arnoldi_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: must be at least 1")
        if self.preconditioner not in PRECONDITIONERS:
            raise unknown("preconditioner", self.preconditioner, PRECONDITIONERS, "method.preconditioner")
        if self.curvature_blocks not in (WHOLE, *BLOCKS):
            raise unknown("curvature_blocks", self.curvature_blocks, (WHOLE, *BLOCKS), "method.curvature_blocks")
        if not self.tolerance > 0:
            raise UserError(f"method.tolerance={self.tolerance}: must be above 0; try 0.003")

    def attribute(self, problem: Problem) -> xr.Dataset:
        """As every inverse, with the worst residual and whether all queries converged as attributes."""
        ihvp = IHVP(self, problem, type(self))
        if self.curvature_blocks == WHOLE:
            return marked(ihvp.answer(*self.solve(ihvp)), self.label, self.tolerance)
        return self._by_blocks(problem, ihvp)

    def _by_blocks(self, problem: Problem, whole: IHVP) -> xr.Dataset:
        """Each block's own answer, side by side; λ is that of all components."""
        blocks = blocks_of(whole.layers, self.curvature_blocks)
        names = [[name for layer in block for name, _ in layer.members] for block in blocks]
        parts = []
        for number, own in enumerate(names, 1):
            log.info("block %d of %d: %s", number, len(names), ", ".join(own))
            alone = replace(self, curvature_blocks=WHOLE, components=own, damping=whole.damping)
            parts.append(alone.attribute(problem))
        found = xr.concat(parts, "component", data_vars="minimal", coords="minimal", compat="override", join="exact")
        for name in ("residual", "iterations"):
            found[name] = xr.concat([part[name] for part in parts], "block").max("block")
        found["converged"] = xr.concat([part["converged"] for part in parts], "block").all("block")
        return marked(found.sel(component=whole.components.names), self.label, self.tolerance)

    def solve(self, ihvp: IHVP) -> tuple[Vectors, Notes]:
        """Solve in blocks of queries; say how far each got."""
        damping, precondition = ihvp.damping, self._preconditioner(ihvp)

        def solver(gradients: Tensor) -> dict[str, Tensor]:
            found = conjugate_gradients(
                ihvp.ggn.multiply,
                gradients,
                damping=damping,
                iterations=self.iterations,
                tolerance=self.tolerance,
                precondition=precondition,
            )
            return {"vectors": found.vectors, "residual": found.residual, "iterations": found.iterations}

        vectors, notes = ihvp.in_blocks(self.at_once, {"residual": "float64", "iterations": "int64"}, solver)
        advice = f"raise method.iterations (now {self.iterations}) or the damping (now {damping:.3g})"
        return vectors, with_marks(notes, self.tolerance, "conjugate gradients", advice)

    def _preconditioner(self, ihvp: IHVP) -> Product | None:
        if self.preconditioner == "none":
            return None
        if self.preconditioner == "ekfac":
            return ihvp.factored()
        pairs, damping = ihvp.eigenpairs(self.arnoldi_steps, self.arnoldi_steps).converged(), ihvp.damping
        return lambda vectors: pairs.precondition(vectors, damping)
