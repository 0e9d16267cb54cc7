"""A small module with a loss of its own, whose batches can be made to leak, and its gradients by plain autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.problem import Problem


class Small(nn.Module):
    """Two layers; `leak` mixes each example with the mean of its batch, `offset` is added and taken away again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.leak, self.offset = 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) + self.offset - self.offset)
        return self.last(hidden + self.leak * hidden.mean(0))


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1].to(batch[0].dtype), reduction="none").sum(1)


def in_type(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """As `loss`, for a model of any type."""
    kind = next(model.parameters()).dtype
    return loss(model, [one.to(kind) for one in batch])


def gradients(problem: Problem, examples: Any, numbers: list[int]) -> dict[str, np.ndarray]:
    """By component the gradients [n, size] of some examples' losses, each alone, by plain autograd in float64."""
    found: dict[str, list[np.ndarray]] = {"first": [], "last": []}
    for number in numbers:
        with torch.enable_grad():
            batch = examples.batch([number])
            parameters = {name: one.detach().requires_grad_() for name, one in problem.model.named_parameters()}
            value = in_type_of(problem.model, parameters, batch)
            slopes = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
        for name, rows in found.items():
            whole = torch.cat([slopes[f"{name}.weight"], slopes[f"{name}.bias"][:, None]], dim=1)
            rows.append(whole.double().numpy().ravel())
    return {name: np.stack(rows) for name, rows in found.items()}


def in_type_of(model: nn.Module, parameters: dict[str, Tensor], batch: list[Tensor]) -> Tensor:
    kind = next(iter(parameters.values())).dtype
    out = torch.func.functional_call(model, parameters, (batch[0].to(kind),))
    return nn.functional.mse_loss(out, batch[1].to(kind), reduction="none").sum()
