"""Full-gradient similarity: the cosine of two examples' whole loss gradients.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.2 and A.2; the reference that surrogates are
compared with. With g the gradient of an example's loss over all components,

    s(z, q) = g(q)·g(z) / (|g(q)| |g(z)|)

Sign: positive cosine = a step on the training example lowers the query's loss. Fills query, train and
component. Cost: one forward-backward pass per example, and the component dot products of the candidate pairs.

Scale: a cosine, from -1 to 1. Limits: first order, at the final weights alone. Norms are divided out, so that an
example that the model has learned, whose gradient is noise, counts as much as one that moved it.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from tdaexp.gradients.adamw import check_precondition, in_metric, metric_identity
from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.gradients.products import component_products
from tdaexp.methods.base import InMetric, Method
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import check_part, chosen, metric_note, part_note, restricted, with_notes


@dataclass
class Full(InMetric):
    """Keys: `part` of the model that the gradient is restricted to (`all`, `adapter`, `blocks` = attention and MLP,
    `attention`, `mlp`; null = the adapter where there is one, else `all`), `components` (names, in place of `part`),
    `reduction` of the loss over an example's tokens (`mean`, as in the paper, or `sum`), `precondition` (`adamw` =
    products in the metric 1 / (√v̂ + ε) of AdamW's last kept state, or `none`).
    """

    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"
    precondition: str = "none"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        check_part(self.part, self.reduction)
        check_precondition(self.precondition)

    @property
    def label(self) -> str:
        """Name, the part of the model if it is not the whole, and the metric if it is not the plain one."""
        return with_notes(self.name, [part_note(self.part, self.components, "all"), metric_note(self.precondition)])

    @property
    def of_itself(self) -> Method | None:
        """The dot product: squared norms of gradients."""
        return self

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Component dot products and self-products of all candidate pairs."""
        components, compute = chosen(problem.components(), self.part, self.components, "all"), problem.compute
        settings = [self.reduction, *metric_identity(problem, self.precondition)]
        products = component_products(
            in_metric(problem, train_gradients(problem, components, self.reduction), self.precondition),
            in_metric(problem, query_gradients(problem, components, self.reduction), self.precondition),
            problem.pairs,
            store=problem.store("products", components.names, *settings, by=component_products),
            tokens_per_batch=compute.tokens_per_batch,
            cache_gb=compute.cache_gb,
        )
        return problem.label(products["dot"], components, products["query_sq"], products["train_sq"])

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Stored products are the answer, those of the chosen components. Errors (UserError): another metric."""
        if self.precondition != "none":
            raise UserError(
                f"method.precondition={self.precondition}: stored products are in the plain metric; it takes a model "
                "(without products=), or method.precondition=none"
            )
        return restricted(products, self.part, self.components, "all")
