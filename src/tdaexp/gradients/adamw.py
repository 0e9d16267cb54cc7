"""AdamW's state seen from gradients: its preconditioner, and the direction that an example would be stepped in.

AdamW divides each entry of its running mean gradient by √v̂ + ε. A dot product in that metric, Σ g h / (√v̂ + ε), says
what a step of AdamW on one example does to another's loss, to first order and without momentum: `in_metric` scales
both sides by (√v̂ + ε)^(−1/2), so that products, norms and cosines of gradients are those of the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.history import Moment, OptimizerState
from tdaexp.models.components import ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown

PRECONDITIONS = ("none", "adamw")
ALL_STEPS = 1 << 40  # of a recording


def moments_with_state(problem: Problem, steps: Sequence[int] | None, count: int) -> list[Moment]:
    """Moments that the problem's training left (`History.moments`). Errors (UserError): it left none that is known."""
    if problem.history is None:
        raise UserError(
            "this model's training left no state of its optimiser that is known here; let it be trained with its state "
            "kept (trainer.fit.keep=state) or its steps recorded (a classifier: trainer.fit.record=1)"
        )
    try:
        return problem.history.moments(steps, count)
    except UserError as error:  # where no checkpoint was kept, those to keep are those with a state
        raise UserError(str(error).replace("trainer.fit.keep=all", "trainer.fit.keep=state")) from error


def last_moment(problem: Problem) -> Moment:
    """The last moment that the problem's training left. Errors (UserError): as above."""
    return moments_with_state(problem, None, ALL_STEPS)[-1]


def by_component(model: nn.Module, components: ComponentMap, tensors: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """What `tensors` has for each parameter, as a vector [size] for each component, in the layout of its gradient."""
    space = VectorSpace(model, components)
    whole = space.vectors({name: tensors(name)[None] for name in space.parameters()})[0]
    return dict(zip(components.names, (whole[place] for place in space.slices), strict=True))


@dataclass(frozen=True)
class Scale:
    """Multiplies gradients by `factors`, a vector for each component."""

    factors: Mapping[str, Tensor]

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """Gradients [B, size] of a component, scaled."""
        return gradient * self.factors[name].to(gradient)


def identity_of(moment: Moment, state: OptimizerState) -> list[object]:
    """All that the optimiser's numbers at a moment depend on."""
    return [moment.identity, moment.step, state.updates, state.betas, state.eps, state.eps_root]


@dataclass(frozen=True)
class Direction:
    """What AdamW's next update would be along, were it made on one example: m̂ / (√(v̂ + ε_r) + ε) after the
    example's gradient went into both averages.

    `first` are raw running means of the gradient by component (None: as if there was no momentum, the gradient alone),
    `second` those of its square, after `updates` updates.
    """

    first: Mapping[str, Tensor] | None
    second: Mapping[str, Tensor]
    betas: tuple[float, float]
    eps: float
    updates: int
    eps_root: float = 0.0

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """Directions [B, size] of the gradients of a component."""
        (b1, b2), after = self.betas, self.updates + 1
        top = gradient
        if self.first is not None:
            top = (b1 * self.first[name].to(gradient) + (1 - b1) * gradient) / (1 - b1**after)
        below = (b2 * self.second[name].to(gradient) + (1 - b2) * gradient.square()) / (1 - b2**after)
        return top / ((below + self.eps_root).sqrt() + self.eps)


def direction(model: nn.Module, components: ComponentMap, state: OptimizerState) -> Direction:
    """Directions at a moment of a training, with momentum where its state has it."""

    def raw(averages: Callable[[str], Tensor], beta: float) -> dict[str, Tensor]:
        found = by_component(model, components, averages)
        return {name: one * (1 - beta**state.updates) for name, one in found.items()}

    first = None if state.first is None else raw(state.first, state.betas[0])
    second = raw(state.second, state.betas[1])
    return Direction(first, second, state.betas, state.eps, state.updates, state.eps_root)


def check_precondition(choice: str) -> None:
    """Refuse (UserError) a preconditioner that does not exist."""
    if choice not in PRECONDITIONS:
        raise unknown("precondition", choice, PRECONDITIONS, "method.precondition")


def metric_identity(problem: Problem, choice: str) -> list[object]:
    """What the metric of products depends on beside the model: nothing for `none`. Errors (UserError): no state."""
    if choice == "none":
        return []
    moment = last_moment(problem)
    return [choice, *identity_of(moment, moment.state())]


def in_metric(problem: Problem, side: Gradients, choice: str) -> Gradients:
    """One side of a product in the metric of AdamW's last kept state, or as it is (`none`).

    Errors (UserError): no state was kept, or not of one of the components.
    """
    if choice == "none":
        return side
    state = last_moment(problem).state()
    squares = by_component(side.model, side.components, state.second)
    return replace(side, transform=Scale({name: state.divisor(one).rsqrt() for name, one in squares.items()}))
