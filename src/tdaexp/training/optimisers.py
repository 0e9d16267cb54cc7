"""The optimiser and the learning rate of a training, from its settings alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tdaexp.training.settings import FitSettings


def learning_rate_factor(step: int, *, steps: int, warmup: int, schedule: str = "cosine") -> float:
    """Learning rate of `step` (from 0) over its peak: linear to 1 over `warmup` steps, then by the schedule.

    `cosine` is half a cosine to 0, `linear` a straight line to 0, `constant` stays at 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1.0 - share if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))


def learning_rate(step: int, settings: FitSettings) -> float:
    """Learning rate of `step` (from 0)."""
    factor = learning_rate_factor(step, steps=settings.steps, warmup=settings.warmup, schedule=settings.schedule)
    return settings.lr * factor


def decays(parameters: Iterable[tuple[str, Tensor]], settings: FitSettings) -> dict[str, float]:
    """Weight decay of each named parameter: of matrices only, or of all."""
    every = settings.decay == "all"
    return {name: settings.weight_decay if every or tensor.ndim >= 2 else 0.0 for name, tensor in parameters}


def build_optimizer(parameters: Mapping[str, Tensor], settings: FitSettings) -> torch.optim.Optimizer:
    """Torch's own optimiser on named parameters, one tensor after the other (no fused kernels: replay is exact)."""
    by_decay: dict[float, list[Tensor]] = {}
    for name, decay in decays(parameters.items(), settings).items():
        by_decay.setdefault(decay, []).append(parameters[name])
    groups = [{"params": tensors, "weight_decay": decay} for decay, tensors in by_decay.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, foreach=False)
    betas = (settings.betas[0], settings.betas[1])
    if settings.eps_root:
        return RootedAdamW(groups, settings.lr, betas, settings.eps, settings.eps_root)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, foreach=False)


class RootedAdamW(torch.optim.AdamW):
    """AdamW that divides by √(v̂ + ε_r) + ε: its step is a smooth function of a gradient near zero, too.

    Its state is that of torch's AdamW, under the same names.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, eps_root: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, foreach=False)
        self.eps_root = eps_root

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, of the parameters that have a gradient once `closure` has run; returns what that returns."""
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        for group in self.param_groups:
            self._update(group)
        return found

    def _update(self, group: dict[str, Any]) -> None:
        rate, (first, second) = float(group["lr"]), group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            count = int(state["step"])
            parameter.mul_(1 - rate * group["weight_decay"])
            state["exp_avg"].lerp_(parameter.grad, 1 - first)
            state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            corrected = state["exp_avg_sq"] / (1 - second**count)
            divisor = corrected.add_(self.eps_root).sqrt_().add_(group["eps"])
            parameter.addcdiv_(state["exp_avg"], divisor, value=-rate / (1 - first**count))
