"""The queries of an observer: what a loop's model is asked, and the components that it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tdaexp.building.covered import running
from tdaexp.gradients.assembly import Assembly
from tdaexp.gradients.passes import Gradients
from tdaexp.loops.loop import Loop
from tdaexp.models.components import ComponentMap, component_map, parameters_of
from tdaexp.models.discovery import discovered
from tdaexp.models.eval_mode import in_eval
from tdaexp.models.wrapped import language_model
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.own_loss import OwnExamples, OwnLoss
from tdaexp.runtime.errors import UserError


def queries_of(
    loop: Loop,
    queries: Any,
    loss: Callable[[nn.Module, Any], Tensor] | None,
    collate: Callable[[list[Any]], Any] | None,
    components: list[str] | None,
) -> Gradients:
    """Gradients of the queries' losses, with respect to the named components (None: all that can be captured).

    `loss` and `collate` as of `InRunShapley`. Errors (UserError): no loss for a module that is no language model, and
    as of `components_in_training`.
    """
    model = language_model(loop.model)
    if loss is None and not isinstance(model, PreTrainedModel):
        raise UserError(
            "InRunShapley: give loss=FUNCTION, which takes the model and a batch of queries and returns one number for "
            "each of them"
        )
    objective = OwnLoss(loss or token_losses)
    examples = OwnExamples(queries, _plain(collate or loop.collate))
    members, device = range(len(examples)), next(model.parameters()).device

    def find() -> ComponentMap:
        if loss is None and isinstance(model, PreTrainedModel):
            return running(model, component_map(model))
        batch = objective.batch(examples, members).to(device)
        return discovered(model, lambda: objective.losses(model, batch, cross_entropy), len(examples))

    with loop.alone(), torch.random.fork_rng(), in_eval(model):
        whole = find()
    return Gradients(model, components_in_training(model, whole, loop.parameters, components), examples, objective)


def components_in_training(
    model: nn.Module, whole: ComponentMap, trained: Mapping[str, Tensor], names: list[str] | None
) -> ComponentMap:
    """The components whose parameters are `trained` and whose gradients can be captured, or the named ones of these.

    What else is trained is in the map's `skipped`. Errors (UserError): none is left; a name that is none of them.
    """
    mine, named = {id(one) for one in trained.values()}, dict(model.named_parameters(remove_duplicate=False))
    own_ways = Assembly(model, whole, lambda *_: None, 1).own_ways
    kept, left = [], {}
    for one in whole.components:
        ids = {id(named[name]) for name in parameters_of(model, one)}
        if one.captured and ids <= mine and not any(part.module in own_ways for part in one.parts):
            kept.append(one.name)
        elif ids & mine:
            left[one.name] = one.size
    if not kept:
        raise UserError("loop: no layer is trained whose gradients can be captured; every one computes in its own way")
    chosen = whole.select(kept if names is None else names)
    for name in chosen.names:
        if name not in kept:
            raise UserError(
                f"loop: the component '{name}' is not trained, or its gradients cannot be captured in a loop"
            )
    unchosen = {one.name: one.size for one in whole.components if one.name in kept and one.name not in chosen.names}
    total = sum(one.numel() for one in trained.values())
    return ComponentMap(chosen.components, {**whole.skipped, **left}, total, whole.model_type, unchosen)


def _plain(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Batches as plain dicts where they are mappings of another kind, whose tensors nobody would find."""

    def batch(items: list[Any]) -> Any:
        found = collate(items)
        return dict(found) if isinstance(found, Mapping) else found

    return batch


def token_losses(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of each text's tokens that count [B], in nats: `labels` as transformers has them, -100 not."""
    labels = batch["labels"][:, 1:]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    counted = labels != -100
    found: Tensor = losses.view_as(labels).sum(1) / counted.sum(1)
    return found
