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
from tdaexp.problem import Problem
from tdaexp.selection.parts import check_part, chosen, part_note, restricted, with_notes


@dataclass
class Full(Method):
    """Keys: `part` of the model that the gradient is restricted to (`all`, `adapter`, `blocks` = attention and MLP,
    `attention`, `mlp`; null = the adapter where there is one, else `all`), `components` (names, in place of `part`),
    `reduction` of the loss over an example's tokens (`mean`, as in the paper, or `sum`).
    """

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
    def sharded(self) -> bool:
        """Yes: it sees activations and their gradients alone."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The dot product: squared norms of gradients."""
        return self

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Component dot products and self-products of all candidate pairs."""
        components, compute = chosen(problem.components(), self.part, self.components, "all"), problem.compute
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
        """Stored products are the answer, those of the chosen components."""
        return restricted(products, self.part, self.components, "all")
