"""The model's own forward decides; computing logits only where there is loss is a shortcut around it.

A causal model of transformers is a base model and a head, and its logits at some positions are the head's of the hidden
states there. A forward of one's own may do more: scale logits, cap them, look at other inputs. So the shortcut is taken
on a model once a small batch has shown the same numbers to the last bit, both ways; else the model runs whole.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tdaexp.models.eval_mode import in_eval
from tdaexp.models.layers import POSITIONS
from tdaexp.models.loaded import head, one_text_a_row
from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
PROBE = 2, 8
"""Texts and tokens of the batch that a shortcut is tried on."""

# What was found out of a model, until it is forgotten.
_whole: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
_positions: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def forget(model: PreTrainedModel) -> None:
    """Find out anew what is known of a model: to be called where it may have been changed."""
    _whole.pop(model, None)
    _positions.pop(model, None)


def logits_at(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor, whole: Callable[..., Any] | None = None
) -> Tensor:
    """Logits [B, L, V] of tokens [B, T] at the positions [B, L] only.

    Ask `runs_whole` before, where hooks or derivatives are about. `whole` stands for a call of the model, hooks and
    all, where that has other effects.
    """
    arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if _learned_positions(model):  # each example its own, for their gradients
        arguments["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    with one_text_a_row():
        if _whole.get(model):
            return _rows((whole or model)(**arguments).logits, positions)
        hidden = model.base_model(**arguments).last_hidden_state
    logits: Tensor = head(model)(_rows(hidden, positions))
    return logits


def _learned_positions(model: PreTrainedModel) -> bool:
    """Whether a model embeds positions by number, which it may be given."""
    if model not in _positions:
        found = any(path.rpartition(".")[2] in POSITIONS for path, _ in model.named_modules())
        _positions[model] = found and "position_ids" in inspect.signature(model.base_model.forward).parameters
    return _positions[model]


def _rows(values: Tensor, positions: Tensor) -> Tensor:
    """Of values [B, T, d] those at the positions [B, L]."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[2]))


def all_logits(model: PreTrainedModel, tokens: Tensor, attention: Tensor) -> Tensor:
    """Logits [B, T, V] at every position; of a model that classifies, what its head says there."""
    logits: Tensor
    if runs_whole(model):
        logits = model(input_ids=tokens, attention_mask=attention, use_cache=False).logits
    else:
        logits = head(model)(model.base_model(tokens, attention_mask=attention).last_hidden_state)
    return logits


def hidden_states(model: PreTrainedModel, tokens: Tensor, attention: Tensor) -> tuple[Tensor, ...]:
    """States [B, T, d] behind the embedding and each block, from the model's own forward unless it adds nothing."""
    chosen: Any = model if runs_whole(model) else model.base_model
    answer = chosen(tokens, attention_mask=attention, output_hidden_states=True, use_cache=False)
    found: tuple[Tensor, ...] = answer.hidden_states
    return found


def runs_whole(model: Any, at: Callable[..., Tensor] | None = None) -> bool:
    """Whether a model must run whole, found out at the first call by one small batch, and said in the log.

    `at` stands for `logits_at` of a model that is shared out, which puts hooks on it. Errors (UserError): a model that
    classifies and adds something to its head, so that there is no loss to explain it by.
    """
    if model not in _whole:
        classifies = model.get_output_embeddings() is None
        if not classifies and (model.base_model is model or (at is None and hooked(model))):
            _whole[model] = True
        else:
            _whole[model] = False if _without_values(model) else not _same(model, at or partial(logits_at, model))
    return _whole[model]


def hooked(model: torch.nn.Module) -> bool:
    """Whether a call of the model does more than its class says: by hooks on itself, or a forward of its own."""
    return bool(model._forward_hooks or model._forward_pre_hooks) or "forward" in vars(model)


def _without_values(model: PreTrainedModel) -> bool:
    """A plan's model has shapes alone."""
    first = next(model.parameters())
    return isinstance(first, FakeTensor) or first.device.type == "meta"


def _same(model: PreTrainedModel, at: Callable[..., Tensor]) -> bool:
    """Whether the shortcut gives the model's own logits of a batch of random tokens."""
    texts, length = PROBE
    classifies = model.get_output_embeddings() is None
    generator = torch.Generator().manual_seed(0)
    count = int(model.config.get_text_config().vocab_size)
    tokens = torch.randint(count, (1 if classifies else texts, length), generator=generator, device="cpu")
    tokens = tokens.to(next(model.parameters()).device)
    places = torch.arange(length, device=tokens.device).expand_as(tokens)
    try:
        with torch.no_grad(), in_eval(model):
            found = []
            for whole in (False, not classifies):
                _whole[model] = whole
                found.append(at(tokens, places))
            if classifies:
                found = [found[0][:, -1], model(input_ids=tokens, use_cache=False).logits]
    finally:
        del _whole[model]
    short, own = found
    if torch.equal(short, own):
        return True
    apart = "of another shape" if short.shape != own.shape else f"up to {float((short - own).abs().max()):.3g} off"
    if classifies:
        raise UserError(
            f"{model.name_or_path}: its own forward gives other numbers than its head on the last token's state "
            f"({apart}); such a classifier cannot be explained"
        )
    log.info(
        "%s: logits at chosen positions alone are %s its own forward's; the model runs whole",
        type(model).__name__,
        apart,
    )
    return False
