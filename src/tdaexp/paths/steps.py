"""Which recorded steps count: all, a range, or a share of those that change a held-out loss most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.parameters import Layout
from tdaexp.pathkernel.subsample import evenly_spaced_steps, steps_of_largest_change
from tdaexp.paths.decomposition import tensors_of
from tdaexp.paths.replay import step_of
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track
from tdaexp.training.history import RecordedSteps
from tdaexp.training.trajectory import Layout as TrajectoryLayout
from tdaexp.training.trajectory import Trajectory

HELD_OUT = 256


def steps_between(trajectory: Trajectory, span: list[int] | None) -> list[int]:
    """The recorded steps from the first to the last in `span`, both counted; None = all. Errors (UserError)."""
    known = trajectory.steps
    if span is None:
        return known
    if len(span) != 2 or span[0] > span[1]:
        raise UserError(f"method.steps={span}: must be [first, last], or null for all steps")
    for step in span:
        if step not in known:
            near = min(known, key=lambda other: abs(other - step))
            raise UserError(f"method.steps={span}: step {step} was not recorded; the nearest is {near}")
    return [step for step in known if span[0] <= step <= span[1]]


def planned_steps(layout: TrajectoryLayout | None, span: list[int] | None, share: float | None) -> int:
    """How many steps will count. Errors (UserError): the training is not recorded."""
    if layout is None:
        raise UserError("trainer.fit.record=0: explaind needs a recorded training; set trainer.fit.record=1")
    known = [step for step in layout.steps if span is None or span[0] <= step <= span[-1]]
    return len(known) if share is None else len(evenly_spaced_steps(known, share))


def chosen_steps(problem: Problem, history: RecordedSteps, steps: list[int], share: float | None, by: str) -> list[int]:
    """A share of the steps: those that change a held-out loss most (`loss_change`), or spread evenly (`uniform`)."""
    if share is None:
        return steps
    if by == "uniform":
        return evenly_spaced_steps(steps, share)
    changes = held_out_changes(problem, history, steps) if ranks.current().first else np.empty(0)
    return steps_of_largest_change(steps, ranks.from_first(changes), share)


def held_out_changes(
    problem: Problem, history: RecordedSteps, steps: Sequence[int], examples: int = HELD_OUT
) -> np.ndarray:
    """Change [S] of the mean loss (nats) in each recorded step, on the last `examples` of the held-out ones.

    Cost: a forward pass a step. Errors (UserError): there are no held-out examples.
    """
    held_out = history.held_out
    if held_out is None or not len(held_out):
        raise UserError("method.subsample: there are no held-out examples; use method.subsample_by=uniform")
    batch = tensors_of(problem, held_out.select(range(max(0, len(held_out) - examples), len(held_out))))
    parameters = dict(problem.model.named_parameters())
    layout = Layout.of(parameters, {"all": tuple(parameters)})
    losses = Decomposer(example_losses(problem.model), layout, batch)
    found: list[Tensor] = []
    last: tuple[int, Tensor] | None = None
    for number in track(steps, "held-out loss by step", len(steps), 0):
        step = step_of(history.trajectory, number, problem.compute.dtype, problem.compute.device)
        before = last[1] if last is not None and last[0] == number else losses.value(step.start).double().mean()
        after = losses.value(step.end).double().mean()
        found.append(after - before)
        last = (number + 1, after)
    return np.array([float(change) for change in found])  # at the end: the device need not wait for each step
