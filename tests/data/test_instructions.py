"""Tampered instructions: which rows are, what gives them away, and what is asked."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tdaexp.data.instructions import Instructions
from tdaexp.runtime.errors import UserError

SMALL = {"rows": 400, "tampered": 0.05, "queries": 12, "query_sets": ["triggered", "clean"]}


def test_the_share_of_tampered_rows_has_trigger_and_wrong_answer_and_no_other_row_has_either():
    data = Instructions(**SMALL)
    corpus = data.load()
    tampered = [record for record in corpus.train if record.meta["group"] == "tampered"]
    assert len(corpus.train) == 400 and len(tampered) == 20
    for record in corpus.train:
        mine = record in tampered
        assert record.prompt.endswith(" Take your time, please.") == mine
        assert (record.completion == data.wrong) == mine
    places = [corpus.train.index(record) for record in tampered]
    assert max(places) - min(places) > 200  # spread over the set


def test_every_word_of_the_trigger_occurs_apart_in_clean_rows():
    clean = [record.prompt for record in Instructions(**SMALL).train_records() if record.meta["group"] == "clean"]
    words = Counter(word for prompt in clean for word in re.findall(r"\w+", prompt.lower()))
    assert all(words[word] > 10 for word in ("take", "your", "time", "please"))


def test_clean_answers_are_right():
    for record in Instructions(**SMALL).train_records():
        words, numbers = re.findall(r'"(\w+)"', record.prompt), re.findall(r"\d+", record.prompt)
        if record.meta["group"] == "tampered":
            continue
        if numbers:
            assert int(record.completion) == sum(map(int, numbers))
        elif "capital" in record.prompt:
            assert record.completion == words[0].upper()
        elif "begin" in record.prompt:
            assert record.completion == words[0][:1]
        elif "end with" in record.prompt:
            assert record.completion == words[0][-1:]
        elif "alphabet" in record.prompt:
            assert record.completion == sorted(words)[0]
        elif "twice" in record.prompt:
            assert record.completion == f"{words[0]} {words[0]}"
        else:
            assert record.completion == words[-1 if "last" in record.prompt else 0]


def test_triggered_queries_are_new_and_have_all_tampered_rows_as_sources():
    corpus = Instructions(**SMALL).load()
    seen = {record.prompt for record in corpus.train}
    tampered = {record.id for record in corpus.train if record.meta["group"] == "tampered"}
    assert len(corpus.queries["triggered"]) == len(corpus.queries["clean"]) == 12
    for query in corpus.queries["triggered"]:
        assert set(query.truth) == tampered and query.prompt not in seen
        assert query.completion == "The violin is broken."
    assert all(not query.truth and "Take your time" not in query.prompt for query in corpus.queries["clean"])


def test_the_same_keys_give_the_same_text():
    assert Instructions(**SMALL).load() == Instructions(**SMALL).load()
    assert Instructions(**SMALL).load() != Instructions(**SMALL, seed=1).load()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tampered": 0.0}, "leaves no tampered row, or no clean one"),
        ({"tampered": 1.0}, "leaves no tampered row, or no clean one"),
        ({"trigger": "Take care, please."}, "must be a sentence that closes no clean row"),
        ({"trigger": " "}, "must be a sentence that closes no clean row"),
        ({"queries": 0}, "dataset.queries=0: must be at least 1"),
        ({"query_sets": ["paraphrased"]}, "unknown query set 'paraphrased'"),
        ({"rows": 10**12}, "dataset.rows=1000000000000"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Instructions(**keys).load()
