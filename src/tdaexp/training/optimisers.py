"""The optimiser and the learning rate of a training, from its settings alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, foreach=False)
