"""How much memory a pass will take, found by running it on tensors without data.

Under a `FakeTensorMode` every operation of the real pass happens, with shapes and storage but no numbers: what the
forward pass keeps for the backward pass, in any architecture, need not be known by formula. A billion-parameter model
takes about a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdaexp.gradients.capture import capture
from tdaexp.gradients.factors import Factors, compact
from tdaexp.models.components import Component, ComponentMap
from tdaexp.objectives.base import Inputs, cross_entropy
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.rehearsal import Live

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self._live = Live()

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        return self._live.now

    @property
    def peak(self) -> int:
        """The most at one time."""
        return self._live.peak

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and note the storage of what it returns."""
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self._live.note(one)
        return result


def pass_bytes(
    model: PreTrainedModel, components: ComponentMap, examples: int, tokens: int, predicted: int, mode: FakeTensorMode
) -> int:
    """Peak bytes of a capture pass over a batch [examples, tokens], the weights not counted.

    `predicted` tokens carry loss in each example; `model` was built under `mode`. Gradients are compacted as
    `gradients.products` does it, and dropped.
    """

    def consume(_: list[Component], factors: list[Factors]) -> None:
        for one in factors:
            compact(one)

    with mode:
        ids = torch.zeros(examples, tokens, dtype=torch.int64)
        positions = torch.zeros(examples, predicted, dtype=torch.int64)
        weights = torch.ones(examples, predicted)
        with LiveBytes() as live:
            capture(model, components, lambda: _losses(model, ids, positions, weights), consume)
    return live.peak


def _losses(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    inputs = Inputs([], ids, positions, weights, positions)
    return NextToken().losses(model, inputs, cross_entropy)


def shared_readers(model: PreTrainedModel, components: ComponentMap, mode: FakeTensorMode) -> dict[str, str]:
    """For every linear component the first one that reads the same input: itself, or q for k and v."""
    found: dict[str, str] = {}

    def consume(arrived: list[Component], _: list[Factors]) -> None:
        found.update({one.name: arrived[0].name for one in arrived})

    with mode:
        ids = torch.zeros(1, 2, dtype=torch.int64)
        capture(model, components, lambda: _losses(model, ids, ids[:, :1], torch.ones(1, 1)), consume)
    return found


def forward_bytes(model: PreTrainedModel, examples: int, tokens: int, mode: FakeTensorMode) -> int:
    """Peak bytes of generating: a forward pass with its cache of keys and values, logits at the last position."""
    with mode, torch.no_grad():
        ids = torch.zeros(examples, tokens, dtype=torch.int64)
        with LiveBytes() as live:
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return live.peak


def training_bytes(model: PreTrainedModel, examples: int, tokens: int, mode: FakeTensorMode) -> int:
    """Peak bytes of a training pass over a batch: activations, logits and gradients; the weights not counted."""
    with mode, torch.enable_grad():
        ids = torch.zeros(examples, tokens, dtype=torch.int64)
        model.requires_grad_(True)
        with LiveBytes() as live:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
            del logits
            torch.autograd.grad(loss, list(model.parameters()))
        model.requires_grad_(False)
    return live.peak
