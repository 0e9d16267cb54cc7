"""AdamW's numbers in the layout of gradients, for layers of every kind."""

from __future__ import annotations

import pytest
import torch
from module_oracle import component_vector, gradients_of_module, odd_module

from tdaexp.gradients.adamw import by_component
from tdaexp.runtime.errors import UserError


@pytest.mark.parametrize("name", ["convolutions", "norms", "tied", "bare parameters", "weight norm", "image norms"])
def test_a_number_of_each_parameter_is_where_its_gradient_is(name):
    module, examples = odd_module(name)
    components = gradients_of_module(module, examples).components
    tensors = {own: torch.randn_like(value) for own, value in module.named_parameters()}
    found = by_component(module, components, tensors.__getitem__)
    assert list(found) == components.names
    for one in components.components:
        torch.testing.assert_close(found[one.name], component_vector(module, one, tensors), rtol=0, atol=0)


def test_a_parameter_without_a_state_is_an_error():
    module, examples = odd_module("convolutions")

    def none(name: str) -> torch.Tensor:
        raise UserError(f"has no second moment of '{name}'")

    with pytest.raises(UserError, match=r"has no second moment of '0.weight'"):
        by_component(module, gradients_of_module(module, examples).components, none)
