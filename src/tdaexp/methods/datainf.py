"""DataInf: influence with the mean of damped inverses in place of the inverse of the mean, made for LoRA's matrices.

Source: Kwon et al. 2024, equation 5, over components l,

    I(z, q) = −Σ_l ∇m(q)ᵀ [(1/n) Σ_i (g_i g_iᵀ + λ_l I)⁻¹] ∇ℓ(z)

with g_i the gradients of the training examples' own losses (`curvature.datainf` has the closed form and its λ). The
error of swapping mean and inverse grows with a component's size: small matrices, as an adapter has them, are what it is
for, but any component may be asked for. Sign: m is larger where the answer is more likely, so positive = helps. Fills
query, train and component; additive over components. Cost: a pass over the training set for λ, one for each block of
queries that `trainer.cache_gb` holds as explicit vectors, and one over the candidates.

Scale: as `ekfac`. Limits: the swap above; gradients are formed, so components must be small enough for memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.datainf import mean_of_inverses
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.second_moment import forming, second_moment
from tdaexp.gradients.vector_products import gradient_vectors, vector_products
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.methods.base import Method
from tdaexp.objectives.measurements import sources
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import check_choices, choice_notes, chosen, damping_note, with_notes

log = logging.getLogger(__name__)
HELD = 3
"""Vectors of a query that are in memory while its block is solved."""


@dataclass
class DataInf(Method):
    """Keys: `damping` λ of every component (null = `relative_damping` times the mean eigenvalue of each component's
    gradients' second moment, the paper's), `part`, `components`, `measurement` and `reduction` as for `ekfac`.
    """

    damping: float | None = None
    relative_damping: float = 0.1
    part: str | None = None
    components: list[str] | None = None
    measurement: str = "log_likelihood"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_choices(self.part, self.measurement, self.reduction)
        for key in ("damping", "relative_damping"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise UserError(f"method.{key}={getattr(self, key)}: must be above 0; try method.relative_damping=0.1")
        self.damped = Damping(self.damping, self.relative_damping)

    @property
    def label(self) -> str:
        """Name, and what is not usual: the damping, the part of the model, how queries are measured."""
        notes = [damping_note(self.damping, self.relative_damping, DataInf.relative_damping)]
        return with_notes(
            self.name, [*notes, *choice_notes(self.part, self.components, self.measurement, self.reduction)]
        )

    @property
    def linear(self) -> bool:
        """The query's gradient, times a matrix that no query decides."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same, of the loss."""
        return replace(self, measurement="log_likelihood")

    @property
    def fixed_damping(self) -> str | None:
        """A block of queries takes a pass over all training examples."""
        return "each damping takes a pass over all training examples; compare runs with other values of method.damping"

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Solve for the queries' gradients block by block, and score the pairs."""
        components, compute = chosen(problem.components(), self.part, self.components), problem.compute
        log.info("%s: %s", self.name, components.coverage_line())
        train = train_gradients(problem, components, self.reduction)
        queries = query_gradients(problem, components, self.reduction, self.measurement)
        fitted = replace(train, examples=problem.curvature_examples)
        damping, tokens = self._damping(problem, fitted), compute.tokens_per_batch
        fitted.check(range(len(fitted)), "training")

        form = forming(fitted, tokens)

        def solved(members: list[int]) -> Tensor:
            return mean_of_inverses(fitted, gradient_vectors(queries, members, tokens), damping, tokens, form)

        settings = [self.damped, fitted.examples.fingerprint(), self.measurement, *sources(self.measurement)]
        values = vector_products(
            train,
            problem.pairs,
            solved,
            store=problem.store("datainf", components.names, self.reduction, *settings, by=DataInf),
            tokens_per_batch=tokens,
            cache_gb=compute.cache_gb / HELD,
        )
        return problem.label(values, components).assign({"component_damping": ("component", damping)})

    def _damping(self, problem: Problem, fitted: Gradients) -> np.ndarray:
        """λ of each component [K]. Errors (UserError): a component without any gradient, and no λ of its own."""
        names = fitted.components.names
        if self.damping is not None:
            return np.full(len(names), self.damping)
        store = problem.training_store("squares", names, self.reduction, by=second_moment)
        squares = second_moment(fitted, store=store, tokens_per_batch=problem.compute.tokens_per_batch)
        places = VectorSpace(fitted.model, fitted.components).slices
        found = np.array([self.damped.amount(float(squares[place].double().mean())) for place in places])
        if not (found > 0).all():
            name = names[int(np.argmin(found))]
            raise UserError(
                f"no training example has a gradient of '{name}', so that its damping would be 0; leave it out "
                "(method.components=[...]), or set method.damping=1e-6"
            )
        log.info("damping: λ from %.3g to %.3g", found.min(), found.max())
        return found
