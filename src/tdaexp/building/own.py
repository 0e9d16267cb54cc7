"""A problem of somebody's own: any module, data sets, and a loss for each example of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from tdaexp.building.parts import alike
from tdaexp.building.self_check import check
from tdaexp.gradients.capture import frozen
from tdaexp.models.discovery import discovered
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.own_loss import OwnExamples, OwnLoss
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint


def own_problem(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    loss: Callable[[nn.Module, Any], Tensor],
    collate: Callable[[list[Any]], Any] = default_collate,
    cache: str | Path = "cache",
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    seed: int = 0,
) -> Problem:
    """All pairs of a module's training examples and queries, where it is and in its type; no truth is known.

    `train` and `queries` have a length and items that `collate` batches; `loss(model, batch)` returns one number for
    each item of the batch, [B]. Errors (UserError): an empty data set, a loss of another shape.
    """
    objective = OwnLoss(loss)
    lists = {"train": OwnExamples(train, collate), "queries": OwnExamples(queries, collate)}
    for name, examples in lists.items():
        if not len(examples):
            raise UserError(f"{name}: holds no example")
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    two = range(min(2, len(train)))

    def probe() -> Tensor:
        return objective.losses(model, objective.batch(lists["train"], two).to(device), cross_entropy)

    with frozen(model):
        components = discovered(model, probe, len(two))
    check(model, components, objective, lists["train"].select(two), type(model).__name__)
    everything = alike(np.arange(len(train)), len(queries))
    return Problem(
        model=model,
        identity=_identity(model, loss),
        map=components,
        objective=objective,
        train=lists["train"],
        queries=lists["queries"],
        query_set=["queries"] * len(queries),
        candidates=everything,
        truth=np.zeros(everything.indices.shape, dtype=bool),
        truth_known=np.zeros(len(queries), dtype=bool),
        compute=Compute(device, dtype, tokens_per_batch, cache_gb),
        cache=Path(cache),
        seed=seed,
    )


def _identity(model: nn.Module, loss: Callable[..., Any]) -> str:
    """Of weights and buffers, and of the text of the module's classes and of the loss."""
    state = {name: value.detach().cpu().to(torch.float64).numpy() for name, value in model.state_dict().items()}
    classes = sorted({type(one) for one in model.modules() if not type(one).__module__.startswith("torch.")}, key=repr)
    return fingerprint(state, repr(model), [_source(one) for one in (*classes, loss)])


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        return repr(getattr(thing, "__qualname__", thing))
