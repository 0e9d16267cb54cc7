import itertools
import math

import pytest
import torch

from tdaexp.data.examples import Batch, collate
from tdaexp.models.scratch import Scratch
from tdaexp.training.module import causal_loss, learning_rate_factor


@pytest.mark.parametrize("architecture", ["olmo", "gpt2", "bloom", "gpt_neox"])
def test_loss_equals_the_models_own(examples, architecture):
    values = {"n_layer": 2} if architecture in ("gpt2", "bloom") else {"num_hidden_layers": 2}
    width = {"gpt2": "n_embd"}.get(architecture, "hidden_size")
    heads = {"gpt2": "n_head", "bloom": "n_head"}.get(architecture, "num_attention_heads")
    config = Scratch(architecture, {**values, width: 16, heads: 2}, vocab_size=280, context=64)
    model = config.start([example.text for example in examples]).model.double()
    batch = collate(list(examples), pad_id=2)
    assert batch.attention.min() == 0 and batch.loss_mask.any(1).all()  # there is padding, and loss everywhere
    labels = batch.tokens.masked_fill(~batch.loss_mask, -100)
    theirs = model(input_ids=batch.tokens, attention_mask=batch.attention, labels=labels).loss
    ours = causal_loss(model, batch)
    assert ours.dtype == torch.float64
    # transformers computes its own loss in float32 whatever the logits are
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-6, atol=0)
    logits = model(input_ids=batch.tokens, attention_mask=batch.attention).logits
    by_hand = [
        -torch.log_softmax(logits[b, t - 1], 0)[batch.tokens[b, t]] for b, t in batch.loss_mask.nonzero().tolist()
    ]
    torch.testing.assert_close(ours, torch.stack(by_hand).mean(), rtol=1e-12, atol=0)


def test_padding_changes_no_gradient(start, examples):
    model = start.model.double().requires_grad_(True)
    batch = collate(list(examples[:3]), pad_id=2)
    wide = Batch(*(torch.nn.functional.pad(t, (0, 9)) for t in (batch.tokens, batch.attention, batch.loss_mask)))
    narrow = torch.autograd.grad(causal_loss(model, batch), list(model.parameters()))
    padded = torch.autograd.grad(causal_loss(model, wide), list(model.parameters()))
    for one, two in zip(narrow, padded, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-14)


def test_bfloat16_logits_are_reduced_in_float32(start, examples):
    loss = causal_loss(start.model.bfloat16(), collate(list(examples), pad_id=2))
    assert loss.dtype == torch.float32


def test_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    factors = [learning_rate_factor(step, steps=110, warmup=10) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0 and factors[60] == pytest.approx(0.5)
    assert factors[85] == pytest.approx(0.5 * (1 - math.sqrt(0.5)))
    assert all(a > b > 0 for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 5), (5, 50), (1, 1)])
def test_learning_rate_is_positive_at_every_step_of_short_runs(steps, warmup):
    factors = [learning_rate_factor(step, steps=steps, warmup=warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
