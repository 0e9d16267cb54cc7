"""Captured per-example gradients against plain autograd, for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import VARIANTS, component_gradient, gradients_of, make_examples, oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdaexp.data.examples import Examples
from tdaexp.models.components import component_map

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def passed(model, examples, consume, components=None, **options):
    """One pass over all examples as one batch; returns losses [B]."""
    gradients = gradients_of(model, Examples(list(examples)), components, **options)
    with gradients.ready():
        return gradients.capture(range(len(gradients)), consume)


def captured(model, examples, names=None, **options):
    """Explicit gradients [B, size] by component name, and losses."""
    components = component_map(model) if names is None else component_map(model).select(names)
    found = {}

    def consume(arrived, factors):
        for component, one in zip(arrived, factors, strict=True):
            assert component.name not in found
            found[component.name] = one.materialise()

    return found, passed(model, examples, consume, components, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padded_batch_equals_autograd_one_by_one(models, variant, dtype):
    """Every entry of every component's gradient, for examples of different lengths in one batch."""
    model, examples = models(variant, dtype), make_examples(1, 4)
    found, _ = captured(model, examples)
    components = component_map(model)
    assert list(found) != [] and set(found) == set(components.names)
    for row, wanted in enumerate(oracle(model, examples)):
        for component, gradient in zip(components.components, wanted, strict=True):
            assert found[component.name].shape[1] == component.size
            error = (found[component.name][row] - gradient).norm() / gradient.norm()
            assert error < TOLERANCE[dtype], (variant, component.name, float(error))


def test_loss_is_the_mean_or_the_sum_over_the_predicted_tokens(models):
    model, examples = models("bloom-untied"), make_examples(2, 3)
    mean, means = captured(model, examples)
    total, sums = captured(model, examples, reduction="sum")
    counts = torch.tensor([int(example.loss_mask.sum()) for example in examples])
    assert counts.unique().numel() > 1
    torch.testing.assert_close(sums, means * counts)
    for row, wanted in enumerate(oracle(model, examples, "sum")):
        assert (total["embed"][row] - wanted[0]).norm() < 1e-6 * wanted[0].norm()
        assert (mean["embed"][row] * counts[row] - wanted[0]).norm() < 1e-6 * wanted[0].norm()


def test_any_measurement_may_replace_the_loss(models):
    """The margin of the first predicted token's logit over logit 0: its gradient against autograd's."""
    model, examples = models("gpt_neox-tied"), make_examples(3, 2)

    def margin(logits, targets, weights):
        return logits[:, 0].gather(1, targets[:, :1])[:, 0] - logits[:, 0, 0]

    found, values = captured(model, examples, loss=margin)
    component = component_map(model).components[0]
    for row, example in enumerate(examples):
        first = int(np.flatnonzero(example.loss_mask)[0])
        with torch.enable_grad():
            model.requires_grad_(True)
            logits = model(input_ids=torch.from_numpy(example.tokens)[None], use_cache=False).logits[0, first - 1]
            value = logits[example.tokens[first]] - logits[0]
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = dict(zip(names, torch.autograd.grad(value, parameters, allow_unused=True), strict=True))
        torch.testing.assert_close(values[row], value.detach())
        torch.testing.assert_close(found["embed"][row], component_gradient(model, component, gradients))


@pytest.mark.parametrize(
    "names",
    [
        ["layers.1.mlp.down"],
        ["layers.0.attn.k", "layers.1.mlp.up"],
        ["embed"],
        ["lm_head"],
        ["norms", "layers.1.attn.v"],
    ],
)
def test_subset_equals_full(models, names):
    model, examples = models("bloom-untied"), make_examples(4, 3)
    everything, _ = captured(model, examples)
    found, _ = captured(model, examples, names)
    assert set(found) == set(names)
    for name in names:
        torch.testing.assert_close(found[name], everything[name])


def test_backward_stops_at_the_lowest_component(models):
    """Below the lowest needed module no graph is recorded; above it there is one."""
    model, examples = models("llama-untied"), make_examples(5, 2)
    recorded = {}

    def note(name):
        return lambda module, arguments, output: recorded.__setitem__(name, output.requires_grad)

    watched = [f"model.layers.{number}.mlp.act_fn" for number in (0, 1)]
    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in watched]
    try:
        captured(model, examples, ["layers.1.attn.q"])
        assert recorded == dict(zip(watched, [False, True], strict=True))
        captured(model, examples)
        assert all(recorded.values())
    finally:
        for handle in handles:
            handle.remove()


def test_nothing_is_left_behind(models):
    """No stored gradients, no hooks, and training modes and requires_grad as they were."""
    model = models("gpt2-tied", torch.float32)
    model.train().requires_grad_(True)
    model.transformer.ln_f.bias.requires_grad_(False)
    try:
        captured(model, make_examples(6, 2))
        assert model.training and all(module.training for module in model.modules())
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["transformer.ln_f.bias"]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    finally:
        model.eval().requires_grad_(True)


def test_hooks_go_away_when_the_consumer_fails(models):
    model = models("olmo-tied")

    def fail(components, factors):
        raise KeyError("from the consumer")

    with pytest.raises(KeyError, match="from the consumer"):
        passed(model, make_examples(7, 2), fail)
    assert not any(module._forward_hooks for module in model.modules())


def test_components_with_one_input_arrive_together(models):
    model = models("llama-untied")
    groups = []
    passed(model, make_examples(8, 2), lambda found, factors: groups.append((found, factors)))
    names = [[component.name for component in found] for found, _ in groups]
    assert ["layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v"] in names
    assert ["layers.1.mlp.gate", "layers.1.mlp.up"] in names and ["layers.1.mlp.down"] in names
    for _, factors in groups:
        assert len(factors) == 1 or all(one.inputs is factors[0].inputs for one in factors)


def test_outside_frozen_is_refused(models):
    model = models("olmo-tied").requires_grad_(True)
    with pytest.raises(RuntimeError, match="frozen"):
        gradients_of(model, make_examples(9, 2)).capture([0, 1], lambda *_: None)


def test_half_precision_keeps_its_dtype_and_accumulates_in_float32(models):
    model, examples = models("llama-untied", torch.bfloat16), make_examples(10, 3)
    found, losses = captured(model, examples)
    exact, exact_losses = captured(models("llama-untied", torch.float32), examples)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact_losses, rtol=0.05, atol=0.05)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(value, exact[name]).min() > 0.97, name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.permutations(range(6)),
    st.integers(1, 6),
    st.integers(0, 23),
    st.sampled_from(["olmo-tied", "bloom-tied", "gpt2-tied"]),
)
def test_gradient_does_not_depend_on_company_order_or_padding(models, order, size, pad_id, variant):
    """Example 2's gradient alone equals its gradient in any batch, at any place, with any padding token."""
    model, examples = models(variant), make_examples(11, 6)
    chosen = [index for index in order if index == 2 or index in order[:size]]
    found, _ = captured(model, [examples[index] for index in chosen], pad_id=pad_id)
    alone, _ = captured(model, [examples[2]])
    for name, value in alone.items():
        torch.testing.assert_close(found[name][chosen.index(2)], value[0], rtol=1e-9, atol=1e-12)


def test_a_model_that_was_trained_with_activation_checkpointing_has_the_same_gradients(models):
    """Switching it on makes transformers let the embedding's output require gradients, which is no graph yet."""
    model, examples = models("llama-tied"), make_examples(7, 2)
    wanted, _ = captured(model, examples)
    model.train()
    model.activation_checkpointing_enable()
    try:
        found, _ = captured(model, examples)
    finally:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()
        model.eval()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)
