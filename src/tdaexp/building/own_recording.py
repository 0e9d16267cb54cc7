"""The problem of a module with a loss of one's own, and the recording of its training (`loops.record`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdaexp.data.tensors import TensorExamples
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.own_loss import OwnExamples
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.training.history import RecordedSteps
from tdaexp.training.trajectory import Trajectory

LOOKED_AT = 8
"""Items of which the own loss is compared with cross-entropy."""
RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""How near cross-entropy the own loss is where it is that."""


def with_recording(problem: Problem, folder: Path, tensors: bool) -> Problem:
    """The problem whose history is the recording in a folder.

    With `tensors` as one of classes: items are pairs (tensor, class), and the loss is cross-entropy. Errors
    (UserError): a recording of another model or another training set; items or a loss of another kind.
    """
    recorded = Trajectory(folder)
    mine = {name: list(one.shape) for name, one in problem.model.named_parameters()}
    if mine != recorded.settings.shapes:
        raise UserError(f"history: {folder} is the recording of a model with other parameters; hand over the one whose "
                        "training it is")  # fmt: skip
    if recorded.settings.examples != len(problem.train):
        raise UserError(f"history: {folder} is of a training on {recorded.settings.examples} rows, and train has "
                        f"{len(problem.train)}; hand over the training set as it was")  # fmt: skip
    last = recorded.parameters(recorded.settings.total)
    if not all(torch.equal(one.detach().float().cpu(), last[name]) for name, one in problem.model.named_parameters()):
        raise UserError(f"history: the model is not what the training in {folder} ended with; hand over that one")
    if tensors:
        problem = _of_classes(problem)
    return replace(problem, history=RecordedSteps(problem.model, recorded))


def _of_classes(problem: Problem) -> Problem:
    made = replace(problem, objective=Classes(), train=_tensors(problem.train), queries=_tensors(problem.queries))
    few = range(min(LOOKED_AT, len(made.train)))
    device = problem.compute.device
    with torch.no_grad():
        own = problem.objective.losses(
            problem.model, problem.objective.batch(problem.train, few).to(device), cross_entropy
        )
        inputs = made.objective.batch(made.train, few).to(device)
        theirs = made.objective.losses(made.model, inputs, cross_entropy)
    if not torch.allclose(own, theirs.to(own), rtol=RELATIVE, atol=ABSOLUTE):
        raise UserError("history: a decomposition is of the logits of a classifier, whose loss is the cross-entropy of "
                        "an item's class; yours is another one")  # fmt: skip
    return made


def _tensors(examples: OwnExamples) -> TensorExamples:
    """Items as tensors. Errors (UserError): they are not pairs of a tensor and a class."""
    batch: Any = examples.batch(range(len(examples)))
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)
    if not pair or batch[1].shape != (len(examples),) or batch[1].is_floating_point():
        raise UserError("history: a decomposition reads items that are pairs (tensor, class); these are not")
    return TensorExamples(list(examples.ids), batch[0].cpu(), batch[1].long().cpu())
