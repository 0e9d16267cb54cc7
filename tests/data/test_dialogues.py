"""Dialogues: the turns that are read, and the loss on the assistant's turns alone."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

from tdaexp.data.dialogues import told, turns_of
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise, tokenise_prompts
from tdaexp.runtime.errors import UserError

SAID = (("system", "Be brief."), ("user", "Where?"), ("assistant", "Riga."), ("user", "Since when?"))
RECORD = Record("r", "Be brief.\nWhere?\nRiga.\nSince when?", "1201.", said=SAID)


def pieces(example, tokenizer) -> list[tuple[bool, str]]:
    """Runs of tokens with loss or without, as texts."""
    cuts = [0, *(np.flatnonzero(np.diff(example.loss_mask)) + 1), example.length]
    return [(bool(example.loss_mask[a]), tokenizer.decode(example.tokens[a:b])) for a, b in itertools.pairwise(cuts)]


def test_a_dialogue_becomes_its_last_answer_and_what_was_said_before() -> None:
    rows = [{"role": role, "content": text} for role, text in (*SAID, ("assistant", "1201."), ("user", "Thanks."))]
    prompt, completion, said = told(turns_of(rows, "here"), "here")
    assert Record("r", prompt, completion, said=said) == RECORD


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "here holds 'hello', not a list of messages"),
        (None, "here holds null"),
        ([], "here: no turn of the assistant"),
        ([{"role": "user", "content": "x"}], "here: no turn of the assistant, so there is nothing to predict"),
        ([{"role": "asistant", "content": "x"}], "message 1: unknown role 'asistant'; did you mean 'assistant'"),
        ([{"role": "user", "content": "x"}, {"role": 3, "content": "y"}], "message 2: unknown role 'the number 3'"),
        ([{"content": "x"}], "message 1: is no object with role and content"),
        ([{"role": "user", "content": None}], "message 1: 'content' holds null, which is no text"),
        ([{"role": "assistant", "content": " "}], "message 1: 'content' holds no text"),
        ([["user", "x"]], "message 1: is no object"),
    ],
)
def test_bad_dialogues_are_one_line(value, message: str) -> None:
    with pytest.raises(UserError, match=message):
        told(turns_of(value, "here"), "here")


def test_the_chat_template_puts_the_loss_on_the_assistants_turns(chat_tokenizer) -> None:
    (every,) = tokenise([RECORD], chat_tokenizer)
    asked = "<|system|>\nBe brief.\n<|user|>\nWhere?\n<|assistant|>\n"
    assert pieces(every, chat_tokenizer) == [
        (False, asked),
        (True, "Riga.<eos>"),
        (False, "<|user|>\nSince when?\n<|assistant|>\n"),
        (True, "1201.<eos>"),
    ]
    (last,) = tokenise([RECORD], chat_tokenizer, turns="last")
    assert pieces(last, chat_tokenizer)[1:] == [(True, "1201.<eos>")]
    np.testing.assert_array_equal(last.tokens, every.tokens)
    (prompt,) = tokenise_prompts([RECORD], chat_tokenizer)
    np.testing.assert_array_equal(prompt, last.tokens[~last.loss_mask])


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (
            "plain",
            [(False, "Be brief.\nWhere?\n"), (True, "Riga."), (False, "\nSince when?\n"), (True, "1201.<eos>")],
        ),
        (
            "Q: {prompt} A: {completion} ##",
            [
                (False, "Q: Be brief.\nWhere? A: "),
                (True, "Riga. ##"),
                (False, "\nQ: Since when? A: "),
                (True, "1201. ##<eos>"),
            ],
        ),
    ],
)
def test_templates_without_roles_render_exchanges(plain_tokenizer, template: str, wanted: list) -> None:
    (example,) = tokenise([RECORD], plain_tokenizer, template=template)
    assert pieces(example, plain_tokenizer) == wanted


def test_one_question_is_a_prompt_and_its_completion(plain_tokenizer, chat_tokenizer) -> None:
    prompt, completion, said = told([("user", "Where?"), ("assistant", "Riga.")], "here")
    for tokenizer in (plain_tokenizer, chat_tokenizer):
        sides = [tokenise([Record("r", *pair)], tokenizer) for pair in ((prompt, completion), ("Where?", "Riga."))]
        assert said == () and sides[0].fingerprint() == sides[1].fingerprint()


def test_what_is_cut_off_on_the_left_takes_its_loss_along(plain_tokenizer) -> None:
    (whole,) = tokenise([RECORD], plain_tokenizer)
    for length in range(2, whole.length):
        (cut,) = tokenise([RECORD], plain_tokenizer, max_length=length)
        written = int(whole.loss_mask[::-1].argmin())
        kept = min(written, max(length - (whole.length - written), length - length // 2))
        before = length - kept
        start = whole.length - written
        wanted = np.r_[whole.loss_mask[start - before : start], whole.loss_mask[start : start + kept]]
        wanted[0] = False
        np.testing.assert_array_equal(cut.loss_mask, wanted)


def test_a_template_that_renders_earlier_turns_otherwise_is_refused_but_for_the_last(chat_tokenizer) -> None:
    forgetful = copy.deepcopy(chat_tokenizer)
    forgetful.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
        "{{ m.content if loop.last or m.role != 'assistant' else '...' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt }}"
    )
    with pytest.raises(UserError, match=r"the assistant's turn 3 otherwise.*dataset\.turns=last"):
        tokenise([RECORD], forgetful)
    (last,) = tokenise([RECORD], forgetful, turns="last")
    assert pieces(last, forgetful)[-1] == (True, "1201.")


def test_unknown_turns_are_named(plain_tokenizer) -> None:
    with pytest.raises(UserError, match=r"dataset\.turns: unknown value 'first'"):
        tokenise([RECORD], plain_tokenizer, turns="first")
