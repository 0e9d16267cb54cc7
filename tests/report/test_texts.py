"""Prompt and completion apart, from the examples to the file and back."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tdaexp.data.examples import Example, Examples
from tdaexp.data.records import Record
from tdaexp.report.texts import Passage, as_json, as_one, from_json, query_text, texts_of, train_text
from tdaexp.runtime.errors import UserError


def example(record):
    return Example(record.id, np.arange(3), np.arange(3) > 0, record.text, prompt=record.prompt)


def test_a_text_is_cut_behind_its_prompt():
    records = [
        Record("a", " Why?", "Because.\n"),
        Record("b", "", "Bare"),
        Record("c", "\n", "Blank"),
        Record("d", "x", "x"),
    ]
    own = SimpleNamespace(ids=["t"], texts=["anybody's"])
    found = texts_of(SimpleNamespace(belongs={}, queries=Examples(list(map(example, records))), train=own))
    assert found["query"] == {
        "a": Passage("Why?", "Because."), "b": Passage("", "Bare"), "c": Passage("", "Blank"), "d": Passage("x", "x"),
    }  # fmt: skip
    assert found["train"] == {"t": Passage("", "anybody's")}
    assert [found["query"][one.id].whole for one in records] == [one.text for one in records]


def test_a_rejected_answer_stands_beside_the_completion():
    asked = example(Record("a", "Why?", "Because."))
    queries = Examples([
        replace(asked, rejected=example(Record("a", "Why?", "No idea."))), example(Record("b", "", "Bare"))
    ])  # fmt: skip
    found = texts_of(SimpleNamespace(belongs={}, queries=queries, train=SimpleNamespace(ids=[], texts=[])))
    assert found["query"] == {"a": Passage("Why?", "Because.", "No idea."), "b": Passage("", "Bare")}
    assert found["query"]["a"].whole == "Why?\nBecause.\n(rather than: No idea.)"
    assert as_json(found)["query"] == {"a": ["Why?", "Because.", "No idea."], "b": "Bare"}
    assert from_json(as_json(found), "texts.json") == found
    assert as_json({"query": {"c": Passage("", "x", "y")}}) == {"query": {"c": ["", "x", "y"]}}


def test_a_file_gives_what_was_written():
    texts = {"query": {"q": Passage("a", "b\n"), "r": Passage("", "c")}, "train": {"t": Passage("", "")}}
    assert as_json(texts) == {"query": {"q": ["a", "b\n"], "r": "c"}, "train": {"t": ""}}
    assert from_json(as_json(texts), "texts.json") == texts


def test_files_of_earlier_versions_are_read_and_damaged_ones_refused():
    assert from_json({"train": {"t": "whole"}}, "texts.json")["train"] == {"t": Passage("", "whole")}
    for found in ({"train": {"t": 3}}, {"train": {"t": ["a"]}}, {"other": {}}, {"query": []}):
        with pytest.raises(UserError, match=r"texts\.json: damaged"):
            from_json(found, "texts.json")


def test_an_id_stands_for_a_text_that_is_not_known():
    texts = {"query": {"s/q": Passage("", "of s"), "q": Passage("", "of all")}, "train": {"t": Passage("", "")}}
    assert query_text(texts, "s", "q").whole == "of s" and query_text(texts, "u", "q").whole == "of all"
    assert query_text(None, "s", "q").whole == "q" and train_text(texts, "u").whole == "u"
    assert train_text(texts, "t").whole == ""


def test_combined_questions_are_read_one_under_the_other():
    texts = {"query": {"a": Passage("A?", "a"), "b": Passage("", "b"), "c": Passage("", "c")}, "train": {}}
    found = as_one(texts, ["s", "u", "s"], ["a", "b", "c"], "mean")
    assert query_text(found, "s", "mean") == Passage("The mean of 2 questions:", "A?\na\n\nc")
    assert query_text(found, "u", "mean").completion == "b" and found["train"] == {}
