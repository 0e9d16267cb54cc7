"""EK-FAC on an adapter's matrices against the dense Kronecker oracle, and what is not fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapted import write_adapter
from gradient_oracle import build_model, make_examples
from kronecker_oracle import dense, samples_of
from test_factors import drawn

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import layers_of
from tdaexp.models.components import component_map
from tdaexp.models.loaded import quiet_transformers
from tdaexp.selection.parts import chosen


@pytest.fixture(scope="module", params=["llama-bias", "gpt2-tied"])
def adapted(request, tmp_path_factory):
    """A model with biases, or with a fused matrix, and an adapter."""
    folder = tmp_path_factory.mktemp("adapted")
    names = {"gpt2-tied": ["c_attn", "c_proj"]}.get(request.param, ["q_proj", "v_proj", "down_proj"])
    model = build_model(request.param)
    with quiet_transformers():
        model.save_pretrained(folder / "base")
        write_adapter(folder / "base", folder / "adapter", target_modules=names, fan_in_fan_out="c_attn" in names)
        model.load_adapter(str(folder / "adapter"))
    return model.double().eval()


def test_factors_and_inverse_against_the_dense_oracle(adapted, tmp_path):
    examples, layers = make_examples(3, 9), layers_of(chosen(component_map(adapted), None))
    assert all(layer.name.endswith(("lora_A", "lora_B")) for layer in layers.layers)
    factors = fit_factors(samples_of(adapted, layers, examples, 40), FactorSettings(), store=tmp_path / "f")
    labels = drawn(adapted, examples, factors)
    for layer in layers.layers:
        wanted = dense(adapted, examples, labels, [layer.name])
        found, one = factors.covariance(layer.name), factors[layer.name]
        scale = {"rtol": 1e-9, "atol": 1e-13}
        torch.testing.assert_close(found.inputs, wanted.a, **scale)
        torch.testing.assert_close(found.outputs, wanted.s, **scale)
        basis = torch.kron(one.q_out, one.q_in)
        spectrum = (wanted.gradients.flatten(1) @ basis).square().mean(0)
        torch.testing.assert_close(one.spectrum.flatten(), spectrum, **scale)
        damping, gradient = 0.3 * float(spectrum.mean()), wanted.gradients[2]
        solved = torch.linalg.solve(basis @ torch.diag(spectrum + damping) @ basis.T, gradient.flatten())
        ready = factors.precondition(layer.name, gradient[None], Damping(damping))[0]
        torch.testing.assert_close(ready.flatten(), solved, rtol=1e-8, atol=1e-9 * float(solved.abs().max()))


def test_nothing_of_the_base_is_fitted(adapted):
    components = component_map(adapted)
    layers = layers_of(chosen(components, None))
    rank = 3
    assert all(rank in (layer.outputs, layer.inputs) for layer in layers.layers)
    assert len(chosen(components, "all")) > len(layers) and len(chosen(components, "blocks")) > len(layers)
    inputs = {layer.name: layer.inputs for layer in layers.layers}
    assert np.all([inputs[name] == rank for name in inputs if name.endswith("lora_B")])
