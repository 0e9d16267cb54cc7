"""Trainings that only their end matters of: on subsets of the examples, and of networks with weights held at zero.

Nothing is written. The steps are those of the training on all examples: where nothing is left out, and without masks,
the end is that of `recorded` bit for bit, and that of `fit` up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdaexp.models.adapted import train_only_adapter
from tdaexp.training.batches import step_batch
from tdaexp.training.optimisers import build_optimizer, learning_rate
from tdaexp.training.recorded import objective
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Problem


class Batch(NamedTuple):
    """Examples [B] of a step, and the weight [B] of each in its loss."""

    indices: np.ndarray
    weights: np.ndarray


def batches_without(
    problem: Problem, settings: FitSettings, seed: int, member: np.ndarray, renormalised: bool = False
) -> list[Batch]:
    """The batches of the training on all examples, each less those that `member` [N] bool leaves out.

    The others keep the weight that they had: what is left out has weight 0, and the objective is the one whose
    derivative influence functions are. `renormalised`: a batch's mean is over what is left of it. A batch of which
    nothing is left stays, empty.
    """
    found = []
    for step in range(settings.steps):
        whole = _batch(settings, seed, len(member), step)
        kept = member[whole]
        if renormalised or not kept.any():
            found.append(_weighted(problem, whole[kept]))
        else:
            found.append(Batch(whole[kept], problem.weights(whole)[kept]))
    return found


def batches_of_its_own(problem: Problem, settings: FitSettings, seed: int, member: np.ndarray) -> list[Batch]:
    """Batches of the settings' size drawn from the members alone, as many as keep the number of epochs."""
    rows = np.flatnonzero(member)
    steps = math.ceil(settings.steps * len(rows) / len(member))
    return [_weighted(problem, rows[_batch(settings, seed, len(rows), step)]) for step in range(steps)]


def retrain(
    problem: Problem, settings: FitSettings, batches: Iterable[Batch], masks: Mapping[str, Tensor] | None = None
) -> None:
    """Train `problem.module` in place on these batches; one without examples is a step on a gradient of zero, in which
    weight decay and momentum go on.

    `masks`, 0 or 1 in the shape of the parameter that they are named after, hold weights at zero. The learning rate's
    schedule ends with the batches. Of a model with an adapter that alone is trained.
    """
    plan = list(batches)
    settings = dataclasses.replace(settings, steps=len(plan))
    train_only_adapter(problem.module)
    parameters: dict[str, Tensor] = {k: one for k, one in problem.module.named_parameters() if one.requires_grad}
    optimizer = build_optimizer(parameters, settings)
    _hold(parameters, masks)
    for step, (indices, weights) in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        if len(indices):
            optimizer.zero_grad()
            objective(problem, indices, weights).backward()
        else:
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip, foreach=False)
        optimizer.step()
        _hold(parameters, masks)
    problem.module.requires_grad_(False)


def _weighted(problem: Problem, indices: np.ndarray) -> Batch:
    return Batch(indices, problem.weights(indices) if len(indices) else np.zeros(0))


def _batch(settings: FitSettings, seed: int, examples: int, step: int) -> np.ndarray:
    return step_batch(step, kind=settings.batches, seed=seed, examples=examples, batch_size=settings.batch_size)


def _hold(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> None:
    for name, mask in (masks or {}).items():
        parameters[name].data.mul_(mask)
