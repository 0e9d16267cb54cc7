"""The objective: how examples become a batch, what the model gives for it, and the loss of each example.

Whatever the model is, its outputs are seen as logits [B, L, V] at L positions of B examples, with targets [B, L] and
weights [B, L]: a language model has a position for each predicted token, a classifier one. So a loss, a measurement of
a query, and labels drawn from the model are each written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tdaexp.objectives.labels import draw, uniforms
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.deferred import send
from tdaexp.runtime.errors import UserError, unknown

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B, L, V], targets [B, L] int64, weights [B, L]) to scalars [B]; weight 0 marks padding."""

REDUCTIONS = ("mean", "sum")
CONTRASTED = 2
"""Rows of an example, where answers are compared."""


class ExampleList(Protocol):
    """What every list of examples has."""

    @property
    def ids(self) -> list[str]:
        """Ids of the examples [N]."""

    @property
    def texts(self) -> list[str]:
        """The examples as a person would read them [N]."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Identity of all that a gradient can depend on."""

    def select(self, indices: Sequence[int] | np.ndarray) -> Any:
        """The examples at `indices`, in that order."""


E = TypeVar("E", bound=ExampleList)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a pass over B examples is given.

    `inputs`: a tensor [B, ...], or tensors in whatever structure a model of somebody's own reads; `targets` [B, L] and
    `weights` [B, L] float64 as for a `Loss`; `positions` [B, L] int64 tells where in the inputs logits are read, where
    that is not everywhere. Where a query compares two answers, an example is two rows, one behind the other, and all
    tensors have 2 B of them; `signs` [2 B] float64 says how each counts: 1 what is wanted, -1 what is not, 0 nothing.
    """

    ids: list[str]
    inputs: Any
    targets: Tensor
    weights: Tensor
    positions: Tensor | None = None
    signs: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of an example."""
        return 1 if self.signs is None else CONTRASTED

    def tensors(self) -> list[Tensor]:
        """All tensors, each with the examples along its first axis."""
        return [one for one in tree_leaves(vars(self)) if isinstance(one, Tensor)]

    def having(self, tensors: Sequence[Tensor]) -> Inputs:
        """The same with other tensors in their places."""
        rest = iter(tensors)
        return replace(self, **tree_map_only(Tensor, lambda _: next(rest), vars(self)))

    def to(self, device: torch.device) -> Inputs:
        """Copy to a device without waiting for it."""
        return self.having([send(one, device) for one in self.tensors()])


@dataclass(frozen=True, eq=False)
class Reach:
    """At how many positions the layers of N examples have gradients: `below` the head, and `at_loss`; [N] int64."""

    below: np.ndarray
    at_loss: np.ndarray


class Objective(ABC, Generic[E]):
    """What the model is asked of its examples. Instances hold no data and no model."""

    @property
    def gives_probabilities(self) -> bool:
        """Whether `outputs` are logits, from which the targets' probabilities follow."""
        return True

    def prepare(self, model: nn.Module) -> None:
        """What has to be found out about a model before hooks or derivatives are about."""
        return

    def check(self, examples: E, members: Sequence[int], what: str) -> None:
        """Refuse examples without a loss; `what` says which list they are in."""
        return

    @abstractmethod
    def lengths(self, model: nn.Module, examples: E) -> np.ndarray:
        """Positions of every example [N] int64: they bound a batch."""

    def reach(self, model: nn.Module, examples: E) -> Reach:
        """Where the examples' gradients come from, known before any pass."""
        lengths = self.lengths(model, examples)
        return Reach(lengths, lengths)

    @abstractmethod
    def batch(self, examples: E, members: Sequence[int], reduction: str = "mean") -> Inputs:
        """The inputs of some examples, on the host. Errors (UserError): an example without a loss."""

    @abstractmethod
    def outputs(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Logits [B, L, V] of inputs that are on the model's device."""

    @abstractmethod
    def states(self, model: nn.Module, examples: E, members: Sequence[int], layer: int) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, d] after a layer (-1: what the last reads), and which are real, on the host [B, T]."""

    def losses(self, model: nn.Module, inputs: Inputs, loss: Loss) -> Tensor:
        """Losses [B] of inputs that are on the model's device; of compared answers, the difference."""
        logits = self.outputs(model, inputs)
        losses = loss(logits, inputs.targets, inputs.weights.to(accumulation_dtype(logits.dtype)))
        if inputs.signs is None:
            return losses
        return (losses * inputs.signs.to(losses)).view(-1, inputs.rows).sum(1)

    def label_width(self, examples: E) -> int:
        """The most labels that one of the examples has."""
        return 1

    def real(self, model: nn.Module, inputs: Inputs) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Which positions count where there is loss, [B, L] bool, and below, [B, T] bool; None where all do."""
        return None, None

    def hessian(self, logits: Tensor, directions: Tensor) -> Tensor:
        """The loss Hessian's products with directions [K, B, L, V], at every position, whatever its label.

        (diag(p) - p pᵀ) u, that of cross-entropy.
        """
        p = torch.softmax(logits, dim=-1)
        weighted = p * directions
        return weighted - p * weighted.sum(-1, keepdim=True)

    def sampled(self, logits: Tensor, inputs: Inputs, seed: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses [B] (sum over positions) on labels [B, L] int64 drawn from the logits, or on those that are given.

        Returns the labels too, -1 where there is padding.
        """
        real = inputs.weights > 0
        if labels is None:
            numbers = send(uniforms(inputs.ids, seed, inputs.targets.shape[1]), logits.device)
            labels = torch.where(real, draw(logits.detach(), numbers), -1)
        else:
            labels = send(labels[:, : inputs.targets.shape[1]], logits.device)
        weights = real.to(accumulation_dtype(logits.dtype))
        return cross_entropy(logits, labels.clamp(min=0), weights), labels


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Per-example weighted sum of cross-entropies, formed in float32 at least."""
    wide = logits.to(accumulation_dtype(logits.dtype))
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses.view_as(targets) * weights).sum(1)


def check_reduction(reduction: str) -> None:
    """Raise UserError for a reduction of the loss over positions that does not exist."""
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS, "method.reduction")


def check_layer(layer: int, depth: int) -> None:
    """Refuse a layer that a model with states 0 … depth does not have."""
    if not -depth - 1 <= layer <= depth:
        raise unknown("layer", str(layer), [f"{-depth - 1}…{depth}"], "method.layer")


def no_text(what: str) -> UserError:
    """The error of what only texts have."""
    return UserError(f"{what}: only a language model's examples have tokens; leave it out")
