"""How much memory holding captured gradients takes, known before anything is captured."""

from __future__ import annotations

import numpy as np
import torch

from tdaexp.data.examples import Example, Examples
from tdaexp.gradients.factors import accumulation_dtype, explicit_is_cheaper
from tdaexp.models.components import Component, ComponentMap


def held_bytes(components: ComponentMap, examples: Examples, dtype: torch.dtype, whole: bool = False) -> np.ndarray:
    """Bytes that each example's gradient takes in the form in which it is held [N] float64.

    An estimate from above: inputs that several components share count for each of them. `dtype` is the model's;
    `whole`: its head runs at every position (`models.forward`).
    """
    each = [sum(_component_bytes(one, example, dtype, whole) for one in components.components) for example in examples]
    return np.array(each, dtype=np.float64)


def _component_bytes(component: Component, example: Example, dtype: torch.dtype, whole: bool) -> int:
    narrow, wide = dtype.itemsize, accumulation_dtype(dtype).itemsize
    predicted = np.flatnonzero(example.loss_mask[1:]) + 1
    total = 0
    for part in component.parts:
        outputs, inputs = part.shape
        at_loss = not whole and part.kind == "linear" and (component.tied or component.name == "lm_head")
        positions = len(predicted) if at_loss else int(predicted[-1])
        if part.kind == "norm":
            total += part.size * wide
        elif part.kind == "embedding":
            total += positions * (outputs * narrow + 8)
        elif not component.tied and explicit_is_cheaper(positions, outputs, inputs):
            total += part.size * wide
        else:
            total += positions * (outputs + inputs) * narrow
    return total
