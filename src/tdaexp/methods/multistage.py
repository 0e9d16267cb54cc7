"""Multi-stage influence: what a pre-training example did for an answer that the model gives after fine-tuning.

Source: Bao et al. 2025, equation 12. Minus the inner product, over the components that both models share, of

    (G_pt + λ_pt I)⁻¹ ∇ℓ_pt(z; θ_pt)   and   (G_ft + λ_ft I)⁻¹ ∇m(x; θ_ft),

with G_pt averaged over the pre-training examples at θ_pt and G_ft over the fine-tuning examples at θ_ft. λ_ft takes in
the paper's proximity term α. Both inverses are symmetric, so both are applied to the query's gradient, once per query;
neither is left out. Mode `identity` in both stages is the dot product across the two models, the paper's GDP. Sign:
positive = helps, as in `ekfac`. Fills query, train and component; additive over components. Cost: two fits of factors,
then one pass over queries and candidates.

Scale: no unit that a reader could use: the fine-tuning curvature divides it twice; compare within a query. Limits:
those of `ekfac`, in both stages, and the assumption that fine-tuning stays near the pre-trained weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import xarray as xr
from torch import Tensor

from tdaexp.curvature.layer_blocks import scores_by_blocks
from tdaexp.curvature.layers import Layers, layers_of
from tdaexp.curvature.per_token import check_per_token, with_tokens
from tdaexp.curvature.score import LayerPairs, Precondition
from tdaexp.curvature.tokens import TokenScoring
from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.methods.base import Method
from tdaexp.methods.ekfac import EKFAC
from tdaexp.models.successor import shared_components
from tdaexp.objectives.base import no_text
from tdaexp.objectives.measurements import sources
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem, Stage
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import check_choices, choice_notes, damping_note, names_of, with_notes

log = logging.getLogger(__name__)


@dataclass
class MultiStage(Method):
    """Keys: `mode`, `damping` and `relative_damping` of the pre-training stage, as for `ekfac`; the same with
    `finetuned_` in front for the fine-tuning stage (null = as the pre-training stage); `part`, `components`, `strict`,
    `measurement`, `reduction`, `query_rank`, `partitions`, `saves`, `per_token`, `seed` as for `ekfac`.
    """

    mode: str = "ekfac"
    damping: float | None = None
    relative_damping: float = 0.1
    finetuned_mode: str | None = None
    finetuned_damping: float | None = None
    finetuned_relative_damping: float | None = None
    part: str | None = None
    components: list[str] | None = None
    strict: bool = False
    measurement: str = "log_likelihood"
    reduction: str = "mean"
    query_rank: int | None = None
    partitions: int = 1
    saves: int = 4
    per_token: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_choices(self.part, self.measurement, self.reduction)
        check_per_token(self.per_token)
        damping, relative = self.damping, self.relative_damping
        self.pretrained = self._stage(self.mode, damping, relative)
        if self.finetuned_damping is not None or self.finetuned_relative_damping is not None:
            damping = self.finetuned_damping
        if self.finetuned_relative_damping is not None:
            relative = self.finetuned_relative_damping
        self.finetuned = self._stage(self.finetuned_mode or self.mode, damping, relative)

    @property
    def label(self) -> str:
        """Name, and what is not usual: modes, damping, the part of the model, how queries are measured.

        Without curvature in either stage it is the paper's GDP, the dot product across the stages.
        """
        stages = self.pretrained, self.finetuned
        modes = dict.fromkeys(one.mode for one in stages)
        curved = [one for one in stages if one.mode != "identity"]
        notes = [] if list(modes) == ["ekfac"] or not curved else ["/".join(modes)]
        usual = MultiStage.relative_damping
        damping = dict.fromkeys(damping_note(one.damping, one.relative_damping, usual) for one in curved)
        notes.append("/".join(note or f"λ {usual:g} × mean" for note in damping) if any(damping) else "")
        notes += choice_notes(self.part, self.components, self.measurement, self.reduction)
        notes.append(f"rank {self.query_rank}" if self.query_rank else "")
        return with_notes(self.name if curved else "dot across stages", notes)

    @property
    def both_stages(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_both_stages(self) -> bool:
        """Yes."""
        return True

    @property
    def linear(self) -> bool:
        """The query's gradient, times a matrix that no query decides."""
        return True

    @property
    def fixed_damping(self) -> str:
        """There is one for each stage."""
        return "there are two dampings, one for each stage; compare runs with other values of them"

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Fit the factors of both stages, apply both inverses to the queries, score the pairs."""
        if self.per_token and not isinstance(problem.objective, NextToken):
            raise no_text(f"method.per_token={self.per_token}")
        second = self._second(problem)
        first_map, _ = shared_components(problem.map, second.map)
        names = names_of(first_map, self.part, self.components)
        first_map, second_map = shared_components(problem.map, second.map, names)
        before, after = problem.after("pretrained"), problem.after("finetuned")
        layers = layers_of(first_map, self.strict), layers_of(second_map, self.strict)
        log.info("shared by both stages: %s", layers[0].components.coverage_line())
        pretrained, finetuned = _inverse(self.pretrained, before, layers[0]), _inverse(self.finetuned, after, layers[1])

        def both(name: str, gradient: Tensor) -> Tensor:
            return pretrained(name, finetuned(name, gradient))

        def reverse(name: str, gradient: Tensor) -> Tensor:
            return finetuned(name, pretrained(name, gradient))

        sides = LayerPairs(
            train_gradients(before, layers[0].map, self.reduction),
            query_gradients(after, layers[1].map, self.reduction, self.measurement),
            layers[0],
            both,
            self.query_rank,
        )
        identity = self._identity(second, layers[0].components.names)
        values = scores_by_blocks(
            sides,
            problem.pairs,
            self.partitions,
            store=lambda part: problem.store("influence", *self._identity(second, part), by=type(self)),
            tokens_per_batch=problem.compute.tokens_per_batch,
            cache_gb=problem.compute.cache_gb,
        )
        dataset = problem.label(values, layers[0].components)
        scoring = TokenScoring(sides, reverse)
        return with_tokens(dataset, problem, self.per_token, scoring, *identity, by=type(self))

    def _stage(self, mode: str, damping: float | None, relative: float) -> EKFAC:
        """The factors of one stage."""
        return EKFAC(
            mode=mode,
            damping=damping,
            relative_damping=relative,
            measurement=self.measurement,
            reduction=self.reduction,
            query_rank=self.query_rank,
            partitions=self.partitions,
            saves=self.saves,
            seed=self.seed,
        )

    def _second(self, problem: Problem) -> Stage:
        if problem.finetuned is None:
            raise UserError(
                "method=multistage: this problem has one training stage; for one with two run `python attribute.py "
                "experiment=toy_msif method=multistage`, set model.finetuned=FOLDER, or take method=ekfac"
            )
        if not len(problem.finetuned.examples) and self.finetuned.mode != "identity":
            raise UserError(
                "method=multistage: no fine-tuning example is known, so the second stage has no curvature; give "
                "them (dataset.finetune_path=FILE for dataset=trex), or set method.finetuned_mode=identity"
            )
        return problem.finetuned

    def _identity(self, second: Stage, names: list[str]) -> list[object]:
        """All that the scores depend on beside the pre-trained model, training examples, queries and pairs."""
        stages = [[one.settings, one.damped] for one in (self.pretrained, self.finetuned)]
        own = [names, self.measurement, *sources(self.measurement), self.reduction, self.query_rank]
        return ["multistage", second.loaded.fingerprint, second.examples.fingerprint(), *own, *stages]


def _inverse(stage: EKFAC, problem: Problem, layers: Layers) -> Precondition:
    """One stage's damped inverse; where it is the identity nothing is fitted."""
    if stage.mode == "identity":
        return lambda name, gradient: gradient
    factors = stage.fit(problem, layers)
    return lambda name, gradient: factors.precondition(name, gradient, stage.damped)
