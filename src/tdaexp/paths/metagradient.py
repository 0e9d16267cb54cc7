"""Metagradients: what each training example's weight in the training did to each query's measurement.

Queries go back over the training in groups (`pathkernel.adjoint` has the equations), each step on what the later ones
left; of several processes the first one does it alone. Beside the scores so far, each group's adjoint is kept every
`STEPS_PER_BLOCK` steps, so that a killed run goes on there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.passes import query_gradients
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.models.components import ComponentMap
from tdaexp.pathkernel.adjoint import State, clipped, go_back, through_clipping
from tdaexp.paths.blocks import Shapes, get_state, put_state, run_steps
from tdaexp.paths.derivatives import Derivatives
from tdaexp.paths.states import Made, States, segment_length, step_bytes
from tdaexp.paths.walk import Walk
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
FURTHEST = 0.2
"""How far the training that is gone back over may end from the explained model, as a share of the way from its start:
AdamW makes steps of rounding where a gradient is nothing else, another training ends far off.
"""
VECTORS = 10
"""Vectors [parameters] that a query takes: three of the adjoint, what a step makes of them, and a Hessian product."""


@dataclass(frozen=True)
class Found:
    """Scores [Q, N, K], and the adjoint's norm [Q, S + 1] before each step and at the end."""

    scores: np.ndarray
    norms: np.ndarray


class Metagradients:
    """A problem's queries, and the training that they are asked about.

    `measurement` and `reduction` of a query; `at_once` queries go back together, less where `trainer.cache_gb` does not
    hold their vectors; `memory_gb` holds states of the training. `folder` is named after all that decides the training.
    """

    def __init__(
        self,
        problem: Problem,
        walk: Walk,
        folder: Path,
        *,
        measurement: str,
        reduction: str,
        at_once: int,
        memory_gb: float,
    ) -> None:
        self.problem, self.walk = problem, walk
        self.measurement, self.reduction = measurement, reduction
        compute = problem.compute
        self.components: ComponentMap = problem.components().complete()
        self.derivatives = Derivatives(
            walk.model, walk.layout, self.components, problem.train, problem.objective, compute.tokens_per_batch
        )
        length = segment_length(walk, memory_gb)
        vector = walk.start.numel() * walk.start.element_size()
        self.at_once = min(at_once, max(1, int(compute.cache_gb * 1e9 / (VECTORS * vector))), len(problem.queries))
        log.info(
            "metagradients: %d steps of %s parameters, %d in memory at a time (%.3g GB); %d queries at a time (%.3g GB "
            "of vectors)",
            walk.steps, f"{walk.layout.size:,}", length, length * step_bytes(walk) / 1e9, self.at_once,
            VECTORS * self.at_once * vector / 1e9,
        )  # fmt: skip
        self.states = States(walk, self.derivatives, folder / f"states-{length}", length)
        self.drift = self._drift()

    def found(self, store: Path) -> Found:
        """The metagradients of all queries; `store` is a folder named after all that decides them."""
        if ranks.current().world > 1:
            log.info("metagradients are found by one process; the others wait")
        count = len(self.problem.queries)
        groups = [range(begin, min(begin + self.at_once, count)) for begin in range(0, count, self.at_once)]
        parts = [
            self._group(rows, store / f"queries-{rows.start}", f"queries {rows.start + 1} to {rows.stop} of {count}")
            for rows in groups
        ]
        return Found(np.concatenate([one.scores for one in parts]), np.concatenate([one.norms for one in parts]))

    def measured_by(self, rows: range) -> Tensor:
        """Gradients [Q, D] of the queries' measurements by the parameters that the training ends with."""
        self.derivatives.load(self.states.end)
        ended = replace(self.problem, model=self.walk.model)
        side = query_gradients(ended, self.components, self.reduction, self.measurement)
        vectors = gradient_vectors(side, list(rows), self.problem.compute.tokens_per_batch)
        named = self.derivatives.space.tangents(vectors.to(self.walk.start.dtype))
        for name, shape in self.walk.layout.shapes.items():
            named.setdefault(name, vectors.new_zeros(len(vectors), *shape))
        return -self.walk.layout.flat(named)

    def _group(self, rows: range, store: Path, title: str) -> Found:
        walk, components, train = self.walk, len(self.components), len(self.problem.train)

        def adjoint(sums: dict[str, Tensor]) -> State:
            kept = get_state(sums)
            return State(**kept) if kept else State.at_start(walk.rule, self.measured_by(rows))

        def one(step: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
            before = adjoint(sums)
            if "scores" not in sums:
                sums["scores"] = before.parameters.new_zeros(len(rows), train, components)
            ids, weights = walk.batch(step)
            left, shares = self._back(step, before, ids, weights)
            self._check(step, rows, ids, shares, left)
            weighted = shares * torch.from_numpy(weights).to(shares)[:, None]
            sums["scores"].index_add_(1, torch.from_numpy(ids).to(shares.device), weighted)
            put_state(sums, left.tensors())
            return {"after": before.parameters.norm(dim=1), "before": left.parameters.norm(dim=1)}

        shapes: Shapes = {"after": (len(rows),), "before": (len(rows),)}
        order, device = list(range(walk.steps))[::-1], self.problem.compute.device
        found = run_steps(store, order, shapes, one, f"back over the training, {title}", device)
        norms = np.concatenate([found["before"][::-1], found["after"][:1]])
        return Found(found["scores"], norms.T)

    def _back(self, step: int, adjoint: State, ids: np.ndarray, weights: np.ndarray) -> tuple[State, Tensor]:
        """The adjoint before a step, and ⟨a, ∇ℓ_k⟩ [Q, B, K] of its batch's examples."""
        made: Made = self.states.at(step)
        update = self.walk.update(step)
        own = clipped(made.gradient, update.clip)
        directions, left = go_back(self.walk.rule, adjoint, made.after, own, update)
        directions = through_clipping(directions, made.gradient, update.clip)
        shares = self.derivatives.shares(made.before, ids, directions)
        products = self.derivatives.hessian_products(made.before, ids, weights, directions)
        return State(left.parameters + products, left.first, left.second), shares

    def _check(self, step: int, rows: range, ids: np.ndarray, shares: Tensor, left: State) -> None:
        """Errors (UserError): a metagradient that is not finite, with the step and the example where it begins."""
        if bool(torch.isfinite(shares.sum() + left.parameters.sum())):
            return
        of_examples = (~torch.isfinite(shares)).any(2).nonzero().tolist()
        of_batch = (~torch.isfinite(left.parameters)).any(1).nonzero().tolist()
        if not of_examples and not of_batch:  # it was the sum that overflowed
            return
        query, place = of_examples[0] if of_examples else (of_batch[0][0], 0)
        named = self.problem.train.ids[int(ids[place])]
        which = f"of example '{named}'" if of_examples else f"through the batch of example '{named}'"
        raise UserError(
            f"metagradient of query '{self.problem.queries.ids[rows[query]]}': at step {step} the derivative "
            f"{which} is not finite; train with an epsilon inside AdamW's root (trainer.fit.eps_root=1e-8), or with a "
            "lower trainer.fit.lr"
        )

    def _drift(self) -> float:
        """How far the training, gone over again, ends from the explained model, as a share of the way from its start.

        Errors (UserError): too far for the answer to be about that model.
        """
        own = self.walk.layout.flat({n: value.detach() for n, value in self.problem.model.named_parameters()})
        end, start = self.states.end, self.walk.start
        way, apart = float((end - start).norm()), float((end - own).norm())
        drift = apart / way if way else float(apart > 0)
        log.info("metagradients: the training gone over again ends %.2g of its way from the explained model", drift)
        if not drift <= FURTHEST:
            raise UserError(
                f"method=magic: the training gone over again ends elsewhere than the explained model ({drift:.3g} of "
                f"the way from its start, {FURTHEST:g} is allowed); explain the model with the packages, device and "
                "number of threads that it was trained with, or train it where it changes less from step to step"
            )
        return drift
