"""Blocks larger than a matrix against explicit matrices in float64, and the samples that they are made of."""

from __future__ import annotations

import pytest
import torch
from gradient_oracle import make_examples
from kronecker_oracle import samples_of
from module_oracle import dense_ggn_of_module, gradients_of_module, odd_module

from tdaexp.curvature import joint_blocks, probes
from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.joint_blocks import blocks_of, joint_inverse
from tdaexp.curvature.layers import layers_of
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import component_map
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.numbers import Numbers
from tdaexp.runtime.errors import UserError

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("objective", [Classes(), Numbers()])
def test_the_root_times_itself_is_the_loss_hessian(objective):
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = [one.expand(2, 3, 5) for one in torch.eye(5, dtype=torch.float64)]
    root = torch.stack([probes.root_of(objective)(logits, one) for one in units], dim=-1)
    hessian = torch.stack([objective.hessian(logits, one[None])[0] for one in units], dim=-1)
    torch.testing.assert_close(root @ root.mT, hessian, **EXACT)


def test_a_hessian_of_ones_own_has_no_root_here():
    class Own(Classes):
        def hessian(self, logits, directions):
            return directions

    with pytest.raises(UserError, match=r"Own has a loss Hessian of its own.*curvature_blocks=matrix"):
        probes.root_of(Own())


@pytest.mark.parametrize("name", ["convolutions", "encoder"])
def test_samples_on_every_unit_of_noise_add_up_to_the_ggn(name, monkeypatch):
    module, examples = odd_module(name)
    module.requires_grad_(False)
    every = gradients_of_module(module, examples)
    gradients = every.of(layers_of(every.components).components)
    total = 0.0
    for unit in torch.eye(3, dtype=torch.float64):
        monkeypatch.setattr(probes, "_normals", lambda ids, _, shape, unit=unit: unit.expand(len(ids), *shape))
        found = probes.probe_gradients(gradients, len(examples), 0, 2)
        total = total + found.T @ found / len(examples)
    module.requires_grad_(True)
    wanted = dense_ggn_of_module(module, VectorSpace(module, gradients.components), examples.inputs)
    torch.testing.assert_close(total, wanted, rtol=1e-8, atol=1e-10)


def test_noise_is_the_examples_own():
    one = probes._normals(["a", "b"], "0 0", (2, 3))
    assert torch.equal(probes._normals(["b"], "0 0", (4, 3))[0, :2], one[1]) and not torch.equal(one[0], one[1])
    assert not torch.equal(probes._normals(["b"], "0 1", (2, 3))[0], one[1])


def test_which_matrices_share_a_block(models):
    components = component_map(models("llama-bias"))
    layers = layers_of(components.select([name for name in components.names if name.startswith("layers.0.")]))

    def names(kind):
        return [[layer.name.removeprefix("layers.0.") for layer in block] for block in blocks_of(layers, kind)]

    attention, mlp = ["attn.q", "attn.k", "attn.v", "attn.o"], ["mlp.gate", "mlp.up", "mlp.down"]
    assert names("matrix") == [[name] for name in attention + mlp]
    assert names("joint") == [attention, mlp] and names("layer") == [attention + mlp]


@pytest.mark.parametrize("kind", ["joint", "layer"])
@pytest.mark.parametrize("variant", ["gpt_neox-untied", "llama-bias"])
def test_the_inverse_is_that_of_the_explicit_matrix(variant, kind, models, tmp_path):
    """(1 - ρ) Q Λ Qᵀ + ρ/M UᵀU + D, block by block; a fused matrix has its rows by component."""
    model, examples = models(variant), make_examples(3, 6)
    components = component_map(model)
    chosen = [name for name in components.names if ".attn." in name]
    layers = layers_of(components.select(chosen))
    factors = fit_factors(samples_of(model, layers, examples, 40), FactorSettings(), store=tmp_path / "f")
    space, noise = VectorSpace(model, layers.components), torch.Generator().manual_seed(1)
    samples, vectors = (torch.randn(count, space.size, dtype=torch.float64, generator=noise) / 9 for count in (20, 2))
    blocks = blocks_of(layers, kind)
    found = joint_inverse(factors, blocks, space, samples, damping=Damping(None, 0.3))(vectors)
    places = dict(zip(layers.components.names, space.slices, strict=True))
    for block in blocks:
        columns, parts = [], []
        spectra = [factors[layer.name].spectrum for layer in block]
        share = 20 / (20 + sum(float((one / (one + 0.3 * one.mean())).sum()) for one in spectra))
        for layer in block:
            columns += [k for name, _ in layer.members for k in range(places[name].start, places[name].stop)]
            one = factors[layer.name]
            basis = torch.kron(one.q_out, one.q_in)
            damped = (1 - share) * one.spectrum.flatten() + 0.3 * one.spectrum.mean()
            parts.append(basis @ torch.diag(damped) @ basis.T)
        own = samples[:, columns]
        matrix = torch.block_diag(*parts) + share / len(own) * own.T @ own
        torch.testing.assert_close(found[:, columns], torch.linalg.solve(matrix, vectors[:, columns].T).T, **EXACT)


def test_samples_that_do_not_fit_are_refused(monkeypatch):
    module, examples = odd_module("encoder")
    monkeypatch.setattr("tdaexp.runtime.limits.available_bytes", lambda device: 1e3)
    layers = layers_of(gradients_of_module(module, examples).components)
    with pytest.raises(UserError, match=r"block_samples=9 needs about .* GB of memory.*curvature_blocks=matrix"):
        joint_blocks.check_memory(joint_blocks.JointSettings("layer", 9, 0), layers, torch.float64)
