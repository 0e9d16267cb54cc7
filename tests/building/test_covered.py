"""A model that is changed between two calls is looked at anew: its gradients are autograd's each time."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import torch
from architectures import VOCABULARY, gradients, texts, tiny
from gradient_oracle import gradients_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tdaexp.building import covered
from tdaexp.building.covered import checked_map
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.given import Given

WORDS = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel({f"w{k}": k for k in range(VOCABULARY)}, unk_token="w0"))
)


def names_and_values(model):
    """The model's components, whose gradients are compared with autograd's through a call of the model."""
    components, examples = checked_map(Given(model, WORDS).load()), texts(3)
    found = gradient_vectors(gradients_of(model, examples, components), list(range(len(examples))))
    wanted = VectorSpace(model, components).vectors(gradients(model, examples))
    allowed = 1e-5 if found.dtype is torch.float32 else 1e-6  # norms are in float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=allowed * float(wanted.abs().max()))
    return components.names, found


def capped(model):
    model.config.final_logit_softcapping = 0.5


def scaled(model, *given):
    given[-1].logits = given[-1].logits * 5
    return given[-1]


def of_another_class(model):
    class Scaled(type(model)):
        def forward(self, *arguments, **named):
            return scaled(self, super().forward(*arguments, **named))

    model.__class__ = Scaled


def hooked(model):
    model.register_forward_hook(scaled)


def hooked_before(model):
    model.register_forward_pre_hook(
        lambda module, arguments, named: (arguments, {**named, "input_ids": named["input_ids"] // 2}),
        with_kwargs=True,
    )


def patched(model):
    own = weakref.ref(model)
    model.forward = lambda *arguments, **named: scaled(own(), type(own()).forward(own(), *arguments, **named))


CHANGES = [capped, of_another_class, hooked, hooked_before, patched]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [False, True])
def test_changes_of_its_forward_count(change, before):
    """`before`: the model was explained before it was changed."""
    model = copy.deepcopy(tiny("Gemma 2"))
    model.config.final_logit_softcapping = None
    first = names_and_values(model)[1] if before else None
    change(model)
    _, second = names_and_values(model)
    assert first is None or not torch.allclose(first, second)


def test_a_hook_on_a_layer_counts():
    model = copy.deepcopy(tiny("Llama, SmolLM2", torch.float64))
    _, first = names_and_values(model)
    handle = model.model.layers[0].mlp.register_forward_hook(lambda layer, given, output: output * 3)
    _, second = names_and_values(model)
    handle.remove()
    _, third = names_and_values(model)
    assert torch.equal(first, third) and not torch.allclose(first, second)


def test_adapters_that_are_put_on_and_taken_off_count():
    lora = pytest.importorskip("peft").LoraConfig
    model = copy.deepcopy(tiny("Llama, SmolLM2", torch.float64))
    names, _ = names_and_values(model)
    for adapter, target in (("a", "q_proj"), ("b", "down_proj")):
        with warnings.catch_warnings(action="ignore"):  # of a second one
            model.add_adapter(lora(r=2, target_modules=[target], init_lora_weights=False), adapter)
        model.double()
    for adapter, word in (("b", "mlp.down"), ("a", "attn.q")):
        model.set_adapter(adapter)
        now, _ = names_and_values(model)
        assert {name for name in now if "lora" in name} == {
            f"layers.{layer}.{word}.lora_{side}.{adapter}" for layer in (0, 1) for side in "AB"
        }
    model.disable_adapters()
    assert names_and_values(model)[0] == names


def test_other_sizes_count():
    model = copy.deepcopy(tiny("Llama, SmolLM2", torch.float64))
    names, first = names_and_values(model)
    model.resize_token_embeddings(VOCABULARY + 8)
    grown, second = names_and_values(model.requires_grad_(False))
    rows = 2 * 8 * model.config.hidden_size  # of the embedding and of the head
    assert grown == names and second.shape == (len(first), first.shape[1] + rows)


def test_what_was_not_changed_is_checked_once(monkeypatch):
    model = copy.deepcopy(tiny("Llama, SmolLM2", torch.float64))
    loaded = Given(model, WORDS).load()
    components = checked_map(loaded)
    monkeypatch.setattr(covered, "check_language_model", lambda *_: pytest.fail("checked again"))
    assert checked_map(loaded) is components and checked_map(Given(model, WORDS).load()) is components
