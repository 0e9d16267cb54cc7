"""TracIn: gradient dot products at moments of a training, weighted by their learning rates.

Source: Pruthi et al. 2020, equation 1 (TracInCP), over moments i of the training:

    s(z, q) = Σ_i η_i ∇ℓ(θ_i, q)·∇ℓ(θ_i, z)

Of kept checkpoints η_i is the mean learning rate of the steps between checkpoints i - 1 and i; of a recorded training
the sum of the rates of the steps that a moment stands for. It describes steps of plain gradient descent; AdamW scales
its steps otherwise. Sign: positive = steps on the training example lowered the query's loss. Fills query, train and
component; additive over components. Cost: per moment that of `dot`.

Scale: nats by which steps on the example lowered the query's loss, to first order, as if each was in every step.
Limits: needs a training that kept checkpoints; examples of large gradients come first for every query.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr

from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.gradients.products import component_products
from tdaexp.history import History
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import repeated
from tdaexp.runtime.rows import Rows
from tdaexp.selection.parts import check_part, chosen, part_note, with_notes

log = logging.getLogger(__name__)


@dataclass
class TracIn(Method):
    """Keys: `steps` to use (null = all checkpoints that the training kept, or `moments` steps of a recorded one, evenly
    spaced), `part`, `components` and `reduction` as for `full`. A run that trains its model keeps the checkpoints by
    itself.
    """

    steps: list[int] | None = field(default=None, metadata={"distinct": True})
    moments: int = 10
    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        check_part(self.part, self.reduction)

    @property
    def label(self) -> str:
        """Name, and the part of the model if it is not the whole."""
        return with_notes(self.name, [part_note(self.part, self.components, "all")])

    @property
    def wants_checkpoints(self) -> bool:
        """Always."""
        return True

    @property
    def linear(self) -> bool:
        """Sums of products with the query's gradient."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same."""
        return self

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Weighted sum of component dot products over the moments."""
        components, compute = chosen(problem.components(), self.part, self.components, "all"), problem.compute
        found: list[tuple[float, Rows]] = []
        used = history_of(problem).moments(self.steps, self.moments)
        for number, moment in enumerate(repeated(used), start=1):
            log.info("moment %d of %d: step %d, rate %.3g", number, len(used), moment.step, moment.rate)
            there = replace(problem, model=moment.load())
            products = component_products(
                train_gradients(there, components, self.reduction),
                query_gradients(there, components, self.reduction),
                problem.pairs,
                store=problem.store(
                    "products", components.names, self.reduction, moment.identity, by=component_products
                ),
                tokens_per_batch=compute.tokens_per_batch,
                cache_gb=compute.cache_gb,
            )
            found.append((moment.rate, products["dot"]))

        def total(rows: np.ndarray) -> np.ndarray:
            return sum((rate * dots[rows] for rate, dots in found), np.zeros((1, 1, 1)))

        values = Rows((*problem.pairs.shape, len(components)), np.float64, total)
        return problem.label(values, components).assign_attrs(steps=[one.step for one in used])


def history_of(problem: Problem) -> History:
    """The problem's history. Errors (UserError): its model was not trained here."""
    if problem.history is None:
        raise UserError(
            "this model's training left nothing on its way that is known here; let it be trained with its checkpoints "
            "kept (trainer.fit.keep=all) or its steps recorded (a classifier: trainer.fit.record=1)"
        )
    return problem.history
