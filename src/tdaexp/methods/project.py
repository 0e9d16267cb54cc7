"""Random projection: each component's gradient is sketched to a few dimensions, and cosines are taken there.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.4; Park et al. 2023 for `trak`. With P a random
matrix for each component, E[PᵀP] = I,

    s(z, q) = Pg(q)·Pg(z) / (|Pg(q)| |Pg(z)|)

Sign: as `full`, which it estimates without bias. Fills query, train and component. Cost: one forward-backward pass per
example plus the sketch.

Scale: a cosine, from -1 to 1. Limits: those of `full`, and chance: cosines below about 1/√k, with k dimensions in all,
cannot be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from tdaexp.gradients.adamw import check_precondition, in_metric, metric_identity
from tdaexp.gradients.feature_products import feature_products
from tdaexp.gradients.features import Features, Sketches, component_features
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.projection import RULES, check_kind, dimensions, drawn_by, make_sketch
from tdaexp.gradients.sketch import Sketch
from tdaexp.index.found import found
from tdaexp.index.index import Index, Making
from tdaexp.index.meeting import Meeting, euclidean
from tdaexp.index.storage import check_storage
from tdaexp.methods.base import DEFAULT_BUDGET, InMetric, Method
from tdaexp.models.components import ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.code import Work
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.selection.parts import check_part, chosen, metric_note, part_note, with_notes
from tdaexp.trust.sketch import Sketched


@dataclass
class Project(InMetric):
    """Keys: `projection` (`factorised` never forms a gradient, `srht` and `sjlt` are fast on formed ones, `trak` is the
    paper's), `budget` (dimensions as a fraction of the parameters, null = 0.05) or `side` (that many squared for each
    component; factorised: so many for each side of its matrix), `rule` for sharing a budget out (`proportional`, or
    `paper`: multiples of 512, at least 512), `distribution` of the entries (`rademacher`, `normal`), `part`,
    `components`, `reduction` and `precondition` as for `full`, `seed`; `storage` of the rows of an index
    (candidates=best): null = as they are computed, `float16`, `int8`.
    """

    projection: str = "factorised"
    budget: float | None = None
    side: int | None = None
    rule: str = "proportional"
    distribution: str = "rademacher"
    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"
    precondition: str = "none"
    seed: int = 0
    storage: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown choices, and those that do not go together."""
        check_storage(self.storage)
        check_kind(self.projection, self.distribution)
        check_part(self.part, self.reduction)
        check_precondition(self.precondition)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES, "method.rule")
        if self.side is not None:
            self._check_side(self.side)

    def _check_side(self, side: int) -> None:
        """Refuse a side that is none, and one beside another way to say how many dimensions there are."""
        if side < 1:
            raise UserError(f"method.side={side}: must be at least 1, e.g. 16")
        for key, usual in (("budget", None), ("rule", "proportional")):
            if getattr(self, key) != usual:
                raise UserError(
                    f"method.side={side}: says how many dimensions each component gets, and so does "
                    f"{'' if key == 'budget' else 'method.'}{key}={getattr(self, key)}; leave one out"
                )

    @property
    def label(self) -> str:
        """Name, kind and budget, the part of the model if it is not the whole, the metric, and how rows are kept."""
        notes = [part_note(self.part, self.components, "all"), metric_note(self.precondition), self.storage or ""]
        size = f"{100 * self.limit:g} %" if self.side is None else f"{self.side} x {self.side} each"
        return with_notes(self.name, [self.projection, size, *notes])

    @property
    def limit(self) -> float:
        """The budget, or its default."""
        return DEFAULT_BUDGET if self.budget is None else self.budget

    @property
    def indexed(self) -> bool:
        """Its sketches of training examples have no query in them."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same without norms: squared norms of projected gradients."""
        return replace(self, storage=None)

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Products of the sketches of all candidate pairs, by component; those of an index where pairs were found."""
        if problem.wanted is None and self.storage is not None:
            raise UserError(
                f"method.storage={self.storage}: is how the rows of an index are kept, and candidates that are named "
                "need none; add candidates=best, or leave it out"
            )
        queries, train, pairs = self._met(problem)
        components = chosen(problem.components(), self.part, self.components, "all")
        sketches = self.sketches(components)
        store = problem.store("sketches", "products", *self._settings(problem, sketches), self.storage, by=Project)
        products = feature_products(queries, train, pairs, store=store, cache_gb=problem.compute.cache_gb)
        dims = sum(sketch.dim for sketch in sketches.values())
        labelled = problem.label(products["dot"], components, products["query_sq"], products["train_sq"])
        return labelled.assign_attrs(projection=self.projection, dimensions=dims, share=dims / components.sizes.sum())

    def index(self, problem: Problem) -> Index:
        """Of sketches of all training examples."""
        components = chosen(problem.components(), self.part, self.components, "all")
        train = in_metric(problem, train_gradients(problem, components, self.reduction), self.precondition)
        made_by: list[Work] = [make_sketch, in_metric]
        return Index(problem, Making(train, self.sketches(components), self._drawn(problem), self.storage, made_by))

    def found(self, problem: Problem) -> Problem:
        """By the cosine of whole sketches, all components one after the other."""
        index = self.index(problem)
        index.build()
        return found(index, self._features(problem, self._sides(problem)[0]["queries"]), Meeting(euclidean))

    def sketched(self, problem: Problem) -> Sketched:
        """Side by side, of the candidates."""
        sides, used = self._sides(problem)
        pairs = problem.pairs if problem.wanted is not None else _among(problem.pairs, used)
        return Sketched(sides["candidates"], sides["queries"], pairs, lambda: self._met(problem)[:2])

    def _met(self, problem: Problem) -> tuple[Sketches, Sketches, np.ndarray]:
        """Sketches of queries and of training examples, and the pairs as numbers of these."""
        sides, used = self._sides(problem)
        queries = self._features(problem, sides["queries"])
        if problem.wanted is not None:
            return queries, self.index(problem), problem.pairs
        return queries, self._features(problem, sides["candidates"]), _among(problem.pairs, used)

    def _sides(self, problem: Problem) -> tuple[dict[str, Gradients], np.ndarray]:
        """Gradients of queries and of candidates, and the numbers of the latter: no other is sketched.

        Where pairs were found, all training examples were looked at.
        """
        components = chosen(problem.components(), self.part, self.components, "all")
        used = np.unique(problem.pairs[problem.pairs >= 0])
        among = problem if problem.wanted is not None else replace(problem, train=problem.train.select(used))
        sides = {
            "queries": query_gradients(problem, components, self.reduction),
            "candidates": train_gradients(among, components, self.reduction),
        }
        return {role: in_metric(problem, side, self.precondition) for role, side in sides.items()}, used

    def sketches(self, components: ComponentMap) -> dict[str, Sketch]:
        """One seeded sketch per component, dimensions in proportion to its parameters or as many for each."""
        sizes = {component.name: component.size for component in components.components}
        side = self.side
        dims = (
            dimensions(sizes, self.limit, self.rule)
            if side is None
            else {name: min(side**2, size) for name, size in sizes.items()}
        )
        return {
            c.name: make_sketch(self.projection, c.name, c.matrix, dims[c.name], self.seed, self.distribution)
            for c in components.components
        }

    def _features(self, problem: Problem, gradients: Gradients) -> Features:
        """Sketched gradients on disk, for whatever pairs they are asked about."""
        sketches = self.sketches(gradients.components)
        settings = self._settings(problem, sketches)
        store = problem.examples_store("sketches", gradients.examples, *settings, by=Project)
        return component_features(gradients, sketches, store=store, tokens_per_batch=problem.compute.tokens_per_batch)

    def _settings(self, problem: Problem, sketches: dict[str, Sketch]) -> list[Any]:
        """What decides sketches beside the model and the examples."""
        return [{name: sketch.dim for name, sketch in sketches.items()}, [*self._drawn(problem), self.reduction]]

    def _drawn(self, problem: Problem) -> list[Any]:
        drawn = [drawn_by(self.projection, problem.compute.device), self.distribution, self.seed]
        return [*drawn, *metric_identity(problem, self.precondition)]


def _among(pairs: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The pairs with the places of their candidates among those `used`; -1 stays."""
    return np.where(pairs < 0, -1, np.searchsorted(used, pairs))
