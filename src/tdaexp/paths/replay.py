"""A recorded trajectory as the path kernel's steps, and what each of its updates is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tdaexp.pathkernel.parameters import Batch, Function, Layout, Step
from tdaexp.pathkernel.reverse import part_gradients
from tdaexp.pathkernel.updates import (
    SGD,
    AdamW,
    Momentum,
    Optimiser,
    Regularisation,
    optimiser,
    split_recorded,
    split_update,
)
from tdaexp.paths.partition import Partition
from tdaexp.training.trajectory import Trajectory


def rule_of(trajectory: Trajectory) -> Optimiser:
    """The update algebra of the recorded optimiser. Errors (UserError): one that has none."""
    settings = trajectory.settings
    if settings.optimizer == "adamw":
        return AdamW((settings.betas[0], settings.betas[1]), settings.eps, eps_root=settings.eps_root)
    if settings.optimizer == "sgd":
        return SGD(settings.momentum)
    return optimiser(settings.optimizer)


def step_of(trajectory: Trajectory, number: int, dtype: torch.dtype, device: torch.device) -> Step:
    """One recorded update; its batch's ids and weights stay in main memory.

    Errors (UserError): it was not recorded, or is damaged.
    """

    def typed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device, dtype) for name, tensor in tensors.items()}

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
    """Splits updates into kernel and regularisation, and first moment where not every step is recorded.

    With a `partition` the kernel is split again, by the gradients of each part's examples; what their replay differs
    from the recorded update by is a part of its own, `replay`.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        layout: Layout,
        partition: Partition | None = None,
        losses: Function | None = None,
        examples: Callable[[Tensor], Batch] | None = None,
    ) -> None:
        self.trajectory, self.layout, self.rule = trajectory, layout, rule_of(trajectory)
        self.every = trajectory.settings.every == 1
        self.regularisation = Regularisation(self.rule, layout)
        self.partition, self.losses, self.examples = partition, losses, examples
        self.shares = Momentum(self.rule, layout)

    @property
    def sizes(self) -> dict[str, int]:
        """Names of the parts in order, and how many directions each has."""
        names = {"kernel": 1 if self.partition is None else len(self.partition), "regularisation": 1}
        names |= {} if self.every else {"first_moment": 1}
        return names if self.partition is None else {**names, "replay": 1}

    def advance(self, step: Step) -> None:
        """Take a step that is not split into the running averages; steps in order from 0, every one recorded."""
        if self.rule.coupled:
            self.regularisation.advance(step)
        if self.partition is not None:
            self._shares(step)

    def split(self, step: Step) -> dict[str, Tensor]:
        """Directions [D] by name, in the order of `sizes`; steps in order where every one is recorded."""
        if self.every:
            found = split_update(step, self.regularisation.advance(step), self.layout)
        else:
            moment = self.trajectory.momentum(step.number)
            average = {name: value.to(step.start[name]) for name, value in moment.items()}
            found = split_recorded(self.rule, step, average, self.layout)
        if self.partition is None:
            return found
        if not self.every:
            self.shares.average = None  # what was before is in first_moment
        shares, kernel = self._shares(step), found.pop("kernel")
        parts = {f"kernel {label}": share for label, share in zip(self.partition.labels, shares, strict=True)}
        return {**parts, **found, "replay": kernel - shares.sum(0)}

    def _shares(self, step: Step) -> Tensor:
        """Directions [P, D] of the parts, by the gradients of their examples in this step and before."""
        if self.partition is None or self.losses is None or self.examples is None:
            raise RuntimeError("a split by parts needs the partition, the losses and the examples")
        codes = self.partition.codes[step.ids]
        batch = self.examples(step.ids)
        gradients = part_gradients(self.losses, step, self.layout, batch, codes, len(self.partition))
        return -self.shares.advance(step, gradients)
