"""The check of a loaded model against autograd: what it lets pass, and each kind of mistake that it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, tiny
from gradient_oracle import gradients_of
from torch import nn

from tdaexp.building import covered, self_check
from tdaexp.building.self_check import LENGTH, TOLERANCE, check, check_language_model, outcome_of, random_texts
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients import assembly, norms
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.models.components import component_map
from tdaexp.models.discovery import discovered
from tdaexp.models.loaded import LoadedModel
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.errors import UserError


def run(family, dtype=torch.float32):
    model = tiny(family, dtype)
    check_language_model(model, component_map(model), NextToken(), family)


@pytest.fixture
def compared(monkeypatch):
    """Of each component that the last check compared: the error's norm, and that of autograd's gradient."""
    right, found = self_check._errors, {}

    def noted(*given):
        found.clear()
        found.update(right(*given))
        return found

    monkeypatch.setattr(self_check, "_errors", noted)
    return found


@pytest.mark.parametrize("family", ["Gemma 3 (text)", "OPT", "Phi 3", "Qwen 2, experts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_right_gradients_pass(compared, family, dtype):
    run(family, dtype)
    assert list(compared) == [one.name for one in component_map(tiny(family)).components if one.captured]
    errors, wanted = map(np.array, zip(*compared.values(), strict=True))
    assert (wanted > 0).all() and np.linalg.norm(errors) <= TOLERANCE[dtype] * np.linalg.norm(wanted)


def test_a_norm_that_is_one_plus_its_weight_is_told_from_others(monkeypatch):
    monkeypatch.setattr(norms, "zero_weight", lambda module: 0.0)
    with pytest.raises(UserError, match=r"component 'norms' is not autograd's \(relative error 1,"):
        run("Gemma 2")
    run("Llama, SmolLM2")


def test_a_scaled_embedding_is_not_taken_for_a_plain_one(monkeypatch):
    monkeypatch.setattr(assembly, "_plain", lambda module, kind: True)
    with pytest.raises(UserError, match="component 'embed' is not autograd's"):
        run("Gemma 2")


def test_examples_that_are_exchanged_are_seen(monkeypatch):
    right = assembly.part_factors

    def exchanged(part, module, inputs, delta):
        return right(part, module, inputs, delta.flip(0) if part.module.endswith("1.mlp.up_proj") else delta)

    monkeypatch.setattr(assembly, "part_factors", exchanged)
    with pytest.raises(UserError, match=r"tiny: .*component 'layers.1.mlp.up'.*, allowed 0.0001"):
        model = tiny("Llama, SmolLM2")
        check_language_model(model, component_map(model), NextToken(), "tiny")


def test_a_small_mistake_is_let_pass_and_remembered(monkeypatch):
    right = assembly.part_factors

    def rough(part, module, inputs, delta):
        return right(part, module, inputs, delta * (1 + 3e-5) if part.module.endswith("1.mlp.up_proj") else delta)

    monkeypatch.setattr(assembly, "part_factors", rough)
    model = tiny("Llama, SmolLM2")
    assert outcome_of(model) is None
    check_language_model(model, component_map(model), NextToken(), "tiny")
    found = outcome_of(model)
    assert found.component == "layers.1.mlp.up" and found.error == pytest.approx(3e-5, rel=0.05)
    assert (found.checked, found.formed, found.dtype) == (len(component_map(model)), 0, torch.float32)


def test_the_router_s_weight_counts(monkeypatch):
    right = assembly.expert_factors

    def unweighted(module, parts, read, delta, examples):
        return right(module, parts, [read[0], read[1], torch.ones_like(read[2])], delta, examples)

    monkeypatch.setattr(assembly, "expert_factors", unweighted)
    with pytest.raises(UserError, match=r"component 'layers.\d.mlp.experts.\d.\w+'"):
        run("Mixtral")


def test_texts_grow_until_each_expert_reads_one(monkeypatch):
    """One token reaches two of four experts in each layer; then more do."""
    lengths = []

    def noted(vocabulary, length=LENGTH, classes=0):
        lengths.append(length)
        return random_texts(vocabulary, 3 if len(lengths) == 1 else length, classes)

    monkeypatch.setattr("tdaexp.building.self_check.random_texts", noted)
    run("Mixtral")
    assert len(lengths) > 1 and lengths == sorted(lengths)


def test_the_padding_token_s_row_is_not_trained(compared):
    """Its gradient is zero, as autograd's is, though texts may hold the token."""
    model, texts = tiny("Llama, SmolLM2"), random_texts(VOCABULARY)
    embedding, components = model.get_input_embeddings(), component_map(model).select(["embed"])
    token = int(texts[0].tokens[2])

    def rows():
        found = gradient_vectors(gradients_of(model, texts, components), range(len(texts)))
        return found.reshape(len(texts), *embedding.weight.shape)

    before = rows()
    embedding.padding_idx = token
    try:
        run("Llama, SmolLM2")
        after = rows()
    finally:
        embedding.padding_idx = None
    assert compared["embed"][1] > 0
    assert before[0, token].any() and not after[:, token].any()
    before[:, token] = 0
    assert torch.equal(before, after)


def test_nothing_is_left_behind():
    model = tiny("Mistral")
    run("Mistral")
    assert not any(one.requires_grad or one.grad is not None for one in model.parameters())
    assert not any(one._forward_hooks for one in model.modules())


def test_a_model_with_too_little_covered_is_refused(monkeypatch):
    model = tiny("Llama, SmolLM2")
    loaded = LoadedModel(model, None, "x", "plain", 16)
    whole = component_map(model)
    monkeypatch.setattr(covered, "_found", {})
    monkeypatch.setattr(covered, "component_map", lambda *_: covered._without(model, whole, {"lm_head"}))
    with pytest.raises(UserError, match=r"cover 8\d.\d % .*model.min_coverage=0.9; skipped are lm_head.weight"):
        covered.checked_map(loaded)


def test_a_module_of_somebodys_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)).eval()
    examples = TensorExamples(["a", "b"], torch.randn(2, 4), torch.tensor([0, 2]))
    model(torch.ones(1, 4)).sum().backward()  # a training's last step leaves gradients
    kept = [one.grad.clone() for one in model.parameters()]
    assert check(model, discovered(model), Classes(), examples, "mine") == []
    assert all(one.requires_grad for one in model.parameters())
    assert all(torch.equal(one.grad, old) for one, old in zip(model.parameters(), kept, strict=True))
