"""Trainings that only their end matters of: on subsets of the examples, and of networks with weights held at zero.

Nothing is written. The steps are those of `recorded`: on all examples, without masks, the end is the same bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from tdaexp.training.batches import step_batch
from tdaexp.training.optimisers import build_optimizer, learning_rate
from tdaexp.training.recorded import objective
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Problem


def batches_without(settings: FitSettings, seed: int, member: np.ndarray) -> list[np.ndarray]:
    """The batches of the training on all examples, each less those that `member` [N] bool leaves out."""
    whole = (_batch(settings, seed, len(member), step) for step in range(settings.steps))
    return [batch[member[batch]] for batch in whole]


def batches_of_its_own(settings: FitSettings, seed: int, member: np.ndarray) -> list[np.ndarray]:
    """Batches of the settings' size drawn from the members alone, as many as keep the number of epochs."""
    rows = np.flatnonzero(member)
    steps = math.ceil(settings.steps * len(rows) / len(member))
    return [rows[_batch(settings, seed, len(rows), step)] for step in range(steps)]


def retrain(
    problem: Problem, settings: FitSettings, batches: Iterable[np.ndarray], masks: Mapping[str, Tensor] | None = None
) -> None:
    """Train `problem.module` in place on these batches of indices; a batch without examples is a step without update.

    `masks`, 0 or 1 in the shape of the parameter that they are named after, hold weights at zero. The learning rate's
    schedule ends with the batches.
    """
    plan = list(batches)
    settings = dataclasses.replace(settings, steps=len(plan))
    parameters = dict(problem.module.requires_grad_().named_parameters())
    optimizer = build_optimizer(parameters, settings)
    _hold(parameters, masks)
    for step, indices in enumerate(plan):
        if not len(indices):
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad()
        objective(problem, indices, problem.weights(indices)).backward()
        optimizer.step()
        _hold(parameters, masks)
    problem.module.requires_grad_(False)


def _batch(settings: FitSettings, seed: int, examples: int, step: int) -> np.ndarray:
    return step_batch(step, kind=settings.batches, seed=seed, examples=examples, batch_size=settings.batch_size)


def _hold(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> None:
    for name, mask in (masks or {}).items():
        parameters[name].data.mul_(mask)
