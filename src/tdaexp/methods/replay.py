"""A recorded trajectory as the path kernel's steps."""

from __future__ import annotations

import torch
from torch import Tensor

from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.pathkernel.updates import SGD, AdamW, Optimiser, Regularisation, optimiser, split_recorded, split_update
from tdaexp.training.trajectory import Trajectory


def rule_of(trajectory: Trajectory) -> Optimiser:
    """The update algebra of the recorded optimiser. Errors (UserError): one that has none."""
    settings = trajectory.settings
    if settings.optimizer == "adamw":
        return AdamW((settings.betas[0], settings.betas[1]), settings.eps)
    if settings.optimizer == "sgd":
        return SGD(settings.momentum)
    return optimiser(settings.optimizer)


def step_of(trajectory: Trajectory, number: int, dtype: torch.dtype) -> Step:
    """One recorded update. Errors (UserError): it was not recorded, or is damaged."""

    def typed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    ids, weights = trajectory.batch(number)
    start = typed(trajectory.parameters(number))
    return Step(
        number,
        start,
        typed(trajectory.updated(number)),
        dict.fromkeys(start, trajectory.lr(number)),
        trajectory.weight_decay(number),
        torch.from_numpy(ids),
        torch.from_numpy(weights),
        typed(trajectory.second_moment(number)) if trajectory.settings.optimizer == "adamw" else None,
    )


class Parts:
    """Splits updates into kernel and regularisation, and first moment where not every step is recorded."""

    def __init__(self, trajectory: Trajectory, layout: Layout) -> None:
        self.trajectory, self.layout, self.rule = trajectory, layout, rule_of(trajectory)
        self.every = trajectory.settings.every == 1
        self.regularisation = Regularisation(self.rule, layout)

    @property
    def names(self) -> list[str]:
        """Names of the parts in order."""
        return ["kernel", "regularisation"] + ([] if self.every else ["first_moment"])

    @property
    def average(self) -> Tensor | None:
        """What has to be saved to go on later: the running average [1, D] of the decay, where it has one."""
        return self.regularisation.momentum.average if self.regularisation.momentum else None

    @average.setter
    def average(self, value: Tensor) -> None:
        if self.regularisation.momentum:
            self.regularisation.momentum.average = value

    def split(self, step: Step) -> dict[str, Tensor]:
        """Directions [D] by name; steps in order where every one is recorded."""
        if self.every:
            return split_update(step, self.regularisation.advance(step), self.layout)
        average = {name: value.to(step.start[name]) for name, value in self.trajectory.momentum(step.number).items()}
        return split_recorded(self.rule, step, average, self.layout)
