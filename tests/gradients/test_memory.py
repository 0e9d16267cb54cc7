"""The memory estimate against what is really held."""

from __future__ import annotations

import pytest
import torch
from gradient_oracle import gradients_of, make_examples

from tdaexp.gradients.factors import compact
from tdaexp.gradients.memory import held_bytes
from tdaexp.models.components import component_map


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", ["olmo-tied", "llama-untied", "bloom-tied", "gpt2-untied"])
@pytest.mark.parametrize("length", [3, 12])
def test_estimate_from_above_and_not_far(models, variant, dtype, length):
    """Not less than what is held, and not much more than that with shared inputs counted repeatedly."""
    model, examples = models(variant, dtype), make_examples(1, 1, length, length)
    components, held = component_map(model), []
    gradients = gradients_of(model, examples)
    with gradients.ready():
        gradients.capture([0], lambda _, factors: held.extend(compact(one) for one in factors))
    distinct = {id(tensor): tensor for one in held for tensor in one.tensors}
    once = sum(tensor.nbytes for tensor in distinct.values())
    each = sum(tensor.nbytes for one in held for tensor in one.tensors)
    estimate = held_bytes(components, gradients.objective.reach(model, examples), dtype)[0]
    assert once <= estimate <= 1.25 * each, (once, estimate, each)
