"""TrackStar: cosines of gradients that are divided by AdamW's second moment, projected and whitened.

Source: Chang et al. 2024, section 3: with V the running mean of squared gradients, P a random two-sided projection and
R a mean of (PV^(−½)g)(PV^(−½)g)ᵀ over training and query gradients, both of a component by itself,

    φ(z) = R^(−½) P V^(−½) ∇ℓ(z),      score(z, q) = φ(q)·φ(z) / (|φ(q)| |φ(z)|)      over all components

An index (`tdaexp.index`) holds P V^(−½) ∇ℓ of every training example, which serves any query; R and the norms come in
when it is asked. R may be singular (few examples): λ is added to it. Sign: positive = a step on the training example
lowers the query's loss. Fills query, train and component. Cost: one forward-backward pass per example, whose gradients
are formed; another over the training set where V is estimated from it.

Scale: a cosine, from -1 to 1. Limits: the chance of the projection, and `mix` and λ of R, which decide much with few
examples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import xarray as xr

from tdaexp.gradients.adamw import Scale, by_component, identity_of, last_moment
from tdaexp.gradients.feature_products import feature_products
from tdaexp.gradients.features import Changed, Features, component_features
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.second_moment import inverse_root, second_moment
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.gradients.whitening import Matrices, mixed_second_moments, whitened, whiteners
from tdaexp.index.found import found
from tdaexp.index.index import Index, Making
from tdaexp.index.meeting import Meeting, euclidean
from tdaexp.index.storage import check_storage
from tdaexp.methods.base import Method
from tdaexp.models.components import ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.code import Work
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.selection.parts import check_part, chosen, part_note, with_notes
from tdaexp.trust.sketch import Sketched

log = logging.getLogger(__name__)
PRECONDITIONS = ("adamw", "gradients", "none")


@dataclass(frozen=True, eq=False)
class Projecting:
    """Gradients of queries times V^(−½), the `index` of training examples' projections, and the `settings` of both."""

    queries: Gradients
    index: Index
    settings: list[object]

    def of(self, side: Gradients) -> Features:
        """P V^(−½) ∇ℓ of queries, or of other examples than those of the index."""
        problem = self.index.problem
        depends_on = side.components.names, self.settings
        store = problem.examples_store("trackstar", side.examples, *depends_on, by=TrackStar)
        tokens = problem.compute.tokens_per_batch
        return component_features(side, self.index.making.sketches, store=store, tokens_per_batch=tokens)

    @property
    def built(self) -> Index:
        """The index, with all its blocks."""
        self.index.build(told=False)
        return self.index


@dataclass
class TrackStar(Method):
    """Keys: `precondition` V (`adamw` = v̂ of its last kept state; `gradients` = the mean of the training examples'
    squared gradients; `none` = 1; null = `adamw` where the training left its state, else `gradients`, which is said),
    `dimensions` of a component's projection, `mix` (R's share of training gradients, the rest is the queries'),
    `relative_damping` (λ over R's mean eigenvalue), `part`, `components` and `reduction` as for `full` (but `blocks`
    where nothing is said), `seed`, `storage` of the index's rows: null = as they are computed, `float16`, `int8`.
    """

    precondition: str | None = None
    dimensions: int = 256
    mix: float = 0.9
    relative_damping: float = 0.1
    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"
    seed: int = 0
    storage: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_part(self.part, self.reduction)
        check_storage(self.storage)
        if self.precondition is not None and self.precondition not in PRECONDITIONS:
            raise unknown("precondition", self.precondition, PRECONDITIONS, "method.precondition")
        if self.dimensions < 1:
            raise UserError(f"method.dimensions={self.dimensions}: must be at least 1")
        if not 0 <= self.mix <= 1:
            raise UserError(f"method.mix={self.mix}: is the share of training gradients, from 0 to 1; try 0.9")
        if not self.relative_damping >= 0:
            raise UserError(f"method.relative_damping={self.relative_damping}: must not be negative; try 0.1")

    @property
    def label(self) -> str:
        """Name, and what is not usual."""
        usual = TrackStar()
        notes = [f"V of {self.precondition}" if self.precondition else ""]
        notes.append("" if self.dimensions == usual.dimensions else f"{self.dimensions} dimensions")
        notes.append("" if self.mix == usual.mix else f"mix {self.mix:g}")
        notes.append("" if self.relative_damping == usual.relative_damping else f"λ {self.relative_damping:g} × mean")
        return with_notes(self.name, [*notes, part_note(self.part, self.components), self.storage or ""])

    @property
    def wants_checkpoints(self) -> bool:
        """Where AdamW's state may be read."""
        return self.precondition in (None, "adamw")

    @property
    def wants_state(self) -> bool:
        """As above."""
        return self.wants_checkpoints

    @property
    def indexed(self) -> bool:
        """Its rows of training examples have no query in them."""
        return True

    @property
    def exact_only(self) -> str | None:
        """Where the queries have a part in R."""
        if self.mix == 1:
            return None
        return (
            f"rows are whitened by R, in which the questions have a part (method.mix={self.mix:g}; 1: they have none)"
        )

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Project all gradients, find R, and take cosines of the pairs."""
        components = chosen(problem.components(), self.part, self.components)
        log.info("%s: %s", self.name, components.coverage_line())
        work = self._work(problem, told=problem.wanted is None)  # where pairs were found it was said before
        train, queries = work.built, work.of(work.queries)
        change = partial(whitened, queries.columns, self._whiteners(work, queries))
        products = feature_products(
            Changed(queries, change),
            Changed(train, change),
            problem.pairs,
            store=problem.store(
                "trackstar-products",
                *(components.names, work.settings, problem.curvature_examples.fingerprint()),
                *(self.mix, self.relative_damping, self.storage),
                by=TrackStar,
            ),
            cache_gb=problem.compute.cache_gb,
        )
        labelled = problem.label(products["dot"], components, products["query_sq"], products["train_sq"])
        return labelled.assign_attrs(precondition=str(work.settings[0]), dimensions=self.dimensions)

    def index(self, problem: Problem) -> Index:
        """Of projections of all training examples, before R and without norms."""
        return self._work(problem).index

    def found(self, problem: Problem) -> Problem:
        """By the cosine, all components together."""
        work = self._work(problem)
        work.index.build()
        queries = work.of(work.queries)
        matrices = self._whiteners(work, queries)
        return found(
            work.index, queries, Meeting(euclidean, partial(whitened, queries.columns, matrices), settings=[matrices])
        )

    def sketched(self, problem: Problem) -> Sketched:
        """Side by side, before R."""
        work = self._work(problem, told=False)
        train = work.index.making.gradients
        return Sketched(train, work.queries, problem.pairs, lambda: (work.of(work.queries), work.built))

    def _work(self, problem: Problem, *, told: bool = True) -> Projecting:
        """The gradients of both sides, and what makes projections of them; `told`: say what V is."""
        components = chosen(problem.components(), self.part, self.components)
        scale, settings = self._scale(problem, components, log.info if told else log.debug)
        sketches = {
            one.name: make_sketch("factorised", one.name, one.matrix, self.dimensions, self.seed)
            for one in components.components
        }
        queries = replace(query_gradients(problem, components, self.reduction), transform=scale)
        train = replace(train_gradients(problem, components, self.reduction), transform=scale)
        made_by: list[Work] = [make_sketch, second_moment, last_moment]
        making = Making(train, sketches, ["trackstar", *settings], self.storage, made_by)
        return Projecting(queries, Index(problem, making), settings)

    def _whiteners(self, work: Projecting, queries: Features) -> Matrices:
        """R^(−½) by component, R mixed from the examples that curvature is averaged over and the queries."""
        problem, train = work.index.problem, work.index.making.gradients
        beside = problem.curvature_examples is not problem.train
        fitted = work.of(replace(train, examples=problem.curvature_examples)) if beside else work.built
        moments = mixed_second_moments(fitted, queries, self.mix, problem.compute.cache_gb)
        return whiteners(moments, self.relative_damping)

    def _scale(
        self, problem: Problem, components: ComponentMap, say: Callable[..., None]
    ) -> tuple[Scale | None, list[object]]:
        """V^(−½), and what projections depend on beside model and components; the first says what V is."""
        settings: list[object] = [self.reduction, self.dimensions, self.seed]
        if self.precondition == "none":
            return None, ["none", *settings]
        if self.precondition != "gradients":
            try:
                moment = last_moment(problem)
                state = moment.state()
                squares = by_component(problem.model, components, state.second)
            except UserError as reason:
                if self.precondition == "adamw":
                    raise
                say("V is estimated from the training examples' gradients: %s", reason)
            else:
                say("V is AdamW's v̂ at step %d", moment.step)
                factors = {name: 1 / state.divisor(one) for name, one in squares.items()}
                return Scale(factors), ["adamw", *identity_of(moment, state), *settings]
        fitted = replace(train_gradients(problem, components, self.reduction), examples=problem.curvature_examples)
        store = problem.training_store("squares", components.names, self.reduction, by=second_moment)
        mean = second_moment(fitted, store=store, tokens_per_batch=problem.compute.tokens_per_batch)
        places = zip(components.names, VectorSpace(problem.model, components).slices, strict=True)
        factors = {name: inverse_root(mean[place]) for name, place in places}
        return Scale(factors), ["gradients", problem.curvature_examples.fingerprint(), *settings]
