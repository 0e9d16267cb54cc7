"""LoGra: influence in two-sided projections of every weight matrix, with the inverse taken in the small space.

Source: Choe et al. 2024, section 3: with φ(z) = vec(P_oᵀ G(z) P_i) of a matrix's gradient and F the mean of φ φᵀ,
over matrices

    I(z, q) = Σ φ(q)ᵀ (F + λI)⁻¹ φ(z)

where φ(q) is of −m. P_o and P_i are EK-FAC's leading eigenvectors, or random. Where the paper averages F over training
losses, labels are drawn from the model here, as for `ekfac`, whose λ this shares too. Sign: as `ekfac`. Fills query,
train and component; additive over components. Cost: one or two passes over the training set for the projections
(`init=random`: none), one for F, and one that leaves an index of k numbers a matrix for every training example
(`tdaexp.index`), which serves any query. `curvature.projected` says when k is too small.

Scale: as `ekfac`. Limits: what lies outside the projections is lost; where d_eff(λ) = Σ σ / (σ + λ) exceeds k, the
inverse is not the one that λ asks for, and the run says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import xarray as xr
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.fit import FactorSettings, fisher_note, fit_factors
from tdaexp.curvature.layers import Layers, layers_of
from tdaexp.curvature.projected import ProjectedLayer, fit_projected, leading_sides, random_sides
from tdaexp.curvature.projected_layers import ProjectedLayers, component_sketches
from tdaexp.gradients.feature_products import feature_products
from tdaexp.gradients.features import Changed, Features, component_features
from tdaexp.gradients.passes import Gradients, fitted_gradients, query_gradients, train_gradients
from tdaexp.gradients.sketch_factorised import TwoSidedSketch
from tdaexp.index.found import found
from tdaexp.index.index import Index, Making
from tdaexp.index.meeting import Meeting
from tdaexp.index.storage import check_storage
from tdaexp.methods.base import Method
from tdaexp.objectives.measurements import sources
from tdaexp.problem import Problem
from tdaexp.runtime.code import Work
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.selection.parts import check_choices, choice_notes, chosen, damping_note, with_notes
from tdaexp.trust.sketch import Sketched

log = logging.getLogger(__name__)
INITS = ("ekfac", "kfac", "random")


@dataclass
class LoGra(Method):
    """Keys: `init` of the projections (`ekfac` = its eigenvectors of largest curvature; `kfac` = the factors' own, a
    pass less; `random` = signs), `dimensions` k of a matrix, `damping`, `relative_damping`, `part`, `components`,
    `measurement`, `reduction`, `relative`, `saves` and `fisher` as for `ekfac`, `seed` of what is drawn, `storage` of
    the index's rows: null = as they are computed, `float16`, `int8`.
    """

    init: str = "ekfac"
    dimensions: int = 256
    damping: float | None = None
    relative_damping: float = 0.1
    part: str | None = None
    components: list[str] | None = None
    measurement: str = "log_likelihood"
    reduction: str = "mean"
    saves: int = 4
    relative: bool = False
    fisher: str = "labels"
    seed: int = 0
    storage: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        if self.init not in INITS:
            raise unknown("init", self.init, INITS, "method.init")
        if self.dimensions < 1:
            raise UserError(f"method.dimensions={self.dimensions}: must be at least 1")
        check_choices(self.part, self.measurement, self.reduction)
        check_storage(self.storage)
        self.settings = FactorSettings(
            "kfac" if self.init == "kfac" else "ekfac", self.seed, 1, self.saves, self.fisher
        )
        self.damped = Damping(self.damping, self.relative_damping)

    @property
    def label(self) -> str:
        """Name, and what is not usual: projections, dimensions, damping, part of the model, measurement."""
        notes = ["" if self.init == LoGra.init else self.init]
        notes.append("" if self.dimensions == LoGra.dimensions else f"{self.dimensions} dimensions")
        notes.append(damping_note(self.damping, self.relative_damping, LoGra.relative_damping))
        notes += choice_notes(self.part, self.components, self.measurement, self.reduction)
        more = [fisher_note(self.fisher), "relative" if self.relative else "", self.storage or ""]
        return with_notes(self.name, [*notes, *more])

    @property
    def sharded(self) -> bool:
        """Yes: it sees activations and their gradients alone."""
        return True

    @property
    def indexed(self) -> bool:
        """Its rows of training examples have no query in them."""
        return True

    @property
    def linear(self) -> bool:
        """The query's projected gradient, times a matrix that no query decides."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same, of the loss."""
        return replace(self, measurement="log_likelihood", relative=False)

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Fit the projections and what the curvature is in them, project all gradients, score the pairs."""
        layers = self._layers(problem)
        log.info("%s: %s", self.name, layers.components.coverage_line())
        fitted = self.fit(problem, layers)
        fitted.tell(self.damped)
        queries, train = self._features(problem, fitted)
        names, settings = layers.components.names, [self._fitted(problem), self.damped, self._query(), self.storage]
        products = feature_products(
            self._solved(fitted, queries),
            train,
            problem.pairs,
            store=problem.store("logra-influence", names, self.reduction, *settings, by=LoGra),
            cache_gb=problem.compute.cache_gb,
            squares=False,
        )
        scores = self.relative_to_self(problem, products["dot"]) if self.relative else products["dot"]
        labelled = problem.label(scores, layers.components).assign(fitted.notes(self.damped))
        return labelled.assign_attrs(init=self.init, dimensions=self.dimensions)

    def index(self, problem: Problem) -> Index:
        """Of projected gradients of all training examples, before the inverse."""
        layers = self._layers(problem)
        return self._index(problem, layers, self._projections(problem, layers)[0])

    def found(self, problem: Problem) -> Problem:
        """By the influence, all matrices together."""
        fitted = self.fit(problem, self._layers(problem))
        index = self._index(problem, fitted.layers, fitted.sides)
        index.build()
        weights = (lambda: self.over_itself(problem)()) if self.relative else None
        return found(index, self._solved(fitted, self._queries(problem, fitted)), Meeting(weights=weights))

    @property
    def fixed_damping(self) -> str | None:
        """What it takes lies in the cache."""
        return "of relative scores it would take the self-influence at each damping" if self.relative else None

    def redamped(self, problem: Problem, rows: list[int], pairs: np.ndarray, factors: Sequence[float]) -> np.ndarray:
        """From the stored projected gradients, without any pass."""
        fitted = self.fit(problem, self._layers(problem))
        queries, train = self._features(problem, fitted)
        asked, there = queries.rows(queries.place[rows]), train.rows(train.place[np.maximum(pairs, 0).ravel()])
        there = there.reshape(*pairs.shape, -1)
        damped = [self.damped.times(factor) for factor in factors]
        solved = [fitted.preconditioned(queries.columns, one, asked) for one in damped]
        scores = np.einsum("fnk,nck->fnc", np.stack(solved).astype(np.float64), there)
        return np.where(pairs < 0, np.nan, scores)

    def sketched(self, problem: Problem) -> Sketched:
        """Side by side."""
        fitted = self.fit(problem, self._layers(problem))
        sides = self._sides(problem, fitted.layers)
        return Sketched(sides["train"], sides["queries"], problem.pairs, lambda: self._features(problem, fitted))

    def fit(self, problem: Problem, layers: Layers) -> ProjectedLayers:
        """Each matrix's projection and curvature, from the cache where they are there."""
        sides, spectra = self._projections(problem, layers)
        samples = self._samples(problem, layers)
        store = problem.training_store("projected", layers.components.names, self._fitted(problem), by=LoGra)
        fishers = fit_projected(samples, sides, self.seed, self.saves, store)
        projected = [
            ProjectedLayer(one, sides[one.name], fishers[one.name], len(samples.ids), spectra.get(one.name))
            for one in layers.layers
        ]
        return ProjectedLayers(layers, projected)

    def _samples(self, problem: Problem, layers: Layers) -> FisherSamples:
        tokens = problem.compute.tokens_per_batch
        return FisherSamples(fitted_gradients(problem, layers.map), layers, tokens, self.settings.fisher)

    def _projections(
        self, problem: Problem, layers: Layers
    ) -> tuple[dict[str, TwoSidedSketch], dict[str, Tensor | None]]:
        """Of each matrix P_o and P_i, and the spectrum of its whole curvature where that is fitted for them."""
        if self.init == "random":
            return {one.name: random_sides(one, self.dimensions, self.seed) for one in layers.layers}, {}
        how = self.settings
        store = problem.training_store("factors", layers.components.names, *how.sampling, by=fit_factors)
        factors = fit_factors(self._samples(problem, layers), how, store=store)
        sides = {one.name: leading_sides(factors, one, self.dimensions) for one in layers.layers}
        return sides, {one.name: factors[one.name].spectrum for one in layers.layers}

    def _layers(self, problem: Problem) -> Layers:
        return layers_of(chosen(problem.components(), self.part, self.components))

    def _sides(self, problem: Problem, layers: Layers) -> dict[str, Gradients]:
        """Gradients of both sides by component."""
        components = layers.components
        return {
            "queries": query_gradients(problem, components, self.reduction, self.measurement),
            "train": train_gradients(problem, components, self.reduction),
        }

    def _index(self, problem: Problem, layers: Layers, sides: Mapping[str, TwoSidedSketch]) -> Index:
        """Random sides rest on no example, so that an index with them grows with the corpus."""
        drawn: list[object] = ["logra", self.init, self.dimensions, self.seed]
        fitted = [] if self.init == "random" else self._fitted(problem)
        made_by: list[Work] = [fit_factors, leading_sides, component_sketches, fitted_gradients]
        train = self._sides(problem, layers)["train"]
        making = Making(train, component_sketches(layers, sides), [*drawn, *fitted], self.storage, made_by)
        return Index(problem, making)

    def _solved(self, fitted: ProjectedLayers, queries: Features) -> Changed:
        """Projected gradients of queries, times the damped inverse."""
        return Changed(queries, partial(fitted.preconditioned, queries.columns, self.damped))

    def _queries(self, problem: Problem, fitted: ProjectedLayers) -> Features:
        """Projected gradients of queries, by component."""
        queries = self._sides(problem, fitted.layers)["queries"]
        sketches = component_sketches(fitted.layers, fitted.sides)
        settings = [fitted.layers.components.names, self.reduction, self._fitted(problem), self._query()]
        store = problem.examples_store("logra-queries", queries.examples, *settings, by=LoGra)
        return component_features(queries, sketches, store=store, tokens_per_batch=problem.compute.tokens_per_batch)

    def _features(self, problem: Problem, fitted: ProjectedLayers) -> tuple[Features, Index]:
        """Projected gradients of queries and of all training examples, by component."""
        index = self._index(problem, fitted.layers, fitted.sides)
        index.build(told=False)
        return self._queries(problem, fitted), index

    def _query(self) -> list[object]:
        """What a query's gradient depends on beside the model."""
        return [self.measurement, *sources(self.measurement)]

    def _fitted(self, problem: Problem) -> list[object]:
        """All that projections and curvature depend on beside the model and the components."""
        return [self.init, self.dimensions, *self.settings.sampling, problem.curvature_examples.fingerprint()]
