"""A training as a walk that can be made again: where it starts, each step's batch and rate, and the update rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.models.adapted import is_adapted
from tdaexp.pathkernel.adjoint import Update, check_adjoint
from tdaexp.pathkernel.parameters import Layout
from tdaexp.pathkernel.updates import SGD, AdamW, Optimiser
from tdaexp.paths.replay import rule_of
from tdaexp.problem import Problem
from tdaexp.runtime import rehearsal
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.training.batches import step_batch
from tdaexp.training.history import RecordedSteps
from tdaexp.training.optimisers import decays, learning_rate
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import check_deterministic
from tdaexp.training.trajectory import Trajectory

Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Step to places of its batch's examples in the training set [B] int64, and their weights in its loss [B]."""
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Walk:
    """The training that the explained model came out of, on its device and in its type.

    `model` runs the passes; whose parameters are set is settled by who runs them. `start` [D] and `decay` [D] are in
    the order of the `layout`. A training's own `identity` tells it from others.
    """

    identity: str
    model: nn.Module
    layout: Layout
    steps: int
    rule: Optimiser
    start: Tensor
    decay: Tensor
    rate: Callable[[int], float]
    batch: Batches
    clip: float = 0.0

    def update(self, step: int) -> Update:
        """A step's own numbers."""
        return Update(step, self.rate(step), self.decay, self.clip)

    def weighted(self, weights: np.ndarray) -> Walk:
        """The training in which each example's loss counts `weights` [N] times; batches and the others' stay."""

        def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
            ids, own = self.batch(step)
            return ids, own * weights[ids]

        return replace(self, batch=batch)


def walk_of(problem: Problem) -> Walk:
    """The training of the problem's model: its recording, where every step was recorded, else its recipe.

    Errors (UserError): neither is known; a recording that lacks a step; an optimiser without adjoint; dropout, batch
    norm in training mode, or a model in 16 bits.
    """
    if rehearsal.current() is not None:
        raise RuntimeError("a training is not gone back over on tensors without numbers")
    _check(problem)
    history = problem.history
    if isinstance(history, RecordedSteps) and (history.trajectory.settings.every == 1 or problem.recipe is None):
        return _recorded(problem, history.trajectory)
    if problem.recipe is None:
        raise UserError(
            "method=magic: goes back over the model's training, which is not known here; let the model be trained here "
            "by attribute.py (model.pretrained=null), or give it a recorded training"
        )
    return _by_recipe(problem, problem.recipe())


def _recorded(problem: Problem, trajectory: Trajectory) -> Walk:
    settings = trajectory.settings
    if settings.every > 1:
        raise UserError(
            f"trainer.fit.record={settings.every}: a training is gone back over step by step, and not every step was "
            "recorded; set trainer.fit.record=1"
        )
    rule = rule_of(trajectory)
    check_adjoint(rule)
    return _walk(
        problem,
        fingerprint("recorded", settings.identity),
        copy.deepcopy(problem.model),
        trajectory.parameters(0),
        settings.decay,
        steps=settings.total,
        rule=rule,
        rate=trajectory.lr,
        batch=trajectory.batch,
    )


def _by_recipe(problem: Problem, recipe: Any) -> Walk:
    """`recipe` is a `training.bank.Recipe`."""
    settings: FitSettings = recipe.settings
    began = recipe.start(None)
    if began.fingerprint != problem.train.fingerprint():
        raise UserError(
            "method=magic: the problem's training examples are not those that the model was trained on; explain the "
            "model with the data that it was trained on, whole"
        )
    named = {name: value.detach() for name, value in began.module.named_parameters()}

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        ids = step_batch(step, kind=settings.batches, seed=recipe.seed, examples=len(began),
                         batch_size=settings.batch_size)  # fmt: skip
        return ids, began.weights(ids)

    return _walk(
        problem,
        fingerprint("recipe", recipe.identity, recipe.seed),
        copy.deepcopy(problem.model),
        named,
        decays(named.items(), settings),
        steps=settings.steps,
        rule=_rule(settings),
        rate=lambda step: learning_rate(step, settings),
        batch=batch,
        clip=settings.clip,
    )


def _rule(settings: FitSettings) -> Optimiser:
    if settings.optimizer == "sgd":
        return SGD(settings.momentum)
    return AdamW((settings.betas[0], settings.betas[1]), settings.eps, eps_root=settings.eps_root)


def _walk(
    problem: Problem,
    identity: str,
    model: nn.Module,
    start: dict[str, Tensor],
    decay: dict[str, float],
    *,
    steps: int,
    rule: Optimiser,
    rate: Callable[[int], float],
    batch: Batches,
    clip: float = 0.0,
) -> Walk:
    compute, own = problem.compute, dict(model.named_parameters())
    if not steps:
        raise UserError("trainer.fit.steps=0: nothing was trained, so no example had a part in it")
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in start.items()}:
        raise UserError("method=magic: the training is of a model with other parameters than the explained one")
    layout = Layout.of(own, {"all": tuple(own)})
    named = {name: value.to(compute.device, next(iter(own.values())).dtype) for name, value in start.items()}
    first = layout.flat(named)
    return Walk(identity, model, layout, steps, rule, first, layout.spread(decay, first), rate, batch, clip)


def _check(problem: Problem) -> None:
    """Refuse what has no exact derivative here."""
    model = problem.model
    dtype = next(model.parameters()).dtype
    if dtype not in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"method=magic: needs float32 at least, the model is {kind}; set trainer.precision=float32")
    if is_adapted(model):
        raise UserError(
            "method=magic: goes back over trainings of whole models, and this one has an adapter; take method=ekfac"
        )
    # what is trained here by a recipe runs without dropout, whatever the model states
    check_deterministic(model, training=isinstance(problem.history, RecordedSteps))
