"""LESS: cosines of a query's gradient with the direction that AdamW would step in for a training example.

Source: Xia et al. 2024, section 3, over checkpoints i:

    s(z, q) = Σ_i η_i cos(∇ℓ(θ_i, q), Γ(θ_i, z))

with η_i as for `tracin` and Γ = m̂ / (√v̂ + ε) after the example's gradient went into AdamW's averages at θ_i
(`gradients.adamw.Direction`). The paper takes LoRA's matrices and projects; here any components, exactly. The momentum
of the training is part of every Γ; a recorded training keeps no first moment, so that Γ is the example's own part
there, which is said. Sign: positive = an update on the training example lowers the query's loss. Fills query, train and
component; additive over components. Cost: per moment that of `dot`, with gradients that are formed.

Scale: a cosine times a learning rate, summed; compare within one model. Limits: needs AdamW's state at each checkpoint;
where the momentum outweighs the example's own part, all examples look alike.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from tdaexp.gradients.adamw import direction, identity_of, moments_with_state
from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.gradients.products import component_products
from tdaexp.gradients.transformed_products import as_it_is
from tdaexp.methods.base import Method
from tdaexp.methods.tracin import TracIn
from tdaexp.problem import Problem
from tdaexp.runtime.rehearsal import repeated
from tdaexp.runtime.rows import Rows
from tdaexp.selection.parts import chosen

log = logging.getLogger(__name__)


@dataclass
class LESS(TracIn):
    """Keys: as for `tracin`. A run that trains its model keeps the checkpoints with AdamW's state by itself."""

    @property
    def wants_state(self) -> bool:
        """Always."""
        return True

    @property
    def linear(self) -> bool:
        """No: a cosine scales each query by its own norm."""
        return False

    @property
    def of_itself(self) -> Method | None:
        """None: a cosine."""
        return None

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Weighted sum of cosines over the moments, shared out over components."""
        components, compute = chosen(problem.components(), self.part, self.components, "all"), problem.compute
        found: list[tuple[float, dict[str, Rows]]] = []
        used, momentum = moments_with_state(problem, self.steps, self.moments), True
        for number, moment in enumerate(repeated(used), start=1):
            there, state = replace(problem, model=moment.load()), moment.state()
            momentum = state.first is not None
            log.info(
                "moment %d of %d: step %d, rate %.3g, %s momentum",
                *(number, len(used), moment.step, moment.rate, "with" if momentum else "without"),
            )
            train = train_gradients(there, components, self.reduction)
            settings = [self.reduction, *identity_of(moment, state), momentum]
            products = component_products(
                replace(train, transform=direction(there.model, components, state)),
                replace(query_gradients(there, components, self.reduction), transform=as_it_is),
                problem.pairs,
                store=problem.store("less", components.names, *settings, by=LESS),
                tokens_per_batch=compute.tokens_per_batch,
                cache_gb=compute.cache_gb,
            )
            found.append((moment.rate, products))

        def total(rows: np.ndarray) -> np.ndarray:
            return sum((rate * _cosines(products, rows) for rate, products in found), np.zeros((1, 1, 1)))

        values = Rows((*problem.pairs.shape, len(components)), np.float64, total)
        labelled = problem.label(values, components)
        return labelled.assign_attrs(steps=[one.step for one in used], momentum=int(momentum))


def _cosines(products: dict[str, Rows], rows: np.ndarray) -> np.ndarray:
    """Each component's part [n, C, K] of the cosines of some queries; 0 where a side has no gradient at all."""
    dots, queries, train = (products[name][rows].astype(np.float64) for name in ("dot", "query_sq", "train_sq"))
    norms = np.sqrt(queries.sum(1)[:, None] * train.sum(2))[..., None]
    found: np.ndarray = np.divide(dots, norms, out=0.0 * dots, where=norms > 0)  # NaN: there is no pair
    return found
