"""What a training pass over a language model takes, found by making it on tensors without data.

Under a `FakeTensorMode` every operation of the real pass happens, with shapes and storage but no numbers: what the
forward pass keeps for the backward pass, in any architecture, need not be known by formula. A billion-parameter model
takes about a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.models.adapted import train_only_adapter
from tdaexp.runtime.live_bytes import LiveBytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def training_pass(model: PreTrainedModel, examples: int, tokens: int) -> None:
    """A forward and a backward pass over a batch [examples, tokens] on the model's device; gradients are dropped.

    Of an adapted model those of its adapter alone are formed.
    """
    with torch.enable_grad():
        ids = torch.zeros(examples, tokens, dtype=torch.int64, device=next(model.parameters()).device)
        train_only_adapter(model)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        del logits
        torch.autograd.grad(loss, [one for one in model.parameters() if one.requires_grad])
        model.requires_grad_(False)


def training_bytes(model: PreTrainedModel, examples: int, tokens: int, mode: FakeTensorMode) -> int:
    """Peak bytes of such a pass, the weights not counted: activations, logits and gradients."""
    with mode, LiveBytes() as live:
        training_pass(model, examples, tokens)
    return int(live.peak)
