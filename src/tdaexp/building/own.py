"""A problem of somebody's own: any module, data sets, and a loss for each example of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, default_collate

from tdaexp.building.parts import alike
from tdaexp.building.self_check import check
from tdaexp.data.handed import refuse_stream
from tdaexp.gradients.capture import frozen
from tdaexp.models.components import ComponentMap
from tdaexp.models.discovery import PROBED, discovered
from tdaexp.models.loaded import check_finite
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.own_loss import OwnExamples, OwnLoss
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.behaviour import behaviour, structure, tensors
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

LOOKED_AT = 32
"""Training examples of which those of largest loss are checked against autograd."""


def own_problem(
    model: nn.Module,
    train: Any,
    queries: Any,
    *,
    loss: Callable[[nn.Module, Any], Tensor],
    collate: Callable[[list[Any]], Any] | None = None,
    cache: str | Path = "cache",
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    seed: int = 0,
) -> Problem:
    """All pairs of a module's training examples and queries, where it is and in its type; no truth is known.

    `train` and `queries` have a length and items that `collate` batches (None: as a DataLoader does), or are
    DataLoaders in the data's order, whose data set and collate function are taken (no queries: None);
    `loss(model, batch)` returns one number for each item of the batch, [B]. Errors (UserError): an empty data set, one
    without a length, a DataLoader that shuffles or samples, a module without parameters or with NaN in them, a loss of
    another shape.
    """
    objective = OwnLoss(loss)
    lists = {"train": _examples(train, collate, "train")}
    lists["queries"] = lists["train"].select([]) if queries is None else _examples(queries, collate, "queries")
    first = next(model.parameters(), None)
    if first is None:
        raise UserError(f"model: {type(model).__name__} has no parameter, so that no gradient can be taken")
    check_finite(model, "model")
    with frozen(model):
        components, losses = _components(model, objective, lists["train"], first.device)
    worst = losses.argsort(descending=True)[:PROBED].tolist()  # of others the gradient may be all rounding
    check(model, components, objective, lists["train"].select(worst), type(model).__name__)
    everything = alike(np.arange(len(lists["train"])), len(lists["queries"]))
    return Problem(
        model=model,
        identity=fingerprint(tensors(model), structure(model), behaviour(loss)),
        map=components,
        objective=objective,
        train=lists["train"],
        queries=lists["queries"],
        query_set=["queries"] * len(lists["queries"]),
        candidates=everything,
        truth=np.zeros(everything.indices.shape, dtype=bool),
        truth_known=np.zeros(len(lists["queries"]), dtype=bool),
        compute=Compute(first.device, first.dtype, tokens_per_batch, cache_gb),
        cache=Path(cache),
        seed=seed,
    )


def _components(
    model: nn.Module, objective: OwnLoss, train: OwnExamples, device: torch.device
) -> tuple[ComponentMap, Tensor]:
    """The components, as the first examples show them in their order and in another one, and losses of some examples.

    A module may sort its batch, or send each example through layers of its own.
    """
    few, some = range(min(PROBED, len(train))), range(min(LOOKED_AT, len(train)))
    found: list[Tensor] = []

    def run(members: Sequence[int]) -> Tensor:
        return objective.losses(model, objective.batch(train, members).to(device), cross_entropy)

    def look() -> None:
        with torch.no_grad():
            found.append(run(some))

    again = [(partial(run, few[::-1]), len(few)), (look, len(some))]
    return discovered(model, partial(run, few), len(few), again), found[0]


def _examples(data: Any, collate: Callable[[list[Any]], Any] | None, name: str) -> OwnExamples:
    """The items of a data set, or of a DataLoader's."""
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset) or type(data.sampler) is not SequentialSampler:
            raise UserError(
                f"{name}: a DataLoader that shuffles or samples has no rows that can be named; give its data set "
                f"({name}=loader.dataset)"
            )
        data, collate = data.dataset, collate or data.collate_fn
    refuse_stream(data, name)
    if not len(data):
        raise UserError(f"{name}: holds no example; give at least one")
    found = OwnExamples(data, collate or default_collate)
    if behaviour(found.batch([0])) != behaviour(found.batch([0])):
        raise UserError(
            f"{name}: its first item is another one each time; take random augmentation out of the data set"
        )
    return found
