"""How much memory holding captured gradients takes, known before anything is captured."""

from __future__ import annotations

import numpy as np
import torch

from tdaexp.gradients.factors import explicit_is_cheaper
from tdaexp.models.components import Component, ComponentMap
from tdaexp.objectives.base import Reach
from tdaexp.runtime.accumulation import accumulation_dtype


def held_bytes(components: ComponentMap, reach: Reach, dtype: torch.dtype) -> np.ndarray:
    """Bytes that each example's gradient takes in the form in which it is held [N] float64.

    An estimate from above: inputs that several components share count for each of them. `dtype` is the model's;
    `whole`: its head runs at every position (`models.forward`).
    """
    pairs = list(zip(reach.below.tolist(), reach.at_loss.tolist(), strict=True))
    # Of the same reach is the same memory.
    known = {pair: sum(_component_bytes(one, *pair, dtype) for one in components.components) for pair in set(pairs)}
    return np.array([known[pair] for pair in pairs], dtype=np.float64)


def _component_bytes(component: Component, below: int, at_loss: int, dtype: torch.dtype) -> int:
    narrow, wide, total = dtype.itemsize, accumulation_dtype(dtype).itemsize, 0
    for part in component.parts:
        outputs, inputs = part.shape
        positions = at_loss if part.kind == "linear" and (component.tied or component.name == "lm_head") else below
        if part.kind in ("norm", "other"):
            total += part.size * wide
        elif part.kind == "embedding":
            total += positions * (outputs * narrow + 8)
        elif not component.tied and explicit_is_cheaper(positions, outputs, inputs):
            total += part.size * wide
        else:
            total += positions * (outputs + inputs) * narrow
    return total
