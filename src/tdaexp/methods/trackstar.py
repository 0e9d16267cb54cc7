"""TrackStar: cosines of gradients that are divided by AdamW's second moment, projected and whitened.

Source: Chang et al. 2024, section 3: with V the running mean of squared gradients, P a random two-sided projection and
R a mean of (PV^(−½)g)(PV^(−½)g)ᵀ over training and query gradients, both of a component by itself,

    φ(z) = R^(−½) P V^(−½) ∇ℓ(z),      score(z, q) = φ(q)·φ(z) / (|φ(q)| |φ(z)|)      over all components

An index on disk holds P V^(−½) ∇ℓ of every training example, which serves any query; R and the norms come in when it is
asked. R may be singular (few examples): λ is added to it. Sign: positive = a step on the training example lowers the
query's loss. Fills query, train and component. Cost: one forward-backward pass per example, whose gradients are formed;
another over the training set where V is estimated from it.

Scale: a cosine, from -1 to 1. Limits: the chance of the projection, and `mix` and λ of R, which decide much with few
examples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import xarray as xr
from torch import Tensor

from tdaexp.gradients.adamw import Scale, by_component, identity_of, last_moment
from tdaexp.gradients.feature_products import feature_products
from tdaexp.gradients.features import Features, changed, component_features
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.second_moment import second_moment
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.gradients.whitening import mixed_second_moments, whitened, whiteners
from tdaexp.methods.base import Method
from tdaexp.models.components import ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.selection.parts import check_part, chosen, part_note, with_notes
from tdaexp.trust.sketch import Sketched

log = logging.getLogger(__name__)
PRECONDITIONS = ("adamw", "gradients", "none")
ROUNDING = 1e-4
"""Of a component's root mean squared gradient: what an entry's may be by rounding alone."""


@dataclass
class TrackStar(Method):
    """Keys: `precondition` V (`adamw` = v̂ of its last kept state; `gradients` = the mean of the training examples'
    squared gradients; `none` = 1; null = `adamw` where the training left its state, else `gradients`, which is said),
    `dimensions` of a component's projection, `mix` (R's share of training gradients, the rest is the queries'),
    `relative_damping` (λ over R's mean eigenvalue), `part`, `components` and `reduction` as for `full` (but `blocks`
    where nothing is said), `seed`.
    """

    precondition: str | None = None
    dimensions: int = 256
    mix: float = 0.9
    relative_damping: float = 0.1
    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_part(self.part, self.reduction)
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
        return with_notes(self.name, [*notes, part_note(self.part, self.components)])

    @property
    def wants_checkpoints(self) -> bool:
        """Where AdamW's state may be read."""
        return self.precondition in (None, "adamw")

    @property
    def wants_state(self) -> bool:
        """As above."""
        return self.wants_checkpoints

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Project all gradients, find R, and take cosines of the pairs."""
        components, cache_gb = chosen(problem.components(), self.part, self.components), problem.compute.cache_gb
        log.info("%s: %s", self.name, components.coverage_line())
        how, settings = self._scale(problem, components)
        _, features = self._features(problem, components, how, settings)
        queries, train, fitted = features()
        moments = mixed_second_moments(fitted, queries, self.mix, cache_gb)
        change = partial(whitened, queries.columns, whiteners(moments, self.relative_damping))
        found = feature_products(
            changed(queries, change),
            changed(train, change),
            problem.pairs,
            store=problem.store(
                "trackstar-products",
                *(components.names, settings, problem.curvature_examples.fingerprint()),
                *(self.mix, self.relative_damping),
                by=TrackStar,
            ),
            cache_gb=cache_gb,
        )
        labelled = problem.label(found["dot"], components, found["query_sq"], found["train_sq"])
        return labelled.assign_attrs(precondition=str(settings[0]), dimensions=self.dimensions)

    def sketched(self, problem: Problem) -> Sketched:
        """Side by side, before R."""
        components = chosen(problem.components(), self.part, self.components)
        (queries, train), features = self._features(problem, components, *self._scale(problem, components))
        return Sketched(train, queries, problem.pairs, lambda: features()[:2])

    def _features(
        self, problem: Problem, components: ComponentMap, scale: Scale | None, settings: list[object]
    ) -> tuple[tuple[Gradients, Gradients], Callable[[], tuple[Features, Features, Features]]]:
        """P V^(−½) ∇ℓ of queries, of all training examples, and of those that R is averaged over: the gradients of the
        first two, and what makes the projections.
        """
        queries = replace(query_gradients(problem, components, self.reduction), transform=scale)
        train = replace(train_gradients(problem, components, self.reduction), transform=scale)
        fitted = replace(train, examples=problem.curvature_examples)
        sketches = {
            one.name: make_sketch("factorised", one.name, one.matrix, self.dimensions, self.seed)
            for one in components.components
        }

        def projected(side: Gradients) -> Features:
            place = problem.store if side is queries else problem.training_store
            store = place("trackstar", components.names, settings, side.examples.fingerprint(), by=TrackStar)
            return component_features(side, sketches, store=store, tokens_per_batch=problem.compute.tokens_per_batch)

        return (queries, train), lambda: (projected(queries), projected(train), projected(fitted))

    def _scale(self, problem: Problem, components: ComponentMap) -> tuple[Scale | None, list[object]]:
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
                log.info("V is estimated from the training examples' gradients: %s", reason)
            else:
                log.info("V is AdamW's v̂ at step %d", moment.step)
                factors = {name: 1 / state.divisor(one) for name, one in squares.items()}
                return Scale(factors), ["adamw", *identity_of(moment, state), *settings]
        fitted = replace(train_gradients(problem, components, self.reduction), examples=problem.curvature_examples)
        store = problem.training_store("squares", components.names, self.reduction, by=second_moment)
        mean = second_moment(fitted, store=store, tokens_per_batch=problem.compute.tokens_per_batch)
        places = zip(components.names, VectorSpace(problem.model, components).slices, strict=True)
        factors = {name: _inverse_root(mean[place]) for name, place in places}
        return Scale(factors), ["gradients", problem.curvature_examples.fingerprint(), *settings]


def _inverse_root(squares: Tensor) -> Tensor:
    """1 / (√V + ε) of one component's mean squared gradients, ε a share of their root mean.

    A gradient that is zero but for rounding stays so. An entry in which no training example has one adds to no product,
    and must not fill the norms: 0.
    """
    roots = squares.sqrt() + ROUNDING * squares.mean().sqrt()
    return torch.where(squares > 0, 1 / roots, torch.zeros_like(roots))
