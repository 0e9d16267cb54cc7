"""The two sides of influence's pairs: where gradients of layers come from, for texts and for classifiers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.curvature.layers import Layers
from tdaexp.curvature.modules import capture_modules, has_rule
from tdaexp.data.examples import Examples, collate
from tdaexp.gradients.capture import Loss, capture, cross_entropy, frozen
from tdaexp.gradients.factors import Factors, LinearFactors, accumulation_dtype
from tdaexp.gradients.finite import check_losses
from tdaexp.models.components import Component
from tdaexp.runtime.deferred import send

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NamedConsumer = Callable[[list[str], list[LinearFactors]], None]
"""Receives the names of layers and their factors, in the backward pass."""


class PairSide(Protocol):
    """One side of the pairs: examples, and a model whose layers' gradients can be captured.

    The sides may have different models (before and after fine-tuning): their layers are matched by name.
    """

    @property
    def layers(self) -> Layers:
        """The layers that count."""

    @property
    def ids(self) -> list[str]:
        """Ids of the examples [N]."""

    @property
    def lengths(self) -> np.ndarray:
        """Positions of the examples [N], which bound a batch."""

    @property
    def dtype(self) -> torch.dtype:
        """What products are formed in."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Context in which examples may be run."""

    def of(self, layers: Layers) -> PairSide:
        """The side with other layers."""

    def check(self, members: Sequence[int], what: str) -> None:
        """Refuse examples without a loss; `what` says which list they are in."""

    def capture(self, members: Sequence[int], pad_id: int, consume: NamedConsumer) -> Tensor:
        """One forward and backward pass over some examples; returns their losses [B]."""


@dataclass(frozen=True, eq=False)
class Side:
    """A side of texts: a language model, its layers, examples, and the loss whose gradient is taken."""

    model: PreTrainedModel
    layers: Layers
    examples: Examples
    loss: Loss = cross_entropy
    reduction: str = "mean"

    @property
    def ids(self) -> list[str]:
        """Ids of the examples."""
        return self.examples.ids

    @property
    def lengths(self) -> np.ndarray:
        """Lengths in tokens."""
        return self.examples.lengths

    @property
    def dtype(self) -> torch.dtype:
        """That of accumulation."""
        return accumulation_dtype(self.model.dtype)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self.model.parameters()).device

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Freeze the model."""
        return frozen(self.model)

    def of(self, layers: Layers) -> Side:
        """The side with other layers."""
        return replace(self, layers=layers)

    def check(self, members: Sequence[int], what: str) -> None:
        """Refuse examples without any token to predict."""
        check_losses(Examples([self.examples[index] for index in members]), what)

    def capture(self, members: Sequence[int], pad_id: int, consume: NamedConsumer) -> Tensor:
        """One pass over a padded batch."""

        def receive(components: list[Component], factors: list[Factors]) -> None:
            linear = [one for one in factors if isinstance(one, LinearFactors)]
            consume([component.name for component in components], linear)

        batch = collate([self.examples[index] for index in members], pad_id)
        return capture(self.model, self.layers.map, batch, receive, loss=self.loss, reduction=self.reduction)


@dataclass(frozen=True, eq=False)
class ModuleSide:
    """A side of pairs (`score.PairSide`): a classifier, its layers, inputs [N, ...], classes [N] and a loss.

    `loss` is one of `gradients.capture`: it is given logits [B, 1, classes], classes [B, 1] and weights of 1.
    `positions`: those of the layer that has most (`most_positions`).
    """

    model: nn.Module
    layers: Layers
    ids: list[str]
    inputs: Tensor
    targets: Tensor
    positions: int
    loss: Loss = cross_entropy

    @property
    def lengths(self) -> np.ndarray:
        """Positions of every example [N]."""
        return np.full(len(self.ids), self.positions, dtype=np.int64)

    @property
    def dtype(self) -> torch.dtype:
        """That of accumulation."""
        return accumulation_dtype(next(self.model.parameters()).dtype)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self.model.parameters()).device

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Freeze the model."""
        return frozen(self.model)

    def of(self, layers: Layers) -> ModuleSide:
        """The side with other layers."""
        return replace(self, layers=layers)

    def check(self, members: Sequence[int], what: str) -> None:
        """Every example has a class."""

    def capture(self, members: Sequence[int], pad_id: int, consume: NamedConsumer) -> Tensor:
        """One pass; nothing is padded."""
        chosen = torch.tensor(members, dtype=torch.int64, device="cpu")
        targets = send(self.targets[chosen], self.device)

        def receive(names: list[str], factors: list[LinearFactors], _: Tensor | None) -> None:
            consume(names, factors)

        return capture_modules(
            self.model, self.inputs[chosen], self.layers.names, partial(_of_class, self.loss, targets), receive
        )


def _of_class(loss: Loss, targets: Tensor, logits: Tensor) -> Tensor:
    """A token's loss as that of a class: losses [B] of logits [B, classes]."""
    weights = torch.ones(len(logits), 1, device=logits.device, dtype=accumulation_dtype(logits.dtype))
    return loss(logits[:, None], targets[:, None], weights)


def most_positions(model: nn.Module, inputs: Tensor) -> int:
    """At how many positions the layer runs that runs at most of them, found by one example of `inputs`."""
    found = [1]

    def count(_: list[str], factors: list[LinearFactors], __: Tensor | None) -> None:
        found.append(factors[0].deltas.shape[1])

    names = [path for path, layer in model.named_modules() if has_rule(layer)]
    with frozen(model):
        capture_modules(model, inputs[:1], names, lambda logits: logits.sum(1), count)
    return max(found)
