"""SOURCE: the training unrolled by segments, each with a curvature and a rate of its own.

Source: Bae et al. 2024, "Training data attribution via approximate unrolling". With S and r of a segment ℓ of L as in
`curvature.unrolled`, N examples and ḡ_ℓ(z) the mean of ∇ℓ(z) over the segment's checkpoints,

    τ(z, q) = ∇m(q)ᵀ Σ_ℓ S_L ⋯ S_{ℓ+1} r_ℓ ḡ_ℓ(z) / N

is what the measurement m gained by z being in the training: no inverse, no damping, and a training that has not
converged counts as that. Curvature is EK-FAC's over all checkpoints of a segment; it is G over an example's positions
in a step's loss, which is their mean over the batch. A second training stage is made of further segments, whose
examples are not scored: their S alone takes part. With one segment and ηK → ∞ it is `ekfac` with λ the weight decay.
Sign: positive = helps. Fills query, train and component; additive over components. What has no factor rule is left out.
Cost: with C checkpoints in all, C fits of factors and C passes over queries and candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import xarray as xr
from torch import Tensor

from tdaexp.curvature.fit import FactorSettings, fisher_note
from tdaexp.curvature.layer_blocks import scores_by_blocks
from tdaexp.curvature.layers import Layers, layers_of
from tdaexp.curvature.score import LayerPairs
from tdaexp.curvature.segment_fit import FittedSegment
from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.history import History
from tdaexp.methods.base import Method
from tdaexp.methods.tracin import history_of
from tdaexp.models.components import ComponentMap
from tdaexp.models.successor import shared_components
from tdaexp.objectives.measurements import sources
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.rehearsal import repeated
from tdaexp.runtime.rows import Rows
from tdaexp.selection.parts import check_choices, choice_notes, names_of, with_notes
from tdaexp.training.segments import check_boundaries, segments_of

log = logging.getLogger(__name__)
FORMS = ("auto", "sgd", "adam")


@dataclass
class Source(Method):
    """Keys: `segments` of about as many checkpoints each, or cut at the steps `boundaries`; `checkpoints` of a segment
    that stand for it, at most; `finetuned_segments` of a second training stage; `form` (`sgd` = plain steps, `adam` =
    steps scaled by AdamW's second moment, which needs checkpoints with its state; `auto` = that of the training's
    optimiser); `part`, `components`, `strict`, `measurement`, `reduction`, `partitions`, `saves`, `fisher`,
    `seed` as for `ekfac`. A run that trains its model keeps what it needs by itself.
    """

    segments: int = 3
    boundaries: list[int] | None = field(default=None, metadata={"distinct": True})
    checkpoints: int = 2
    finetuned_segments: int = 1
    form: str = "auto"
    part: str | None = None
    components: list[str] | None = None
    strict: bool = False
    measurement: str = "log_likelihood"
    reduction: str = "mean"
    partitions: int = 1
    saves: int = 4
    fisher: str = "labels"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_choices(self.part, self.measurement, self.reduction)
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS, "method.form")
        for name in ("segments", "checkpoints", "finetuned_segments"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name}={getattr(self, name)}: must be at least 1")
        check_boundaries(self.boundaries or [])
        self.settings = FactorSettings("ekfac", self.seed, self.partitions, self.saves, self.fisher)

    @property
    def label(self) -> str:
        """Name, and what is not usual: the form, the segments, the part of the model, how queries are measured."""
        notes = ["" if self.form == "auto" else self.form]
        if self.boundaries is not None:
            notes.append(f"cut at {', '.join(map(str, self.boundaries))}")
        else:
            notes.append("" if self.segments == Source.segments else f"segments {self.segments}")
        notes.append("" if self.checkpoints == Source.checkpoints else f"checkpoints {self.checkpoints}")
        notes.append(fisher_note(self.fisher))
        later = self.finetuned_segments
        notes.append("" if later == Source.finetuned_segments else f"fine-tuning segments {later}")
        return with_notes(
            self.name, [*notes, *choice_notes(self.part, self.components, self.measurement, self.reduction)]
        )

    @property
    def both_stages(self) -> bool:
        """Yes: the second stage is made of further segments."""
        return True

    @property
    def wants_checkpoints(self) -> bool:
        """Always."""
        return True

    @property
    def wants_state(self) -> bool:
        """For the form that reads it."""
        return self.form != "sgd"

    @property
    def linear(self) -> bool:
        """The query's gradient, times a matrix that no query decides."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same, of the loss."""
        return replace(self, measurement="log_likelihood")

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Fit the segments' curvature, take the queries backwards through them, score the pairs at each checkpoint."""
        before, after = problem.after("pretrained"), problem.after("finetuned")
        first, second = self._layers(problem)
        log.info("%s: %s", self.name, first.components.coverage_line())
        stretches = self._fitted(before, first, history_of(problem), self.segments, self.boundaries, "trainer.fit")
        scored = len(stretches)
        if problem.finetuned is not None:
            history, count = self._second_history(problem), self.finetuned_segments
            stretches += self._fitted(after, second, history, count, None, "trainer.finetune")
        moments = [
            (number, moment, len(one.segment.moments))
            for number, one in enumerate(stretches[:scored])
            for moment in one.segment.moments
        ]
        queries = query_gradients(after, second.map, self.reduction, self.measurement)
        for number, one in enumerate(stretches, start=1):
            where = ", ".join(str(moment.step) for moment in one.segment.moments)
            log.info("segment %d of %d: curvature at step %s", number, len(stretches), where)
            one.fit()
        identity = self._identity(stretches)
        positions = 1.0 if self.reduction == "mean" else stretches[0].positions
        found: list[tuple[float, Rows]] = []
        for number, moment, beside in repeated(moments):
            log.info("segment %d of %d: gradients at step %d", number + 1, len(stretches), moment.step)
            there = train_gradients(replace(before, model=moment.load()), first.map, self.reduction)
            sides = LayerPairs(there, queries, first, partial(_backwards, stretches[number:]))
            scores = self._scores(problem, sides, [*identity, number, moment.identity])
            found.append((1 / (beside * positions * len(before.curvature_examples)), scores))

        def total(rows: np.ndarray) -> np.ndarray:
            return sum((share * scores[rows].astype(np.float64) for share, scores in found), np.zeros((1, 1, 1)))

        values = Rows((*problem.pairs.shape, len(first.components)), np.float64, total)
        steps = [moment.step for _, moment, _ in moments]
        return problem.label(values, first.components).assign_attrs(steps=steps)

    def _layers(self, problem: Problem) -> tuple[Layers, Layers]:
        """The chosen components by weight matrix, of the models before and after the second stage."""
        maps: tuple[ComponentMap, ComponentMap] = problem.map, problem.map
        if problem.finetuned is not None:
            maps = shared_components(problem.map, problem.finetuned.map)
        names = names_of(maps[0], self.part, self.components)
        if problem.finetuned is not None:
            maps = shared_components(problem.map, problem.finetuned.map, names)
            return layers_of(maps[0], self.strict), layers_of(maps[1], self.strict)
        found = layers_of(problem.components(names), self.strict)
        return found, found

    def _second_history(self, problem: Problem) -> History:
        second = problem.finetuned
        assert second is not None
        if not len(second.examples):
            raise UserError(
                "method=source: no fine-tuning example is known, so the second stage has no curvature; give them "
                "(dataset.finetune_path=FILE for dataset=trex), or explain the model before it"
            )
        return history_of(replace(problem, history=second.history))

    def _fitted(
        self,
        stage: Problem,
        layers: Layers,
        history: History,
        count: int,
        boundaries: Sequence[int] | None,
        key: str,
    ) -> list[FittedSegment]:
        """The segments of one stage, not yet fitted."""
        course, positions = history.course(), _positions(stage)
        adam = self.form == "adam" or (self.form == "auto" and course.optimizer == "adamw")
        return [
            FittedSegment(
                one,
                stage,
                layers,
                course,
                positions,
                tuple(moment.state() for moment in one.moments) if adam else (),
                self.settings,
            )
            for one in segments_of(history, count, boundaries, self.checkpoints, key)
        ]

    def _scores(self, problem: Problem, sides: LayerPairs, identity: list[object]) -> Rows:
        return scores_by_blocks(
            sides,
            problem.pairs,
            self.partitions,
            store=lambda part: problem.store("influence", "source", part, *identity, by=Source),
            tokens_per_batch=problem.compute.tokens_per_batch,
            cache_gb=problem.compute.cache_gb,
        )

    def _identity(self, stretches: list[FittedSegment]) -> list[object]:
        """All that scores depend on beside the moment, the components, training examples, queries and pairs."""
        fitted = [[one.identity, one.problem.curvature_examples.fingerprint()] for one in stretches]
        return [self.measurement, *sources(self.measurement), self.reduction, fitted]


def _backwards(stretches: list[FittedSegment], name: str, gradient: Tensor) -> Tensor:
    """A query's gradient from the training's end back to the first of the segments, and what that one's updates add."""
    first, *later = stretches
    for one in reversed(later):
        gradient = one.unrolled(name).carried(gradient)
    return first.unrolled(name).moved(gradient)


def _positions(stage: Problem) -> float:
    """Positions of a training example on average, over which a step takes the mean of the losses."""
    if not isinstance(stage.objective, NextToken):
        return 1.0
    return float(np.mean([one.loss_mask[1:].sum() for one in stage.curvature_examples]))
