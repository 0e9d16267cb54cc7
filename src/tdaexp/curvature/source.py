"""Where activations and output gradients come from: passes over a data set with labels drawn from the model.

`Source` is all that fitting needs to know of a model and its data. `LanguageSource` is a causal language model over
examples with loss masks; `modules.ModuleSource` is any classifier or regressor of linear and convolutional layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.labels import draw, uniforms
from tdaexp.curvature.layers import Layer, Layers
from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.gradients.capture import capture, cross_entropy, frozen, loss_positions
from tdaexp.gradients.factors import Factors, LinearFactors, accumulation_dtype
from tdaexp.gradients.finite import check_losses
from tdaexp.models.components import Component
from tdaexp.models.forward import runs_whole
from tdaexp.runtime.deferred import send

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LayerConsumer = Callable[[list[str], list[LinearFactors], Tensor | None], None]
"""Receives layers that read one input, their factors, and which positions are real: numbers into [B T], None for all.
"""


class Source(Protocol):
    """Examples in batches, run with drawn labels.

    `layers` describe the model; `ids` [N] name the examples; `batches` list example numbers; `label_width` is the most
    labels that an example has; `dtype` is what sums are formed in.
    """

    layers: tuple[Layer, ...]
    ids: list[str]
    batches: list[list[int]]
    label_width: int
    dtype: torch.dtype

    def ready(self) -> AbstractContextManager[None]:
        """Context in which batches may be run."""

    def run(
        self, members: Sequence[int], names: Sequence[str], labels: Tensor | None, seed: int, consume: LayerConsumer
    ) -> Tensor:
        """One forward and backward pass of the loss (sum over tokens) on drawn labels.

        Draws them with `seed` unless `labels` [B, L] are given, and returns them, wherever they are; hands the named
        layers to `consume`.
        """


class LanguageSource:
    """A causal language model over examples: labels are drawn at every position that carries loss.

    Positions behind an example's last predicting one count neither for A nor for S: nothing there reaches the loss.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Layers,
        examples: Examples,
        tokens_per_batch: int = 4096,
        pad_id: int = 0,
    ) -> None:
        """Sort examples by length and cut them into batches. Errors (UserError): an example without loss."""
        check_losses(examples, "training")
        self.model, self.parts, self.examples, self.pad_id = model, layers, examples, pad_id
        self.layers, self.ids = layers.layers, examples.ids
        order = np.argsort(examples.lengths, kind="stable").tolist()
        self.batches = token_budget_batches(examples.lengths, order, tokens_per_batch)
        self.label_width = max(int(example.loss_mask[1:].sum()) for example in examples)
        self.dtype = accumulation_dtype(model.dtype)

    def ready(self) -> AbstractContextManager[None]:
        """Freeze the model."""
        return frozen(self.model)

    def run(
        self, members: Sequence[int], names: Sequence[str], labels: Tensor | None, seed: int, consume: LayerConsumer
    ) -> Tensor:
        """One pass over a batch; labels [B, L] int64, -1 for padding."""
        chosen = [self.examples[index] for index in members]
        batch = collate(chosen, self.pad_id)
        positions, targets, weights = loss_positions(batch, "sum")
        device = next(self.model.parameters()).device
        counted, last = weights.numpy() > 0, positions.numpy().max(1)
        real = send(counted, device)
        at_loss, reached = (
            _real_positions(mask, device) for mask in (counted, np.arange(last.max() + 1)[None] <= last[:, None])
        )
        if runs_whole(self.model):  # its head runs at every position
            at_loss = _real_positions(batch.loss_mask[:, 1 : last.max() + 2].numpy(), device)
        if labels is None:
            numbers = send(uniforms([example.id for example in chosen], seed, targets.shape[1]), device)
            drawn: list[Tensor] = []
        else:
            drawn = [send(labels[:, : targets.shape[1]], device)]

        def loss(logits: Tensor, _: Tensor, weights: Tensor) -> Tensor:
            if not drawn:
                drawn.append(torch.where(real, draw(logits.detach(), numbers), -1))
            return cross_entropy(logits, drawn[0].clamp(min=0), weights)

        def receive(components: list[Component], factors: list[Factors]) -> None:
            arrived = [component.name for component in components]
            linear = [one for one in factors if isinstance(one, LinearFactors)]
            consume(arrived, linear, at_loss if self.parts[arrived[0]].at_loss else reached)

        capture(self.model, self.parts.map.select(names), batch, receive, loss=loss, reduction="sum")
        return drawn[0]


def _real_positions(mask: np.ndarray, device: torch.device) -> Tensor | None:
    """Numbers of a mask's [B, T] positions, None where it holds all."""
    return None if mask.all() else send(np.flatnonzero(mask), device)
