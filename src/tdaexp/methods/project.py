"""Random projection: each component's gradient is sketched to a few dimensions, and cosines are taken there.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.4; Park et al. 2023 for `trak`. Sign: as `full`,
which it estimates without bias. Fills query, train and component. Cost: one forward-backward pass per example plus the
sketch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

from tdaexp.gradients.adamw import check_precondition, in_metric, metric_identity
from tdaexp.gradients.feature_products import feature_products
from tdaexp.gradients.features import Features, component_features
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.projection import RULES, check_kind, dimensions, drawn_by, make_sketch
from tdaexp.gradients.sketch import Sketch
from tdaexp.methods.base import DEFAULT_BUDGET, Method
from tdaexp.models.components import ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.errors import unknown
from tdaexp.selection.parts import check_part, chosen, metric_note, part_note, with_notes
from tdaexp.trust.sketch import Sketched


@dataclass
class Project(Method):
    """Keys: `projection` (`factorised` never forms a gradient, `srht` and `sjlt` are fast on formed ones, `trak` is the
    paper's), `budget` (dimensions as a fraction of the parameters, null = 0.05), `rule` for sharing dimensions out
    (`proportional`, or `paper`: multiples of 512, at least 512), `distribution` of the entries (`rademacher`,
    `normal`), `part`, `components`, `reduction` and `precondition` as for `full`, `seed`.
    """

    projection: str = "factorised"
    budget: float | None = None
    rule: str = "proportional"
    distribution: str = "rademacher"
    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"
    precondition: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices, and those that do not go together."""
        check_kind(self.projection, self.distribution)
        check_part(self.part, self.reduction)
        check_precondition(self.precondition)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES, "method.rule")

    @property
    def label(self) -> str:
        """Name, kind and budget, the part of the model if it is not the whole, and the metric."""
        notes = [part_note(self.part, self.components, "all"), metric_note(self.precondition)]
        return with_notes(self.name, [self.projection, f"{100 * self.limit:g} %", *notes])

    @property
    def limit(self) -> float:
        """The budget, or its default."""
        return DEFAULT_BUDGET if self.budget is None else self.budget

    @property
    def sharded(self) -> bool:
        """Yes, where it sees activations and their gradients alone."""
        return self.precondition == "none"

    @property
    def wants_checkpoints(self) -> bool:
        """With AdamW's metric."""
        return self.precondition == "adamw"

    @property
    def wants_state(self) -> bool:
        """With AdamW's metric."""
        return self.precondition == "adamw"

    @property
    def of_itself(self) -> Method | None:
        """The same without norms: squared norms of projected gradients."""
        return self

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Products of the sketches of all candidate pairs, by component."""
        sides, used = self._sides(problem)
        components = sides["queries"].components
        sketches = self.sketches(components)
        queries = self._features(problem, sides["queries"], sketches, "queries")
        train = self._features(problem, sides["candidates"], sketches, "candidates")
        pairs = _among(problem.pairs, used)
        store = self._store(problem, sketches, "products")
        found = feature_products(queries, train, pairs, store=store, cache_gb=problem.compute.cache_gb)
        dims = sum(sketch.dim for sketch in sketches.values())
        labelled = problem.label(found["dot"], components, found["query_sq"], found["train_sq"])
        return labelled.assign_attrs(projection=self.projection, dimensions=dims, share=dims / components.sizes.sum())

    def sketched(self, problem: Problem) -> Sketched:
        """Side by side, of the candidates."""
        sides, used = self._sides(problem)

        def features() -> tuple[Features, Features]:
            sketches = self.sketches(sides["queries"].components)
            found = [self._features(problem, sides[role], sketches, role) for role in ("queries", "candidates")]
            return found[0], found[1]

        return Sketched(sides["candidates"], sides["queries"], _among(problem.pairs, used), features)

    def _sides(self, problem: Problem) -> tuple[dict[str, Gradients], np.ndarray]:
        """Gradients of queries and of candidates, and the numbers of the latter: no other is sketched."""
        components = chosen(problem.components(), self.part, self.components, "all")
        used = np.unique(problem.pairs[problem.pairs >= 0])
        candidates = replace(problem, train=problem.train.select(used))
        sides = {
            "queries": query_gradients(problem, components, self.reduction),
            "candidates": train_gradients(candidates, components, self.reduction),
        }
        return {role: in_metric(problem, side, self.precondition) for role, side in sides.items()}, used

    def sketches(self, components: ComponentMap) -> dict[str, Sketch]:
        """One seeded sketch per component, dimensions in proportion to its parameters."""
        sizes = {component.name: component.size for component in components.components}
        dims = dimensions(sizes, self.limit, self.rule)
        return {
            c.name: make_sketch(self.projection, c.name, c.matrix, dims[c.name], self.seed, self.distribution)
            for c in components.components
        }

    def _features(self, problem: Problem, gradients: Gradients, sketches: dict[str, Sketch], role: str) -> Features:
        """Sketched gradients on disk; `role` tells the two stores apart."""
        store = self._store(problem, sketches, role)
        return component_features(gradients, sketches, store=store, tokens_per_batch=problem.compute.tokens_per_batch)

    def _store(self, problem: Problem, sketches: dict[str, Sketch], role: str) -> Path:
        settings: list[object] = [
            drawn_by(self.projection, problem.compute.device),
            self.distribution,
            self.seed,
            self.reduction,
        ]
        settings += metric_identity(problem, self.precondition)
        dims = {name: sketch.dim for name, sketch in sketches.items()}
        return problem.store("sketches", role, dims, settings, by=Project)


def _among(pairs: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The pairs with the places of their candidates among those `used`; -1 stays."""
    return np.where(pairs < 0, -1, np.searchsorted(used, pairs))
