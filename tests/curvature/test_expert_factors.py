"""Covariances of experts: means over the tokens that the model's own router sends to each."""

from __future__ import annotations

import pytest
import torch
from architectures import texts, tiny
from kronecker_oracle import samples_of

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import layers_of
from tdaexp.models.components import component_map


@pytest.fixture(autouse=True)
def exact_routers(monkeypatch):
    """Routers stay in float64, too, which some make float32 before their softmax (`exact_softmax`)."""
    own = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "float", lambda one: one if one.dtype == torch.float64 else own(one, torch.float32)
    )


def routed(model, examples):
    """By (layer, expert): what its tokens are [n, d], seen by a hook, each example alone."""
    found = {}

    def see(number):
        def hook(module, arguments):
            states, chosen = arguments[0].flatten(0, -2), arguments[1]
            for expert in range(module.num_experts):
                here = (chosen == expert).any(-1)
                found.setdefault((number, expert), []).append(states[here])

        return hook

    layers = model.model.layers
    handles = [one.mlp.experts.register_forward_pre_hook(see(number)) for number, one in enumerate(layers)]
    for one in examples:
        model(input_ids=torch.from_numpy(one.tokens[:-1])[None])  # nothing at the last position reaches the loss
    for handle in handles:
        handle.remove()
    return {key: torch.cat(rows) for key, rows in found.items()}


@pytest.mark.parametrize("family", ["Mixtral", "Qwen 3, experts"])
@pytest.mark.parametrize("mode", ["ekfac", "kfac"])
def test_an_expert_s_positions_are_those_that_reach_it(family, mode, tmp_path):
    model, examples = tiny(family, torch.float64), texts(6)
    components = component_map(model)
    experts = layers_of(components.select([name for name in components.names if ".experts." in name]))
    factors = fit_factors(samples_of(model, experts, examples, 40), FactorSettings(mode), store=tmp_path / "f")
    seen, everywhere = routed(model, examples), sum(len(one.tokens) - 1 for one in examples)
    for layer in experts.layers:
        words = layer.name.split(".")
        read = seen[int(words[1]), int(words[4])]
        assert 0 < len(read) < everywhere
        covariance = factors.covariance(layer.name)
        assert covariance.tokens == len(read)
        if words[-1] != "down":  # which reads what the others gave
            torch.testing.assert_close(covariance.inputs, read.T @ read / len(read), rtol=1e-9, atol=1e-13)
        if mode == "kfac":
            gradient = torch.ones(1, layer.outputs, layer.inputs, dtype=torch.float64)
            curvature = torch.kron(covariance.outputs, covariance.inputs) * (len(read) / len(examples))
            damped = curvature + 0.1 * torch.eye(len(curvature), dtype=torch.float64)
            ready = factors.precondition(layer.name, gradient, Damping(0.1))
            solved = torch.linalg.solve(damped, gradient.flatten()).view_as(gradient)
            torch.testing.assert_close(ready, solved, rtol=1e-8, atol=1e-10)


def test_an_expert_that_nothing_reaches_has_no_curvature(tmp_path):
    model, examples = tiny("Mixtral", torch.float64), texts(1)
    components = component_map(model)
    experts = layers_of(components.select([name for name in components.names if ".experts." in name]))
    factors = fit_factors(samples_of(model, experts, examples, 40), FactorSettings("kfac"), store=tmp_path / "f")
    idle = [key for key, read in routed(model, examples).items() if not len(read)]
    assert idle
    for layer in experts.layers:
        words = layer.name.split(".")
        if (int(words[1]), int(words[4])) in idle:
            gradient = torch.ones(1, layer.outputs, layer.inputs, dtype=torch.float64)
            torch.testing.assert_close(factors.precondition(layer.name, gradient, Damping(0.5)), 2 * gradient)
