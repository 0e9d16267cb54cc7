"""EK-FAC influence: the gradient dot product in the metric of the damped, Kronecker-factored Gauss-Newton matrix.

Source: Bao et al. 2025 (multi-stage influence), section 3, after Grosse et al. 2023: I(z, q) = ∇m(q)ᵀ (G + λI)⁻¹
∇ℓ(z), block-diagonal over weight matrices. G belongs to the loss summed over an example's tokens; `reduction` is that
of ℓ and m. Sign: m is larger where the answer is more likely, so positive = helps; Koh and Liang's sign for a loss is
the opposite. Fills query, train and component; additive over components. Cost: two passes over the training set to
fit, with sums of outer products that cost about as much again, then one pass over queries and candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factors_store import Factors
from tdaexp.curvature.fit import FactorSettings, fisher_note, problem_factors
from tdaexp.curvature.gradient_index import GradientIndex, indexed_scores
from tdaexp.curvature.joint_blocks import JointSettings, sampled_inverse
from tdaexp.curvature.layer_blocks import scores_by_blocks
from tdaexp.curvature.layers import Layers, layers_of
from tdaexp.curvature.per_token import check_per_token, with_tokens
from tdaexp.curvature.repeated import repeated_scores
from tdaexp.curvature.score import LayerPairs, Precondition
from tdaexp.curvature.tokens import TokenScoring
from tdaexp.gradients.passes import query_gradients, train_gradients
from tdaexp.gradients.vector_products import gradient_vectors, vector_products
from tdaexp.methods.base import Method
from tdaexp.objectives.base import no_text
from tdaexp.objectives.measurements import sources
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import current
from tdaexp.runtime.rows import Rows
from tdaexp.selection.parts import check_choices, choice_notes, chosen, damping_note, with_notes

log = logging.getLogger(__name__)


@dataclass
class EKFAC(Method):
    """Keys: `mode` (`ekfac`; `kfac` = products of the factors' eigenvalues; `diagonal`; `identity` = dot product),
    `damping` λ (null = `relative_damping` times each matrix's mean eigenvalue), `part` of the model (`adapter`,
    `blocks` = attention and MLP, `attention`, `mlp`, `all`; null = the adapter where there is one, else `blocks`),
    `components` (names, in place of `part`), `strict` (refuse components without a factor rule), `measurement` of a
    query, `reduction` over tokens of loss and measurement (`mean`, `sum`), `query_rank` (approximate each query's
    gradient), `keep_gb` (above 0: keep the training gradients in 8 bits for other queries, in at most so many GB),
    `partitions` (fit and score the matrices in so many passes: less memory), `saves` of a phase, `relative` (divide by
    the square root of the training example's self-influence: RelatIF, Barshan et al. 2020; a pass more over each
    training example, as a query and as a candidate), `per_token` (for each query's so many best candidates, which
    tokens their scores come from), `curvature_blocks` (what is inverted together: `matrix`; `joint`: q, k, v and o, and
    an MLP's matrices; `layer`: a whole layer; see `curvature.joint_blocks`) of `block_samples` M, `fisher` (what the
    factors are fitted to: gradients of labels that are drawn from the model, or of random `signs`, which spread less;
    `curvature.hessian_root`), `seed` of the drawn labels or signs.
    """

    mode: str = "ekfac"
    damping: float | None = None
    relative_damping: float = 0.1
    part: str | None = None
    components: list[str] | None = None
    strict: bool = False
    measurement: str = "log_likelihood"
    reduction: str = "mean"
    query_rank: int | None = None
    keep_gb: float = 0.0
    partitions: int = 1
    saves: int = 4
    relative: bool = False
    per_token: int = 0
    curvature_blocks: str = "matrix"
    block_samples: int = 512
    fisher: str = "labels"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_choices(self.part, self.measurement, self.reduction)
        if self.query_rank is not None and self.query_rank < 1:
            raise UserError(f"method.query_rank={self.query_rank}: must be at least 1, or null for the whole gradient")
        if not self.keep_gb >= 0:
            raise UserError(f"method.keep_gb={self.keep_gb}: must not be negative")
        check_per_token(self.per_token)
        if self.per_token and self.keep_gb > 0:
            raise UserError(
                f"method.per_token={self.per_token}: kept gradients are rounded, so that tokens' shares would not add "
                "up to the scores; set method.keep_gb=0"
            )
        if self.per_token and self.relative:
            raise UserError(
                f"method.per_token={self.per_token}: tokens' shares add up to the score before it is made relative; "
                "set method.relative=false"
            )
        self.joint = JointSettings(self.curvature_blocks, self.block_samples, self.seed)
        if self.joint.blocks != "matrix":
            self._check_joint()
        self.settings = FactorSettings(self.mode, self.seed, self.partitions, self.saves, self.fisher)
        self.damped = Damping(self.damping, self.relative_damping)

    def _check_joint(self) -> None:
        """Refuse what works matrix by matrix alone."""
        usual = {"mode": "ekfac", "query_rank": None, "keep_gb": 0.0, "partitions": 1, "per_token": 0}
        for key, value in usual.items():
            if getattr(self, key) != value:
                raise UserError(
                    f"method.{key}={getattr(self, key)}: works matrix by matrix, method.curvature_blocks="
                    f"{self.curvature_blocks} does not; set method.{key}={'null' if value is None else value}, or "
                    "method.curvature_blocks=matrix"
                )

    @property
    def label(self) -> str:
        """Name, and what is not usual: the mode, the damping, the part of the model, how queries are measured."""
        damped = self.mode != "identity"
        notes = ["" if self.mode == "ekfac" else self.mode, self.joint.note]
        notes += [damping_note(self.damping, self.relative_damping, EKFAC.relative_damping)] if damped else []
        notes += choice_notes(self.part, self.components, self.measurement, self.reduction)
        notes += [fisher_note(self.fisher), "relative" if self.relative else ""]
        return with_notes(self.name, [*notes, f"rank {self.query_rank}" if self.query_rank else ""])

    @property
    def sharded(self) -> bool:
        """Yes: it sees activations and their gradients alone."""
        return True

    @property
    def linear(self) -> bool:
        """The query's gradient, times a matrix that no query decides."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same, of the loss."""
        return replace(self, measurement="log_likelihood", relative=False, per_token=0)

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Fit the factors, precondition the queries, score the pairs."""
        if self.per_token and not isinstance(problem.objective, NextToken):
            raise no_text(f"method.per_token={self.per_token}")
        layers = self.layers(problem)
        factors = self.fit(problem, layers)

        def inverse(name: str, gradient: Tensor) -> Tensor:
            return factors.precondition(name, gradient, self.damped)

        sides = self._sides(problem, layers, inverse)
        whole = self.joint.blocks == "matrix"
        scores = self.scores(problem, sides) if whole else self._joint_scores(problem, layers, factors)
        if self.relative:
            scores = self.relative_to_self(problem, scores)
        dataset = problem.label(scores, layers.components)
        identity = self._identity(problem, layers.components.names)
        scoring = TokenScoring(sides, inverse)
        return with_tokens(dataset, problem, self.per_token, scoring, *identity, by=EKFAC)

    @property
    def fixed_damping(self) -> str | None:
        """What it takes is there once the factors are, unless they were made in parts to save memory."""
        if self.mode == "identity":
            return "mode=identity has no damping"
        if self.joint.blocks != "matrix":
            return f"curvature_blocks={self.joint.blocks} is inverted at one damping"
        if self.relative:
            return "of relative scores it would take the self-influence at each damping"
        return None if self.partitions == 1 else "method.partitions spares the memory that it takes"

    def redamped(self, problem: Problem, rows: list[int], pairs: np.ndarray, factors: Sequence[float]) -> np.ndarray:
        """From the stored factors: a pass over each query for each damping, and one over the training examples."""
        layers = self.layers(problem)
        fitted = self.fit(problem, layers)
        damped = [self.damped.times(factor) for factor in factors]

        def each(name: str, gradient: Tensor) -> Tensor:
            rows = zip(damped, gradient.split(1), strict=True)
            return torch.cat([fitted.precondition(name, one, damping) for damping, one in rows])

        sides = self._sides(problem, layers, each)
        return repeated_scores(sides, len(factors), rows, pairs, problem.compute.tokens_per_batch)

    def _sides(self, problem: Problem, layers: Layers, inverse: Precondition) -> LayerPairs:
        return LayerPairs(
            train_gradients(problem, layers.map, self.reduction),
            query_gradients(problem, layers.map, self.reduction, self.measurement),
            layers,
            inverse,
            self.query_rank,
        )

    def layers(self, problem: Problem) -> Layers:
        """The chosen components by weight matrix."""
        found = layers_of(chosen(problem.components(), self.part, self.components), self.strict)
        log.info("%s: %s", self.name, found.components.coverage_line())
        return found

    def fit(self, problem: Problem, layers: Layers) -> Factors:
        """Factors of the model over the examples that it was trained on, from the cache if they are there."""
        return problem_factors(problem, layers, self.settings)

    def scores(self, problem: Problem, sides: LayerPairs) -> Rows:
        """Scores [Q, C, K] of the pairs: exact, or from kept gradients."""
        names, tokens = sides.layers.components.names, problem.compute.tokens_per_batch
        cache_gb = problem.compute.cache_gb
        if self.keep_gb > 0:
            return indexed_scores(
                sides,
                problem.pairs,
                index=problem.training_store(
                    "kept", names, self.reduction, problem.train.fingerprint(), by=GradientIndex
                ),
                store=problem.store("kept-influence", *self._identity(problem, names), by=EKFAC),
                keep_gb=self.keep_gb,
                tokens_per_batch=tokens,
                cache_gb=cache_gb,
            )
        return scores_by_blocks(
            sides,
            problem.pairs,
            self.partitions,
            store=lambda part: problem.store("influence", *self._identity(problem, part), by=EKFAC),
            tokens_per_batch=tokens,
            cache_gb=cache_gb,
        )

    def _joint_scores(self, problem: Problem, layers: Layers, factors: Factors) -> Rows:
        """Scores [Q, C, K] of the pairs by blocks of several matrices, from explicit gradients of the queries."""
        names, tokens = layers.components.names, problem.compute.tokens_per_batch
        queries = query_gradients(problem, layers.components, self.reduction, self.measurement)
        inverse = cache(lambda: sampled_inverse(problem, layers, factors, self.joint, self.damped))
        if current() is not None:
            inverse()  # a plan counts it once, not with every block of queries
        return vector_products(
            train_gradients(problem, layers.components, self.reduction),
            problem.pairs,
            lambda members: inverse()(gradient_vectors(queries, members, tokens)),
            store=problem.store("joint-influence", *self._identity(problem, names), self.joint, by=EKFAC),
            tokens_per_batch=tokens,
            cache_gb=problem.compute.cache_gb,
        )

    def _identity(self, problem: Problem, names: list[str]) -> list[object]:
        """All that exact scores depend on beside the model, training examples, queries and pairs."""
        fitted = [problem.curvature_examples.fingerprint(), self.settings, self.damped, self.query_rank]
        return [names, self.measurement, *sources(self.measurement), self.reduction, *fitted]
