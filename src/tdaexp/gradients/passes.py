"""Per-example gradients of a list of examples under an objective: captured batch by batch, never stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.data.examples import token_budget_batches
from tdaexp.gradients.assembly import Consumer
from tdaexp.gradients.capture import capture, frozen
from tdaexp.gradients.explicit import explicit_gradients
from tdaexp.gradients.factors import Factors, VectorFactors
from tdaexp.gradients.folding import folding
from tdaexp.models.components import Component, ComponentMap, parameters_of
from tdaexp.objectives.base import Inputs, Loss, Objective, cross_entropy
from tdaexp.objectives.measurements import as_loss, named
from tdaexp.runtime.accumulation import accumulation_dtype

if TYPE_CHECKING:
    from tdaexp.problem import Problem

Transform = Callable[[str, Tensor], Tensor]
"""Name of a component and explicit gradients [B, size] (layout in `factors`) to numbers [B, d] for each example."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of `loss` of some examples with respect to a model's components, one for each example.

    `reduction` over an example's positions. Sides of a pair may have different models (before and after fine-tuning):
    their components are matched by name. With a `transform` every gradient is formed, and is what that makes of it, of
    the same size.
    """

    model: nn.Module
    components: ComponentMap
    examples: Any
    objective: Objective[Any]
    loss: Loss = cross_entropy
    reduction: str = "mean"
    transform: Transform | None = None

    @property
    def ids(self) -> list[str]:
        """Ids of the examples [N]."""
        found: list[str] = self.examples.ids
        return found

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Positions of the examples [N], which bound a batch."""
        return self.objective.lengths(self.model, self.examples)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What products are formed in: float32, or float64 of a float64 model."""
        return accumulation_dtype(next(self.model.parameters()).dtype)

    @property
    def kind(self) -> str:
        """`dtype` as numpy names it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Context in which examples may be run: the model is frozen."""
        self.objective.prepare(self.model)
        return frozen(self.model)

    def of(self, components: ComponentMap) -> Gradients:
        """The same with respect to other components."""
        return replace(self, components=components)

    def check(self, members: Sequence[int], what: str) -> None:
        """Refuse examples without a loss; `what` says which list they are in."""
        self.objective.check(self.examples, members, what)

    def batches(self, tokens_per_batch: int, members: Sequence[int] | None = None) -> list[list[int]]:
        """Some examples, or all, in batches of similar length whose padded size stays within the budget."""
        chosen = np.arange(len(self)) if members is None else np.asarray(members, dtype=np.int64)
        order = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        return token_budget_batches(self.lengths, order.tolist(), tokens_per_batch)

    def inputs(self, members: Sequence[int]) -> Inputs:
        """What a pass over some examples is given, on the model's device."""
        return self.objective.batch(self.examples, members, self.reduction).to(self.device)

    def capture(self, members: Sequence[int], consume: Consumer) -> Tensor:
        """One forward and backward pass over some examples; returns their losses [B].

        `consume` gets components and their factors as soon as the backward pass has them, from the loss downwards;
        those that have no rule come first. To be called inside `with gradients.ready():`.
        """
        inputs, losses = self.inputs(members), None
        consume = consume if self.transform is None else transforming(consume, self.transform)
        formed = [component for component in self.components.components if not component.captured]
        if formed:
            losses = self._form(formed, inputs, consume)
        if losses is None or len(formed) < len(self.components):
            take = consume if inputs.rows == 1 else folding(consume, inputs.rows)
            losses = capture(
                self.model,
                self.components,
                len(inputs.ids) * inputs.rows,
                lambda: self.objective.losses(self.model, inputs, self.loss),
                take,
            )
        return losses

    def _form(self, components: list[Component], inputs: Inputs, consume: Consumer) -> Tensor:
        """Hand on the components that have no rule; returns losses [B]."""
        members = {one.name: parameters_of(self.model, one) for one in components}
        names = [name for own in members.values() for name in own]
        found, losses = explicit_gradients(self.model, names, self.objective, inputs, self.loss)
        for one in components:
            flat = torch.cat([found[name].flatten(1) for name in members[one.name]], dim=1)
            consume([one], [VectorFactors(flat)])
        return losses


def transforming(consume: Consumer, transform: Transform) -> Consumer:
    """A consumer of factors whose gradients are formed and transformed first."""

    def take(components: list[Component], factors: list[Factors]) -> None:
        pairs = zip(components, factors, strict=True)
        consume(components, [VectorFactors(transform(one.name, own.materialise())) for one, own in pairs])

    return take


def train_gradients(problem: Problem, components: ComponentMap, reduction: str = "mean") -> Gradients:
    """Gradients of the training examples' losses."""
    return Gradients(problem.model, components, problem.train, problem.objective, reduction=reduction)


def query_gradients(
    problem: Problem, components: ComponentMap, reduction: str = "mean", measurement: str | None = None
) -> Gradients:
    """Gradients of the queries' losses, or of minus a measurement of them (`objectives.measurements`)."""
    loss = cross_entropy if measurement is None else as_loss(named(measurement))
    return Gradients(problem.model, components, problem.queries, problem.objective, loss, reduction)


def fitted_gradients(problem: Problem, components: ComponentMap) -> Gradients:
    """Gradients of the examples that curvature is averaged over, their losses summed over positions."""
    return Gradients(problem.model, components, problem.curvature_examples, problem.objective, reduction="sum")
