"""Factors, eigenbases, Λ and the damped inverse against the dense oracle in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import make_examples
from kronecker_oracle import dense, samples_of

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.precondition import LayerFactors
from tdaexp.models.components import component_map
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import names_of

VARIANTS = ["gpt_neox-untied", "bloom-tied", "gpt2-tied", "llama-bias", "olmo-tied"]
EXACT = dict(rtol=1e-9, atol=1e-13)


def layers(model, names=None, strict=False):
    components = component_map(model)
    return layers_of(components.select(names or names_of(components, "blocks")), strict)


def fit(model, examples, folder, mode="ekfac", names=None, tokens_per_batch=40, **settings):
    chosen = FactorSettings(mode, **settings)
    return fit_factors(samples_of(model, layers(model, names), examples, tokens_per_batch), chosen, store=folder)


def drawn(model, examples, factors, tokens_per_batch=40) -> dict[str, list[int]]:
    """The stored labels by example id."""
    source = samples_of(model, layers(model), examples, tokens_per_batch)
    stored = factors.labels()
    chunks = np.array_split(np.arange(len(source.batches)), len(stored))
    found = {}
    for chunk, rows in zip(chunks, stored, strict=True):
        members = [index for batch in chunk for index in source.batches[batch]]
        for index, row in zip(members, rows, strict=False):
            count = int(examples[index].loss_mask[1:].sum())
            assert (row[:count] >= 0).all() and (row[count:] == -1).all()
            found[examples[index].id] = row[:count].tolist()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_covariances_lambda_and_inverse_against_the_dense_oracle(variant, models, tmp_path):
    model, examples = models(variant), make_examples(3, 9)
    factors = fit(model, examples, tmp_path / "f")
    labels = drawn(model, examples, factors)
    rng = torch.Generator().manual_seed(5)
    for layer in layers(model).layers:
        wanted = dense(model, examples, labels, [name for name, _ in layer.members])
        found = factors.covariance(layer.name)
        assert found.tokens == wanted.positions
        torch.testing.assert_close(found.inputs, wanted.a, **EXACT)
        torch.testing.assert_close(found.outputs, wanted.s, **EXACT)
        one = factors[layer.name]
        basis = torch.kron(one.q_out, one.q_in)
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-10)
        spectrum = (wanted.gradients.flatten(1) @ basis).square().mean(0).view_as(one.spectrum)
        torch.testing.assert_close(one.spectrum, spectrum, **EXACT)
        gradients = torch.randn(2, layer.outputs, layer.inputs, generator=rng, dtype=torch.float64)
        damping = 0.3 * float(one.spectrum.mean())
        for gradient in gradients:
            solved = torch.linalg.solve(
                basis @ torch.diag(spectrum.flatten() + damping) @ basis.T, gradient.flatten()
            ).view_as(gradient)
            for how in (Damping(damping), Damping(relative=0.3)):
                ready = factors.precondition(layer.name, gradient[None], how)[0]
                torch.testing.assert_close(ready, solved, rtol=1e-8, atol=1e-9 * float(solved.abs().max()))


@pytest.mark.parametrize("mode", ["kfac", "diagonal"])
def test_other_modes_against_the_dense_oracle(mode, models, tmp_path):
    model, examples = models("gpt_neox-untied"), make_examples(3, 9)
    factors = fit(model, examples, tmp_path / "f", mode)
    labels = drawn(model, examples, factors)
    for layer in layers(model).layers[:3]:
        wanted = dense(model, examples, labels, [name for name, _ in layer.members])
        gradient = wanted.gradients[0]
        ready = factors.precondition(layer.name, gradient, Damping(0.01))
        torch.testing.assert_close(ready, wanted.solve(mode, gradient, 0.01), rtol=1e-8, atol=1e-10)


def test_ekfac_against_the_dense_oracle_with_its_own_eigenbasis(models, tmp_path):
    """Eigenvalues that are not zero are distinct here, so that the eigenbasis is determined where gradients are."""
    model, examples = models("gpt_neox-untied"), make_examples(4, 12, shortest=14, longest=20)
    factors = fit(model, examples, tmp_path / "f")
    labels = drawn(model, examples, factors)
    for name in ("layers.0.attn.qkv", "layers.1.mlp.down"):
        layer = layers(model)[name]
        wanted = dense(model, examples, labels, [member for member, _ in layer.members])
        for matrix in (wanted.a, wanted.s):
            values = torch.linalg.eigvalsh(matrix)
            assert values[values > 1e-9].diff().min() > 1e-6
        gradient = wanted.gradients[1]
        ready = factors.precondition(name, gradient, Damping(0.02))
        torch.testing.assert_close(ready, wanted.solve("ekfac", gradient, 0.02), rtol=1e-6, atol=1e-7)


def test_the_drawn_labels_follow_the_models_distribution(models, tmp_path):
    """Many copies of one example: the label of position t has the frequencies of the softmax at t, not of t + 1."""
    model = models("olmo-tied")
    (one,) = make_examples(0, 1, shortest=6, longest=6)
    mask = np.array([False, True, True, True, True, True])
    from tdaexp.data.examples import Example, Examples

    copies = Examples([Example(f"c{n}", one.tokens, mask, "") for n in range(4000)])
    factors = fit(model, copies, tmp_path / "f", names=["layers.1.mlp.down"], tokens_per_batch=6000)
    labels = factors.labels().flatten(0, 1)
    labels = labels[labels[:, 0] >= 0]
    assert labels.shape == (4000, 5)
    with torch.no_grad():
        wanted = model(torch.from_numpy(one.tokens)[None]).logits[0, :5].softmax(-1)
    for t in range(5):
        found = torch.bincount(labels[:, t].long(), minlength=24) / 4000
        assert float((found - wanted[t]).abs().sum()) < 0.1  # about sqrt(24 / 4000)
        others = [float((found - wanted[u]).abs().sum()) for u in range(5) if u != t]
        assert min(others) > 0.15


@pytest.mark.parametrize(
    "change", [dict(tokens_per_batch=1), dict(tokens_per_batch=10_000), dict(partitions=3), dict(saves=1)]
)
def test_batches_partitions_and_padding_do_not_matter(change, models, tmp_path):
    model, examples = models("gpt_neox-untied"), make_examples(3, 9)
    usual, other = (fit(model, examples, tmp_path / str(n), **how) for n, how in enumerate(({}, change)))
    for name in usual.names:
        torch.testing.assert_close(other.covariance(name).inputs, usual.covariance(name).inputs, **EXACT)
        torch.testing.assert_close(other.covariance(name).outputs, usual.covariance(name).outputs, **EXACT)
        gradient = torch.ones(1, usual.layers[name].outputs, usual.layers[name].inputs, dtype=torch.float64)
        one, two = (f.precondition(name, gradient, Damping(0.1)) for f in (usual, other))
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


def test_a_fused_matrix_is_one_layer_and_shared_inputs_one_covariance(models, tmp_path):
    neox, llama = models("gpt_neox-untied"), models("llama-bias")
    assert layers(neox).names[:2] == ["layers.0.attn.qkv", "layers.0.attn.o"]
    assert [name for name, _ in layers(neox)["layers.0.attn.qkv"].members] == [f"layers.0.attn.{x}" for x in "qkv"]
    assert layers(neox, ["layers.0.attn.q", "layers.0.attn.v"]).names == ["layers.0.attn.qv"]
    factors = fit(llama, make_examples(3, 5), tmp_path / "f")
    one, two = (factors.covariance(f"layers.0.attn.{x}") for x in "qk")
    assert torch.equal(one.inputs, two.inputs) and one.outputs.shape != two.outputs.shape


def test_the_head_counts_its_own_positions(models, tmp_path):
    model, examples = models("gpt_neox-untied"), make_examples(3, 6)
    factors = fit(model, examples, tmp_path / "f", names=["lm_head"])
    found = factors.covariance("lm_head")
    assert found.tokens == sum(int(one.loss_mask[1:].sum()) for one in examples)


def test_damping_leaves_the_factors_as_they_are(models, tmp_path):
    factors = fit(models("olmo-tied"), make_examples(3, 5), tmp_path / "f")
    name = factors.names[0]
    before = factors[name].spectrum.clone()
    gradient = torch.ones(1, *before.shape, dtype=torch.float64)
    first = factors.precondition(name, gradient, Damping(0.5))
    assert torch.equal(first, factors.precondition(name, gradient, Damping(0.5)))
    assert torch.equal(before, factors[name].spectrum)


def test_components_without_a_rule_are_named(models):
    components = component_map(models("olmo-tied"))
    found = layers_of(components)
    assert "embed" in found.components.unchosen and "embed" in found.components.coverage_line()
    with pytest.raises(UserError, match="without a factor rule: embed"):
        layers_of(components, strict=True)
    with pytest.raises(UserError, match="none of the chosen components"):
        layers_of(components.select(["embed"]))


def test_no_damping_on_a_rank_deficient_factor_is_refused(models, tmp_path):
    factors = fit(models("olmo-tied"), make_examples(3, 2), tmp_path / "f", "kfac")
    gradient = torch.ones(1, 16, 16, dtype=torch.float64)
    with pytest.raises(UserError, match=r"layer 'layers.0.attn.q': .* eigenvalues are zero .*method.damping"):
        factors.precondition("layers.0.attn.q", gradient, Damping(0.0))
    with pytest.raises(UserError, match="not negative"):
        Damping(-1.0)


@pytest.mark.parametrize("mode", ["ekfac", "diagonal"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_at_once(mode, value, tmp_path):
    from gradient_oracle import build_model

    model, examples = build_model("gpt_neox-untied"), make_examples(3, 9)
    odd = next(t for t in range(24) if 0 < sum(t in one.tokens[:-1] for one in examples) < len(examples))
    model.gpt_neox.embed_in.weight.data[odd, 3] = value
    guilty = {one.id for one in examples if odd in one.tokens}
    with pytest.raises(UserError, match=r"layer 'layers.0.*': an activation of example '") as caught:
        fit(model, examples, tmp_path / "f", mode)
    assert str(caught.value).split("example '")[1].split("'")[0] in guilty


def test_a_fault_above_is_not_blamed_on_the_layers_below(tmp_path):
    from gradient_oracle import build_model

    model = build_model("gpt_neox-untied")
    model.gpt_neox.layers[1].attention.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layer '(layers.1|lm_head).*': an (activation|output gradient) of example"):
        fit(model, make_examples(3, 4), tmp_path / "f")


@pytest.mark.parametrize("squares", [False, True])
def test_small_eigenvalues_of_full_rank_need_no_damping(squares):
    """Factors whose eigenvalues fall to 1e-5 of the largest: their products fall below float32's accuracy."""
    values = torch.logspace(0, -5, 12, dtype=torch.float64)
    spectrum = torch.outer(values, values).float()
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)).double())[0]
    layer = LayerFactors("a", basis.float(), basis.float(), spectrum, squares)
    gradient = torch.ones(1, 12, 12, dtype=torch.float64)
    found = layer.precondition(gradient, Damping(0.0))
    wanted = basis @ ((basis.T @ gradient @ basis) / torch.outer(values, values)) @ basis.T
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(("squares", "left"), [(False, 1e-7), (True, 1e-14), (True, 0.0)])
def test_what_rounding_leaves_of_a_missing_direction_needs_damping(squares, left):
    values = torch.logspace(0, -3, 12, dtype=torch.float64)
    values[-1] = left
    spectrum = torch.outer(values, torch.linspace(1, 2, 12, dtype=torch.float64)).float()
    layer = LayerFactors("a", torch.eye(12), torch.eye(12), spectrum, squares)
    with pytest.raises(UserError, match="layer 'a': 12 of 144 eigenvalues are zero to rounding"):
        layer.precondition(torch.ones(1, 12, 12), Damping(0.0))
    layer.precondition(torch.ones(1, 12, 12), Damping(1e-3))
