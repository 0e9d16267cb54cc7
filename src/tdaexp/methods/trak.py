"""TRAK: influence in a linear model of the trained network, in randomly projected gradients.

Source: Park et al. 2023, section 3, equation 13 without its soft threshold (as in traker): with φ_c = P ∇f the
projected gradients at checkpoint c, and Φ_c those of all examples that the model was trained on as rows,

    τ(z, q) = [1/C Σ_c φ_c(q)ᵀ (Φ_cᵀ Φ_c + ridge)⁻¹ φ_c(z)] · [1/C Σ_c Q_c(z)]

f is the mean over an example's predicted tokens of log(p / (1 - p)), the output function of the paper for
classification taken token by token, and Q the mean of 1 - p over them; where the objective gives no probabilities (a
loss of somebody's own), f is minus the loss and Q is 1. P is a matrix of its own for each component, and their products
add up: φ is a projection of the whole gradient, and the part of φ(z) that comes from a component gives the component
axis. `checkpoints=all` averages over those of one training, the paper's cheap ensemble. Sign: positive = helps. Fills
query, train and component; additive over components. Cost: a forward-backward pass and k numbers of every gradient
entry per example and checkpoint.

Scale: no unit: log-odds times (1 - p); compare within a query. Limits: the chance of the projection, and with few
training examples for its `dimensions` the inverse rests on `ridge`; one checkpoint is the noisiest of the paper's
settings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import xarray as xr

from tdaexp.curvature.layers import layers_of
from tdaexp.gradients.feature_kernel import kernel, parts, whole
from tdaexp.gradients.features import Features, component_features
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.projection import KINDS, drawn_by, make_sketch
from tdaexp.methods.base import Method
from tdaexp.methods.tracin import history_of
from tdaexp.models.components import ComponentMap
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.measurements import as_loss, logit_margin
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.oom_split import Shrinking, two
from tdaexp.runtime.rehearsal import padded, repeated, sampled
from tdaexp.selection.parts import check_part, chosen, part_note, with_notes
from tdaexp.trust.sketch import Sketched

log = logging.getLogger(__name__)
ENSEMBLES = ("last", "all")


@dataclass
class TRAK(Method):
    """Keys: `dimensions` k of the projection, `ridge` (a fraction of the mean eigenvalue of ΦᵀΦ), `checkpoints` (`last`
    = the model alone, `all` that its training kept, or `moments` steps of a recorded one), `projection` and
    `distribution` as for `project` (`trak` = traker's), `part` and `components` as for `ekfac`, `relative` (divide by
    the square root of the training example's self-influence: RelatIF, Barshan et al. 2020), `seed`.
    """

    dimensions: int = 256
    ridge: float = 0.01
    checkpoints: str = "last"
    moments: int = 10
    projection: str = "trak"
    distribution: str = "rademacher"
    part: str | None = None
    components: list[str] | None = None
    relative: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        for key, choices in (("checkpoints", ENSEMBLES), ("projection", KINDS)):
            if getattr(self, key) not in choices:
                raise unknown(key, getattr(self, key), choices, f"method.{key}")
        check_part(self.part)
        if self.dimensions < 1:
            raise UserError(f"method.dimensions={self.dimensions}: must be at least 1")
        if not self.ridge >= 0:
            raise UserError(f"method.ridge={self.ridge}: must not be negative; try 0.01")

    @property
    def label(self) -> str:
        """Name, that it is an ensemble if it is one, and the part of the model if it is not the usual one."""
        ensemble, relative = self.checkpoints != "last", self.relative
        notes = ["ensemble" if ensemble else "", part_note(self.part, self.components), "relative" if relative else ""]
        return with_notes(self.name, notes)

    @property
    def wants_checkpoints(self) -> bool:
        """Where all are averaged."""
        return self.checkpoints == "all"

    @property
    def linear(self) -> bool:
        """The query's projected gradient, times a matrix that no query decides."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same, of the output function that it is about."""
        return replace(self, relative=False)

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Scores averaged over checkpoints, times the averaged weights of the training examples."""
        components = self._chosen(problem)
        log.info("%s: %s", self.name, components.coverage_line())
        moments = history_of(problem).moments(None, self.moments) if self.checkpoints == "all" else []
        models = [(one.identity, one.load) for one in moments] or [(problem.identity, lambda: problem.model)]
        values, weights = np.zeros(()), []
        for identity, load in repeated(models):
            there = replace(problem, model=load())
            sides = self._sides(there, components)
            found = {role: self._features(problem, side, identity) for role, side in sides.items()}
            cache_gb = problem.compute.cache_gb
            queries, fitted = (whole(found[role], len(components), cache_gb) for role in ("queries", "fitted"))
            train = parts(found["train"], len(components), cache_gb)
            found_here = kernel(queries, train, fitted, problem.pairs, self.ridge)
            values = np.add(values, found_here, out=found_here)
            if problem.objective.gives_probabilities:
                weights.append(out_to_loss(sides["train"], problem.compute.tokens_per_batch))
        values /= len(models)
        if weights:
            values *= np.mean(weights, axis=0)[problem.pairs][..., None]
        answer = self.relative_to_self(problem, values) if self.relative else values
        return problem.label(answer, components).assign_attrs(dimensions=self.dimensions, checkpoints=len(models))

    @property
    def fixed_damping(self) -> str | None:
        """The ridge is its damping; what it takes lies in the cache."""
        if self.relative:
            return "of relative scores it would take the self-influence at each ridge"
        return "each checkpoint has a ridge of its own" if self.checkpoints != "last" else None

    def redamped(self, problem: Problem, rows: list[int], pairs: np.ndarray, factors: Sequence[float]) -> np.ndarray:
        """From the stored projected gradients: no pass but one forward over the training examples."""
        components, cache_gb = self._chosen(problem), problem.compute.cache_gb
        sides = self._sides(problem, components)
        found = {role: self._features(problem, side, problem.identity) for role, side in sides.items()}
        queries, fitted = (whole(found[role], len(components), cache_gb) for role in ("queries", "fitted"))
        used = np.unique(pairs[pairs >= 0])
        rows_used = found["train"].rows(found["train"].place[used])
        train = [(used, rows_used.reshape(len(used), len(components), -1))]
        ridges = [factor * self.ridge for factor in factors]
        values: np.ndarray = np.stack([kernel(queries[rows], train, fitted, pairs, ridge) for ridge in ridges]).sum(-1)
        if problem.objective.gives_probabilities:
            side = replace(sides["train"], examples=problem.train.select(used.tolist()))
            weights = np.zeros(len(problem.train))
            weights[used] = out_to_loss(side, problem.compute.tokens_per_batch)
            values *= weights[pairs]
        return values

    def sketched(self, problem: Problem) -> Sketched | None:
        """All of one size, summed over the components; of an ensemble there are several."""
        if self.checkpoints != "last":
            return None
        sides = self._sides(problem, self._chosen(problem))

        def features() -> tuple[Features, Features]:
            found = [self._features(problem, sides[role], problem.identity) for role in ("queries", "train")]
            return found[0], found[1]

        return Sketched(sides["train"], sides["queries"], problem.pairs, features, summed=True)

    def _chosen(self, problem: Problem) -> ComponentMap:
        return layers_of(chosen(problem.components(), self.part, self.components)).components

    def _sides(self, problem: Problem, components: ComponentMap) -> dict[str, Gradients]:
        """Gradients of -f, by role."""
        loss = as_loss(logit_margin) if problem.objective.gives_probabilities else cross_entropy
        train = replace(train_gradients(problem, components), loss=loss)
        queries = replace(query_gradients(problem, components), loss=loss)
        return {"fitted": replace(train, examples=problem.curvature_examples), "train": train, "queries": queries}

    def _features(self, problem: Problem, gradients: Gradients, identity: str) -> Features:
        """Projected gradients, k of each component; the sign of -f falls out of every product."""
        components, examples = gradients.components, gradients.examples
        sketches = {
            one.name: make_sketch(self.projection, one.name, one.matrix, self.dimensions, self.seed, self.distribution)
            for one in components.components
        }
        dims = {sketch.dim for sketch in sketches.values()}
        if len(dims) > 1:
            raise UserError(
                f"projection={self.projection} cannot give all components {self.dimensions} dimensions (it gives "
                f"{min(dims)} to {max(dims)}); use projection=trak, or method.dimensions that are a square"
            )
        drawn = drawn_by(self.projection, problem.compute.device)
        settings = [drawn, self.distribution, self.seed, self.dimensions]
        place = problem.store if examples is problem.queries else problem.training_store
        return component_features(
            gradients,
            sketches,
            store=place("trak", examples.fingerprint(), identity, components.names, settings, by=TRAK),
            tokens_per_batch=problem.compute.tokens_per_batch,
        )


def out_to_loss(gradients: Gradients, tokens_per_batch: int) -> np.ndarray:
    """Q [N] float64: the mean of 1 - p over each example's positions; the processes share the batches."""
    values, me, later = np.zeros(len(gradients)), ranks.current(), Deferred()

    def run(members: list[int]) -> torch.Tensor:
        inputs = gradients.inputs(members)
        with torch.no_grad():
            logits = gradients.objective.outputs(gradients.model, inputs).double()
        p = torch.softmax(logits, dim=-1).gather(2, inputs.targets[..., None])[..., 0]
        return ((1 - p) * inputs.weights).sum(1)

    compute = Shrinking(run, two, torch.cat)
    with gradients.ready():
        for members in sampled(gradients.batches(tokens_per_batch)[me.rank :: me.world], padded(gradients.lengths)):
            later.add(partial(values.__setitem__, members), compute(members))
    later.flush()
    ranks.together(torch.from_numpy(values))  # zeros where another process computes
    return values
