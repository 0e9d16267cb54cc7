"""Texts and their classes as examples: the class stands where the next token would, so that it is predicted like one.

A model that classifies reads its logits at a text's last token, where a language model predicts the next token. So an
example is the text's tokens and then, in the place of a token, the number of its class; that alone carries loss.
Nothing ever reads it: it is the last position, attention is causal, and gradients stop before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tdaexp.data.encoding import begins_with, check_words, encode
from tdaexp.data.examples import Example, Examples
from tdaexp.data.records import Record
from tdaexp.data.tokenise import check_length, cut_left
from tdaexp.runtime.errors import UserError, unknown


def tokenise_classes(records: Sequence[Record], tokenizer: Any, classes: Sequence[str], max_length: int) -> Examples:
    """Tokenise every record's prompt as the tokenizer does by itself; its completion is the name or number of a class.

    A text longer than `max_length` tokens loses its left end. Errors (UserError): an unknown class, an empty text.
    """
    check_length(max_length)
    kept = len(begins_with(tokenizer))
    for record in records:
        if record.rejected is not None:
            raise UserError(
                f"{record.place}: compares two answers, and model.finetuned classifies; remove its rejected answer"
            )
        if not record.prompt.strip():
            raise UserError(
                f"{record.place}: has no text to classify, and the model classifies; give it a prompt and "
                "a class (of queries in dataset.query_path: dataset.label_column=NAME)"
            )
    texts = [record.prompt for record in records]
    found = encode(texts, tokenizer, records, special=True)
    check_words(records, texts, found, tokenizer)
    return Examples([
        _example(record, cut_left(ids, max_length, kept), class_number(record, classes))
        for record, ids in zip(records, found, strict=True)
    ])  # fmt: skip


def texts_alone(examples: Examples) -> Examples:
    """The examples without their classes."""
    return Examples([replace(one, tokens=one.tokens[:-1], loss_mask=one.loss_mask[:-1]) for one in examples])


def class_number(record: Record, classes: Sequence[str]) -> int:
    """The number of a record's class. Errors (UserError): its completion names none."""
    name = record.completion.strip()
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise unknown("class", name[:60], classes, f"{record.place}: the model classifies (dataset.label_column)")


def _example(record: Record, ids: list[int], number: int) -> Example:
    mask = np.arange(len(ids) + 1) == len(ids)
    return Example(record.id, np.array([*ids, number], dtype=np.int64), mask, record.text, prompt=record.prompt)
