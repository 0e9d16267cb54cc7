"""Full-gradient similarity: the cosine of two examples' whole loss gradients.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.2 and A.2; the reference that surrogates are
compared with. Sign: positive cosine = a step on the training example lowers the query's loss. Fills query, train and
component. Cost: one forward-backward pass per example, and the component dot products of the candidate pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from tdaexp.gradients.capture import check_reduction
from tdaexp.gradients.module_products import module_products
from tdaexp.gradients.products import component_products
from tdaexp.methods.base import Method
from tdaexp.methods.classifier_study import ClassifierStudy
from tdaexp.methods.module_costs import module_products_cost
from tdaexp.methods.stage_costs import products_cost
from tdaexp.methods.study import Study
from tdaexp.methods.task_workload import TaskWorkload
from tdaexp.methods.workload import Workload
from tdaexp.runtime.costs import StageCost


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

    @property
    def classifiers(self) -> bool:
        """Yes, whatever its layers are."""
        return True

    def attribute(self, study: Study | ClassifierStudy) -> xr.Dataset:
        """Component dot products and self-products of all candidate pairs."""
        components = study.components(self.components)
        if isinstance(study, ClassifierStudy):
            products = module_products(
                study.module,
                study.members(components),
                study.train,
                study.queries,
                study.pairs,
                store=study.store("products", components.names, by=module_products),
                positions=study.positions,
                tokens_per_batch=study.compute.tokens_per_batch,
                cache_gb=study.compute.cache_gb,
            )
            return study.label(products["dot"], components, products["query_sq"], products["train_sq"])
        products = component_products(
            study.loaded.model,
            components,
            study.train,
            study.queries,
            study.pairs,
            store=study.store("products", components.names, self.reduction, by=component_products),
            reduction=self.reduction,
            tokens_per_batch=study.compute.tokens_per_batch,
            cache_gb=study.compute.cache_gb,
        )
        return study.label(products["dot"], components, products["query_sq"], products["train_sq"])

    def plan(self, work: Workload | TaskWorkload) -> list[StageCost]:
        """Products, and the answer with its self-products."""
        if isinstance(work, TaskWorkload):
            parts = work.parts(self.components)
            return [module_products_cost(work, parts), work.answer(len(parts), self_products=True)]
        components = work.components(self.components)
        return [products_cost(work, components), work.answer(len(components), self_products=True)]

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Stored products are the answer."""
        return products
