"""Random projection: each component's gradient is sketched to a few dimensions, and cosines are taken there.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.4; Park et al. 2023 for `trak`. Sign: as `full`,
which it estimates without bias. Fills query, train and component. Cost: one forward-backward pass per example plus the
sketch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp.data.examples import Examples
from tdaexp.gradients.capture import check_reduction
from tdaexp.gradients.features import component_features
from tdaexp.gradients.projection import RULES, check_kind, dimensions, make_sketch
from tdaexp.gradients.sketch import Sketch
from tdaexp.methods.base import DEFAULT_BUDGET, Method
from tdaexp.methods.stage_costs import features_cost
from tdaexp.methods.study import Study
from tdaexp.methods.workload import Workload
from tdaexp.models.components import ComponentMap
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.errors import unknown


@dataclass
class Project(Method):
    """Keys: `projection` (`factorised` never forms a gradient, `srht` and `sjlt` are fast on formed ones, `trak` is the
    paper's), `budget` (dimensions as a fraction of the parameters, null = 0.05), `rule` for sharing dimensions out
    (`proportional`, or `paper`: multiples of 512, at least 512), `distribution` of the entries (`rademacher`,
    `normal`), `components` and `reduction` as for `full`, `seed`.
    """

    projection: str = "factorised"
    budget: float | None = None
    rule: str = "proportional"
    distribution: str = "rademacher"
    components: list[str] | None = None
    reduction: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices, and those that do not go together."""
        check_kind(self.projection, self.distribution)
        check_reduction(self.reduction)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES, "method.rule")

    @property
    def label(self) -> str:
        """Name, kind and budget."""
        return f"project ({self.projection}, {100 * self.limit:g} %)"

    @property
    def limit(self) -> float:
        """The budget, or its default."""
        return DEFAULT_BUDGET if self.budget is None else self.budget

    @property
    def sharded(self) -> bool:
        """Yes: it sees activations and their gradients alone."""
        return True

    def attribute(self, study: Study) -> xr.Dataset:
        """Products of the sketches of all candidate pairs, by component."""
        components = study.components(self.components)
        sketches = self.sketches(components)
        queries = self._features(study, components, sketches, study.queries, "queries")
        train = self._features(study, components, sketches, study.train, "train")
        pairs, names = study.pairs, components.names
        dot = np.stack([_pair_dots(queries[name], train[name], pairs) for name in names], axis=-1)
        query_sq = np.stack([(queries[name] ** 2).sum(1) for name in names], axis=-1)
        squares = np.stack([(train[name] ** 2).sum(1) for name in names], axis=-1)
        train_sq = np.where((pairs < 0)[..., None], np.nan, squares[pairs])
        dims = sum(sketch.dim for sketch in sketches.values())
        labelled = study.label(dot, components, query_sq, train_sq)
        return labelled.assign_attrs(projection=self.projection, dimensions=dims, share=dims / components.sizes.sum())

    def plan(self, work: Workload) -> list[StageCost]:  # type: ignore[override]
        """Sketches of all examples, and the answer with its self-products."""
        components = work.components(self.components)
        dims = dimensions({one.name: one.size for one in components.components}, self.limit, self.rule)
        sketched = features_cost(work, components, dims, self.projection)
        return [sketched, work.answer(len(components), self_products=True)]

    def sketches(self, components: ComponentMap) -> dict[str, Sketch]:
        """One seeded sketch per component, dimensions in proportion to its parameters."""
        sizes = {component.name: component.size for component in components.components}
        dims = dimensions(sizes, self.limit, self.rule)
        return {
            c.name: make_sketch(self.projection, c.name, c.matrix, dims[c.name], self.seed, self.distribution)
            for c in components.components
        }

    def _features(
        self,
        study: Study,
        components: ComponentMap,
        sketches: dict[str, Sketch],
        examples: Examples,
        role: str,
    ) -> dict[str, np.ndarray]:
        """Sketched gradients [N, k] by component; `role` tells the two stores apart."""
        settings = [self.projection, self.distribution, self.seed, self.reduction]
        dims = {name: sketch.dim for name, sketch in sketches.items()}
        return component_features(
            study.loaded.model,
            components,
            examples,
            sketches,
            store=study.store("sketches", role, dims, settings),
            reduction=self.reduction,
            tokens_per_batch=study.compute.tokens_per_batch,
        )


def _pair_dots(queries: np.ndarray, train: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Dot products [Q, C] of the rows `queries` [Q, k] and `train` [N, k] that `pairs` [Q, C] names."""
    return np.stack([np.einsum("qk,qk->q", queries, train[column]) for column in pairs.T], axis=1)
