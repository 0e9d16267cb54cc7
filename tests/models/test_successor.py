"""Which checkpoints may follow each other, and what they share."""

from __future__ import annotations

import pytest

from tdaexp.models.components import component_map
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.scratch import Scratch
from tdaexp.models.successor import check_successor, shared_components
from tdaexp.runtime.errors import UserError

TEXTS = ["the cat sat on the mat", "a dog ran over the hill and far away"]


def made(architecture="gpt_neox", layers=2, texts=TEXTS, vocab=300, **config) -> LoadedModel:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    return Scratch(architecture, sizes | config, vocab_size=vocab, context=16).start(list(texts))


def shared(first: LoadedModel, second: LoadedModel, *names):
    return shared_components(component_map(first.model), component_map(second.model), *names)


@pytest.fixture(scope="module")
def first() -> LoadedModel:
    return made()


def test_a_model_follows_itself_with_everything_shared(first):
    check_successor(first, first, "x")
    one, two = shared(first, first)
    assert one.names == two.names and not one.skipped
    assert {"embed", "lm_head", "norms", "layers.0.attn.q"} <= set(one.names)


def test_added_tokens_are_allowed_and_what_they_resize_is_not_shared(first):
    """As in instruction tuning: new tokens, a resized embedding and head."""
    second = made()
    second.tokenizer.add_tokens(["### Response:", "### End"])
    second.model.resize_token_embeddings(len(second.tokenizer))
    check_successor(first, second, "x")
    one, two = shared(first, second)
    assert {"embed", "lm_head"}.isdisjoint(one.names) and {"embed", "lm_head"} <= set(one.unchosen)
    assert "embed (" in one.coverage_line() and "lm_head (" in two.coverage_line()
    assert one.names == two.names and "layers.1.mlp.up" in one.names
    with pytest.raises(UserError, match=r"'lm_head' has another shape in model\.finetuned"):
        shared(first, second, ["layers.0.attn.q", "lm_head"])
    assert shared(first, second, ["layers.0.attn.q"])[1].names == ["layers.0.attn.q"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layers": 3}, "has 3 layers, while model.pretrained has 2"),
        ({"architecture": "llama"}, "a llama model, while model.pretrained is gpt_neox"),
        ({"texts": ["zzz qqq zzz qqq", "xyz xyz"]}, "another tokeniser"),
    ],
)
def test_what_cannot_follow(first, other, message):
    with pytest.raises(UserError, match=rf"model\.finetuned=hub/x: .*{message}"):
        check_successor(first, made(**other), "hub/x")


def test_a_tokeniser_that_cuts_texts_otherwise_is_refused(first):
    """The vocabulary alone does not show it."""
    other = made()
    from tokenizers import normalizers

    other.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="cuts the same text in another way"):
        check_successor(first, other, "x")


def test_nothing_shared_is_an_error(first):
    with pytest.raises(UserError, match="shares no component"):
        shared(first, made(hidden_size=12))
