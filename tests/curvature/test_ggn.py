"""Matrix-free GGN products against the dense matrix, in float64, for every architecture."""

from __future__ import annotations

import pytest
import torch
from dense_ggn import dense_ggn
from gradient_oracle import VARIANTS, build_model, gradients_of, make_examples

from tdaexp.curvature.ggn import TrainingGGN, ggn_product
from tdaexp.data.examples import Examples
from tdaexp.models.components import component_map
from tdaexp.runtime.errors import UserError

EXACT = ("gpt2", "gpt_neox")  # the others compute their norms in float32, in a float64 model too
NAMES = ["layers.0.attn.q", "layers.0.attn.o", "layers.1.mlp.up"]  # q without k and v: some rows of a fused matrix


def ggn_of(model, components, examples, tokens_per_batch=1024):
    return TrainingGGN(gradients_of(model, examples, components), tokens_per_batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_products_are_those_of_the_dense_matrix(variant):
    model = build_model(variant).requires_grad_(False)
    examples, components = make_examples(0, 5), component_map(model).select(NAMES)
    ggn = ggn_of(model, components, examples, tokens_per_batch=24)
    vectors = torch.randn(3, ggn.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = vectors @ dense_ggn(model, components, examples)
    tolerance = 1e-12 if variant.startswith(EXACT) else 1e-6
    torch.testing.assert_close(ggn.multiply(vectors), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.long
@pytest.mark.parametrize("variant", ["gpt2-tied", "gpt_neox-untied"])
def test_embeddings_heads_and_norms_are_covered_too(variant):
    model = build_model(variant).requires_grad_(False)
    examples, components = make_examples(1, 2), component_map(model)
    ggn = ggn_of(model, components, examples)
    vector = torch.randn(1, ggn.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = vector @ dense_ggn(model, components, examples)
    torch.testing.assert_close(ggn.multiply(vector), wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


def test_batches_and_padding_do_not_matter_and_subsets_are_means_over_themselves():
    model = build_model("gpt_neox-untied").requires_grad_(False)
    examples, components = make_examples(2, 6), component_map(model).select(NAMES)
    vectors = torch.randn(2, 16 * 17 * 2 + 24 * 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, many = (ggn_of(model, components, examples, tokens_per_batch=size) for size in (1, 1000))
    torch.testing.assert_close(one.multiply(vectors), many.multiply(vectors), rtol=1e-12, atol=1e-12)
    few = ggn_of(model, components, Examples([examples[4], examples[1]]))
    torch.testing.assert_close(many.multiply_some(vectors, [1, 4]), few.multiply(vectors), rtol=1e-12, atol=1e-12)
    assert [len(batch) for batch in one.batches] == [1] * 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_product_that_is_not_finite_names_the_example(value):
    model, examples = build_model("gpt_neox-untied"), make_examples(3, 9)
    odd = next(t for t in range(1, 24) if 0 < sum(t in one.tokens[:-1] for one in examples) < len(examples))
    model.gpt_neox.embed_in.weight.data[odd, 3] = value
    ggn = ggn_of(model, component_map(model).select(NAMES), examples, tokens_per_batch=1000)
    vector = torch.ones(1, ggn.size, dtype=torch.float64)
    with pytest.raises(UserError, match=r"the curvature of example '.*' is not finite") as caught:
        ggn.multiply(vector)
    named = str(caught.value).split("example '")[1].split("'")[0]
    assert odd in next(one for one in examples if one.id == named).tokens
    clean = [index for index, one in enumerate(examples) if odd not in one.tokens]
    assert ggn.multiply_some(vector, clean).isfinite().all()
    assert ggn.multiply_some(vector * torch.inf, clean).isnan().any()  # not the example's fault: left to the solver


def test_the_model_is_left_as_it_was():
    model = build_model("bloom-tied").train().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    components = component_map(model).select(NAMES)
    ggn = ggn_of(model, components, make_examples(0, 2))
    ggn.multiply(torch.ones(1, ggn.size, dtype=torch.float64))
    assert model.training and all(one.requires_grad and one.grad is None for one in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_squared_loss_gives_the_normal_matrix():
    """For y = x Wᵀ and 1/2 |y - target|², Σ_i Jᵀ J is I ⊗ Xᵀ X, whatever the targets."""
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(4, 3, dtype=torch.float64)
    found = ggn_product(lambda p: x @ p["w"].T, {"w": weight}, {"w": v}, lambda _, directions: directions)
    torch.testing.assert_close(found["w"], v @ (x.T @ x))


def test_a_bfloat16_model_has_float32_sums():
    model = build_model("gpt_neox-untied", torch.float32).requires_grad_(False)
    examples, components = make_examples(0, 3), component_map(model).select(NAMES)
    exact = ggn_of(model, components, examples)
    vectors = torch.randn(2, exact.size, generator=torch.Generator().manual_seed(0))
    wanted = exact.multiply(vectors)
    found = ggn_of(model.to(torch.bfloat16), components, examples).multiply(vectors)
    assert found.dtype == torch.float32
    assert ((found - wanted).norm(dim=1) < 0.05 * wanted.norm(dim=1)).all()


def test_attention_without_a_forward_mode_rule_gives_way_and_comes_back(caplog):
    from tdaexp.models import plain as module

    model = build_model("llama-tied").requires_grad_(False)
    examples, components = make_examples(3, 3), component_map(model).select(NAMES)
    vector = torch.randn(1, ggn_of(model, components, examples).size, dtype=torch.float64)
    wanted = ggn_of(model, components, examples).multiply(vector)
    model.set_attn_implementation("flex_attention")
    module._tell_switch.cache_clear()
    with caplog.at_level("INFO"):
        found = ggn_of(model, components, examples).multiply(vector)
    assert model.config._attn_implementation == "flex_attention"
    # eager attention takes its softmax in float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    assert "attention flex_attention gives way to eager" in caplog.text
