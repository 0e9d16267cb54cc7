"""What a training really did, seen apart from the code under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Update:
    """Weights before it, its learning rate, and what the model was given in each pass since the update before."""

    weights: dict[str, Tensor]
    rate: float
    passes: list[Any]


@dataclass
class Spy:
    """Watches `model` and `optimizer` by hooks of its own; `skip` tells of an update that was not made."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    updates: list[Update] = field(default_factory=list)
    passes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = self._now()
        self.handles = [
            self.model.register_forward_pre_hook(self._called, with_kwargs=True),
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]

    def _now(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self.model.named_parameters()}

    def _called(self, _: nn.Module, arguments: Any, named: Any) -> None:
        if self.model.training and torch.is_grad_enabled():
            self.passes.append(named or arguments[0])

    def _before(self, *_: Any) -> None:
        self.weights, self.rate = self._now(), float(self.optimizer.param_groups[0]["lr"])

    def _after(self, *_: Any) -> None:
        self.updates.append(Update(self.weights, self.rate, self.passes))
        self.passes = []


def gradient(model: nn.Module, weights: dict[str, Tensor], loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Autograd's gradient of a scalar loss at these weights, in eval mode."""
    was, before = model.training, {name: one.detach().clone() for name, one in model.named_parameters()}
    model.eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            one.copy_(weights[name])
    with torch.enable_grad():
        named = dict(model.named_parameters())
        found = torch.autograd.grad(loss(model), list(named.values()))
    with torch.no_grad():
        for name, one in model.named_parameters():
            one.copy_(before[name])
    model.train(was)
    return dict(zip(named, found, strict=True))


def dot(one: dict[str, Tensor], other: dict[str, Tensor], names: tuple[str, ...]) -> float:
    """Inner product over some parameters."""
    return float(sum((one[name] * other[name]).sum() for name in names))
