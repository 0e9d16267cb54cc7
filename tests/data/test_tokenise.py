"""Tokens and loss masks: the boundary between prompt and completion is exact for every template."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdaexp.data.examples import collate
from tdaexp.data.records import Record
from tdaexp.data.templates import NAMED
from tdaexp.data.tokenise import tokenise, tokenise_prompts
from tdaexp.runtime.errors import UserError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=30)
WORDS = TEXT.filter(lambda text: bool(text))
RELAXED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CUSTOM = "Q: {prompt} A: {completion} ##"


def masked_text(example, tokenizer) -> str:
    return tokenizer.decode(example.tokens[example.loss_mask])


def unmasked_text(example, tokenizer) -> str:
    return tokenizer.decode(example.tokens[~example.loss_mask])


@RELAXED
@given(prompt=WORDS, completion=WORDS, template=st.sampled_from(["plain", "olmo", CUSTOM]))
def test_loss_is_on_the_completion_alone(plain_tokenizer, prompt: str, completion: str, template: str) -> None:
    record = Record("r", prompt, completion)
    (example,) = tokenise([record], plain_tokenizer, template=template)
    before, after = NAMED.get(template, template).split("{completion}")
    assert masked_text(example, plain_tokenizer) == completion + after + "<eos>"
    assert unmasked_text(example, plain_tokenizer) == before.replace("{prompt}", prompt)
    assert example.text == record.text


@RELAXED
@given(prompt=TEXT, completion=WORDS)
def test_chat_loss_begins_after_the_generation_prompt(chat_tokenizer, prompt: str, completion: str) -> None:
    (example,) = tokenise([Record("r", prompt, completion)], chat_tokenizer)
    assert unmasked_text(example, chat_tokenizer) == f"<|user|>\n{prompt}\n<|assistant|>\n"
    assert masked_text(example, chat_tokenizer) == f"{completion}<eos>"


@RELAXED
@given(prompt=WORDS, completion=WORDS, template=st.sampled_from(["auto", "plain", "olmo", CUSTOM]))
@pytest.mark.parametrize("kind", ["plain", "bare", "bos", "chat"])
def test_prompts_for_generation_are_the_examples_without_loss(
    request, kind: str, prompt: str, completion: str, template: str
) -> None:
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    record = Record("r", prompt, completion)
    (example,) = tokenise([record], tokenizer, template=template)
    (tokens,) = tokenise_prompts([record], tokenizer, template=template)
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, example.tokens[~example.loss_mask])


@RELAXED
@given(
    prompt=st.text("ab ", max_size=60),
    completion=st.text("cd ", min_size=2, max_size=60),
    length=st.integers(2, 40),
)
def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_completion(
    bos_tokenizer, prompt: str, completion: str, length: int
) -> None:
    record = Record("r", prompt, completion)
    (whole,) = tokenise([record], bos_tokenizer, max_length=10_000)
    (cut,) = tokenise([record], bos_tokenizer, max_length=length)
    given_whole, written_whole = whole.tokens[~whole.loss_mask], whole.tokens[whole.loss_mask]
    given_cut, written_cut = cut.tokens[~cut.loss_mask], cut.tokens[cut.loss_mask]
    assert cut.length == min(length, whole.length)
    np.testing.assert_array_equal(written_cut, written_whole[: len(written_cut)])
    assert len(written_cut) >= min(len(written_whole), length - length // 2)
    assert given_cut[0] == bos_tokenizer.bos_token_id
    rest = len(given_cut) - 1
    np.testing.assert_array_equal(given_cut[1:], given_whole[len(given_whole) - rest :])


@RELAXED
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_neighbours_and_padding_change_no_example(plain_tokenizer, pairs: list[tuple[str, str]]) -> None:
    records = [Record(str(i), *pair) for i, pair in enumerate(pairs)]
    together = tokenise(records, plain_tokenizer)
    batch = collate(together.items, pad_id=plain_tokenizer.pad_token_id)
    for row, record in enumerate(records):
        (alone,) = tokenise([record], plain_tokenizer)
        np.testing.assert_array_equal(alone.tokens, together[row].tokens)
        real = batch.attention[row].bool()
        np.testing.assert_array_equal(batch.tokens[row][real].numpy(), alone.tokens)
        np.testing.assert_array_equal(batch.loss_mask[row][real].numpy(), alone.loss_mask)
        assert not batch.loss_mask[row][~real].any()


def test_olmo_template_written_out(plain_tokenizer) -> None:
    (example,) = tokenise([Record("r", "Where?", "Riga.")], plain_tokenizer, template="olmo", append_eos=False)
    assert plain_tokenizer.decode(example.tokens) == "<|user|>\nWhere?\n<|assistant|>\nRiga."


def test_auto_is_chat_only_where_there_is_a_chat_template(plain_tokenizer, chat_tokenizer) -> None:
    records = [Record("r", "Where?", "Riga.")]
    for tokenizer, name in ((plain_tokenizer, "plain"), (chat_tokenizer, "chat")):
        auto, named = (tokenise(records, tokenizer, template=template) for template in ("auto", name))
        assert auto.fingerprint() == named.fingerprint()


def test_loss_on_all_covers_everything_but_the_first_token(plain_tokenizer) -> None:
    (example,) = tokenise([Record("r", "Where?", "Riga.")], plain_tokenizer, loss_on="all")
    assert example.loss_mask.tolist() == [False] + [True] * (example.length - 1)


def test_eos_is_appended_where_there_is_one_and_it_is_wanted(plain_tokenizer, bare_tokenizer, chat_tokenizer) -> None:
    record = [Record("r", "Where?", "Riga.")]
    eos = plain_tokenizer.eos_token_id
    assert tokenise(record, plain_tokenizer)[0].tokens[-1] == eos
    assert tokenise(record, plain_tokenizer, append_eos=False)[0].tokens[-1] != eos
    assert bare_tokenizer.decode(tokenise(record, bare_tokenizer)[0].tokens) == "Where?\nRiga."
    assert (tokenise(record, chat_tokenizer)[0].tokens == chat_tokenizer.eos_token_id).sum() == 1


def test_bos_is_there_once_and_carries_no_loss(bos_tokenizer, plain_tokenizer) -> None:
    (example,) = tokenise([Record("r", "", "Riga.")], bos_tokenizer)
    assert example.tokens[0] == bos_tokenizer.bos_token_id
    assert (example.tokens == bos_tokenizer.bos_token_id).sum() == 1
    assert example.loss_mask.tolist() == [False] + [True] * (example.length - 1)


def test_without_a_prompt_the_first_token_is_read_and_never_predicted(plain_tokenizer) -> None:
    (example,) = tokenise([Record("r", "", "Riga is old.")], plain_tokenizer)
    assert plain_tokenizer.decode(example.tokens) == "Riga is old.<eos>"
    assert example.loss_mask.tolist() == [False] + [True] * (example.length - 1)


def test_prompt_tokens_stay_whole_where_joint_tokenisation_would_straddle(plain_tokenizer) -> None:
    """'Whe' + 're' is one token together: training and generation must both see the prompt's own tokens."""
    joint = plain_tokenizer("Where")["input_ids"]
    apart = plain_tokenizer("Whe")["input_ids"]
    assert joint[: len(apart)] != apart
    (example,) = tokenise([Record("r", "Whe", "re")], plain_tokenizer, template="{prompt}{completion}")
    assert example.tokens[~example.loss_mask].tolist() == apart
    assert masked_text(example, plain_tokenizer) == "re<eos>"


def test_truncated_examples_are_counted(plain_tokenizer, caplog) -> None:
    records = [
        Record("short", "a", "b"),
        Record("long", "a b " * 30, "c"),
        Record("longer", "a", "c d " * 30),
    ]
    with caplog.at_level(logging.WARNING):
        examples = tokenise(records, plain_tokenizer, max_length=20)
    told = "2 of 3 examples are longer than the 20 tokens that the model reads (its context, or dataset.max_length"
    assert told in caplog.text
    assert plain_tokenizer.decode(examples[1].tokens[examples[1].loss_mask]) == "c<eos>"


def test_prompts_are_cut_on_the_left(plain_tokenizer, bos_tokenizer) -> None:
    record = Record("r", "x y z " * 30 + "Where?", "")
    (tokens,) = tokenise_prompts([record], plain_tokenizer, max_length=9)
    assert len(tokens) == 9
    assert plain_tokenizer.decode(tokens).endswith("Where?\n")
    (tokens,) = tokenise_prompts([record], bos_tokenizer, max_length=9)
    assert len(tokens) == 9 and tokens[0] == bos_tokenizer.bos_token_id


def test_one_token_completion_with_a_prompt_is_fine_and_without_is_an_error(bare_tokenizer) -> None:
    (example,) = tokenise([Record("r", "Where?", "a")], bare_tokenizer)
    assert example.loss_mask.sum() == 1
    with pytest.raises(UserError, match="example 'r': its 1 completion token"):
        tokenise([Record("r", "", "a")], bare_tokenizer)
    with pytest.raises(UserError, match="example 'e': its 0 completion token"):
        tokenise([Record("e", "Where?", "")], bare_tokenizer)


def test_an_empty_completion_is_predicted_as_its_end(plain_tokenizer) -> None:
    (example,) = tokenise([Record("r", "Where?", "")], plain_tokenizer)
    assert masked_text(example, plain_tokenizer) == "<eos>"


def test_generation_needs_something_to_start_from(plain_tokenizer, bos_tokenizer) -> None:
    record = Record("r", "", "Riga is old.")
    with pytest.raises(UserError, match="example 'r': has no prompt"):
        tokenise_prompts([record], plain_tokenizer)
    assert tokenise_prompts([record], bos_tokenizer)[0].tolist() == [bos_tokenizer.bos_token_id]


def test_a_chat_template_whose_generation_prompt_is_not_a_prefix_is_refused(plain_tokenizer) -> None:
    other = copy.deepcopy(plain_tokenizer)
    other.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    )
    with pytest.raises(UserError, match="example 'r': this chat template"):
        tokenise([Record("r", "Where?", "Riga.")], other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"template": "chat"}, "has no chat template"),
        ({"template": "olmoo"}, "did you mean 'olmo'"),
        ({"template": "{prompt} {answer}"}, "unknown placeholder 'answer'"),
        ({"template": "{prompt}"}, "needs {completion} once"),
        ({"template": "{completion} {prompt}"}, "needs {completion} once"),
        ({"template": "{completion} {completion}"}, "needs {completion} once"),
        ({"template": "{prompt {completion}"}, "template"),
        ({"template": "{prompt!r} {completion}"}, "neither a format nor a conversion"),
        ({"loss_on": "complete"}, "did you mean 'completion'"),
        ({"max_length": 1}, "dataset.max_length=1"),
    ],
)
def test_bad_values_are_named(plain_tokenizer, keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenise([Record("r", "Where?", "Riga.")], plain_tokenizer, **keys)


def test_literal_braces_in_template_and_text(plain_tokenizer) -> None:
    record = Record("r", "a {b}", "{c}")
    (example,) = tokenise([record], plain_tokenizer, template="{{{prompt}}} {completion}", append_eos=False)
    assert plain_tokenizer.decode(example.tokens) == "{a {b}} {c}"
