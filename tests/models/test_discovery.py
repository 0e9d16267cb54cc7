"""Components of any module, and their gradients, captured or formed, against autograd one example at a time."""

from __future__ import annotations

import pytest
import torch
from module_oracle import (
    COUNT,
    ODD,
    autograd_one_by_one,
    component_vector,
    dense_ggn_of_module,
    gradients_of_module,
    odd_module,
)
from torch import nn

from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.layers import layers_of
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.discovery import discovered
from tdaexp.runtime.errors import UserError

every_module = pytest.mark.parametrize("name", ODD)


@every_module
def test_every_parameter_once_and_what_has_no_rule_is_known(name):
    module, examples = odd_module(name)
    components = gradients_of_module(module, examples).components
    assert components.sizes.sum() == components.total == sum(one.numel() for one in module.parameters())
    assert len(set(components.names)) == len(components)
    assert {one.name for one in components.components if not one.captured} == ODD[name][2]


@every_module
def test_gradients_are_those_of_autograd_one_by_one(name):
    module, examples = odd_module(name)
    gradients, found = gradients_of_module(module, examples), {}

    def consume(arrived, factors):
        for component, one in zip(arrived, factors, strict=True):
            assert component.name not in found
            found[component.name] = one.materialise()

    with gradients.ready():
        losses = gradients.capture(range(COUNT), consume)
    rows, wanted_losses = autograd_one_by_one(module, examples)
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-12, atol=0)
    assert set(found) == set(gradients.components.names)
    for component in gradients.components.components:
        wanted = torch.stack([component_vector(module, component, row) for row in rows])
        error = (found[component.name] - wanted).abs().max()
        assert error <= 1e-10 * wanted.abs().max(), (component.name, float(error))


@every_module
def test_some_components_alone(name):
    """Those with a rule and those without one, each by itself."""
    module, examples = odd_module(name)
    whole = gradients_of_module(module, examples)
    for captured in (True, False):
        names = [one.name for one in whole.components.components if one.captured == captured]
        if names:
            some = whole.of(whole.components.select(names))
            every = dict(zip(whole.components.names, VectorSpace(module, whole.components).slices, strict=True))
            wanted = gradient_vectors(whole, list(range(COUNT)))
            wanted = torch.cat([wanted[:, every[one]] for one in names], dim=1)
            found = gradient_vectors(some, [3, 1], tokens_per_batch=1)
            torch.testing.assert_close(found, wanted[[3, 1]], rtol=1e-10, atol=1e-12)


@every_module
def test_vectors_are_directions_and_back(name):
    module, examples = odd_module(name)
    gradients = gradients_of_module(module, examples)
    space = VectorSpace(module, gradients.components)
    vectors = torch.randn(2, space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = space.tangents(vectors)
    assert torch.equal(space.vectors(directions), vectors)
    rows, _ = autograd_one_by_one(module, examples)
    wanted = [[sum((row[key] * value[k]).sum() for key, value in directions.items()) for k in (0, 1)] for row in rows]
    found = gradient_vectors(gradients, list(range(COUNT))) @ vectors.T
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-10)


UNFIT = {"weight norm", "padded embedding"}  # torch: no forward-mode derivative; one that moves the padding too


@pytest.mark.parametrize("name", [name for name in ODD if name not in UNFIT])
def test_curvature_products_are_those_of_the_dense_matrix(name):
    module, examples = odd_module(name)
    ggn = TrainingGGN(gradients_of_module(module, examples), tokens_per_batch=40)
    vectors = torch.randn(2, ggn.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = vectors @ dense_ggn_of_module(module, ggn.space, examples.inputs)
    torch.testing.assert_close(ggn.multiply(vectors), wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


def test_an_operation_without_a_forward_mode_derivative_is_told_in_one_line():
    ggn = TrainingGGN(gradients_of_module(*odd_module("weight norm")))
    with pytest.raises(UserError, match=r"need forward-mode derivatives .*weight_norm.* method=ekfac or trak") as error:
        ggn.multiply(torch.ones(1, ggn.size, dtype=torch.float64))
    assert "\n" not in str(error.value)


def test_without_a_probe_every_layer_is_taken_to_run_once():
    module, examples = odd_module("a flattened batch")
    assert all(one.captured for one in discovered(module).components)
    assert gradients_of_module(module, examples).components.names == discovered(module).names


def test_the_probe_leaves_the_module_as_it_was():
    module, examples = odd_module("image norms")
    module.train()
    module[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    discovered(module, lambda: module(examples.inputs[:2]), 2)
    assert module.training and not any(one._forward_hooks for one in module.modules())
    assert [name for name, one in module.named_parameters() if not one.requires_grad] == ["0.bias"]
    assert all(one.grad is None for one in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_has_no_rule_is_named():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same"), nn.Linear(3, 3)
    )
    components = discovered(model)
    assert dict(zip(components.names, components.sizes, strict=True)) == {"0": 40, "norms": 8, "2": 148, "3": 12}
    assert layers_of(components).names == ["3"]
    assert "left out by choice: 0 (40), norms (8), 2 (148)" in layers_of(components).components.coverage_line()
    with pytest.raises(UserError, match="components without a factor rule: 0, norms, 2 "):
        layers_of(components, strict=True)
    with pytest.raises(UserError, match="a linear or convolutional layer"):
        layers_of(discovered(nn.BatchNorm2d(3)))
