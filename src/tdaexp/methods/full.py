"""Full-gradient similarity: the cosine of two examples' whole loss gradients.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.2 and A.2; the reference that surrogates are
compared with. Sign: positive cosine = a step on the training example lowers the query's loss. Fills query, train and
component. Cost: one forward-backward pass per example, and the component dot products of the candidate pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.gradients.products import component_products
from tdaexp.methods.base import Method
from tdaexp.objectives.base import check_reduction
from tdaexp.problem import Problem


@dataclass
class Full(Method):
    """Keys: `components` (names to restrict the gradient to; null = all), `reduction` of the loss over an example's
    tokens (`mean`, as in the paper, or `sum`).
    """

    components: list[str] | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse an unknown reduction."""
        check_reduction(self.reduction)

    @property
    def sharded(self) -> bool:
        """Yes: it sees activations and their gradients alone."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Component dot products and self-products of all candidate pairs."""
        components, compute = problem.components(self.components), problem.compute
        products = component_products(
            train_gradients(problem, components, self.reduction),
            query_gradients(problem, components, self.reduction),
            problem.pairs,
            store=problem.store("products", components.names, self.reduction, by=component_products),
            tokens_per_batch=compute.tokens_per_batch,
            cache_gb=compute.cache_gb,
        )
        return problem.label(products["dot"], components, products["query_sq"], products["train_sq"])

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Stored products are the answer."""
        return products
