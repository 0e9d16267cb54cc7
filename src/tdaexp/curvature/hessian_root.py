"""Roots R Rᵀ = H of the loss Hessian of the logits, through which random numbers become gradients.

For cross-entropy H = diag(p) - p pᵀ and R = diag(√p) (I - √p √pᵀ), as Σ p = 1. A label that is drawn from a model that
is sure of itself gives a gradient near zero most of the time and a large one seldom; R times random signs has the same
second moment and is never far from its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.objectives.base import Objective
from tdaexp.objectives.numbers import Numbers
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint


def root_of(objective: Objective[Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """R as a function of logits and noise [..., V].

    Errors (UserError): the objective's loss Hessian is its own.
    """
    for hessian, root in ((Objective.hessian, _cross_entropy), (Numbers.hessian, _identity)):
        if type(objective).hessian is hessian:
            return root
    raise UserError(
        f"the objective {type(objective).__name__} has a loss Hessian of its own, of which no root is known here; take "
        "method.curvature_blocks=matrix and method.fisher=labels"
    )


def _cross_entropy(logits: Tensor, noise: Tensor) -> Tensor:
    root = torch.softmax(logits, dim=-1).sqrt()
    return root * (noise - root * (root * noise).sum(-1, keepdim=True))


def _identity(_: Tensor, noise: Tensor) -> Tensor:
    return noise


def random_signs(ids: Sequence[str], seed: int, shape: Sequence[int]) -> Tensor:
    """Random signs [B, *shape] int8, a function of the seed and each example's id, whatever its padding."""
    count = int(np.prod(shape))
    rows = []
    for one in ids:
        drawn = np.random.default_rng(int(fingerprint(seed, "signs", one), 16)).bytes(-(-count // 8))
        rows.append(np.unpackbits(np.frombuffer(drawn, dtype=np.uint8), count=count).reshape(tuple(shape)))
    return torch.from_numpy(np.stack(rows).astype(np.int8) * 2 - 1)
