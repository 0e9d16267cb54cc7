"""The usual candidates: BM25's best where sources are known, all training examples where none is."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tdaexp.data.candidates import BM25, All
from tdaexp.data.records import Record
from tdaexp.data.unknown_sources import Auto, settled, tell
from tdaexp.runtime.errors import UserError

TRAIN = [Record(str(n), "", f"word{n} common") for n in range(9)]
ASKED = [Record("q", "", "common word3")]
SOURCED = [Record("q", "", "common word3", truth=("7",))]


def test_without_a_known_source_every_example_is_a_candidate() -> None:
    assert settled(Auto(field="text"), ASKED) == All(field="text")
    found = Auto().select(ASKED, TRAIN)
    assert sorted(found.indices[0]) == list(range(9)) and found.indices[0, 0] == 3


@pytest.mark.parametrize("queries", [SOURCED, [*ASKED, *SOURCED]])
def test_where_a_source_is_known_it_is_five_of_bm25(queries) -> None:
    assert settled(Auto(lowercase=True), queries) == BM25(b=5, lowercase=True)
    np.testing.assert_array_equal(Auto().select(queries, TRAIN).indices, BM25().select(queries, TRAIN).indices)
    assert Auto().size(TRAIN) == 5


def test_a_number_that_is_named_holds_for_any_question() -> None:
    assert settled(Auto(b=3), ASKED) == BM25(b=3)
    with pytest.raises(UserError, match=r"candidates\.b=0"):
        Auto(b=0)
    with pytest.raises(UserError, match=r"unknown field 'texts'"):
        Auto(field="texts")
    assert settled(BM25(b=2), ASKED) == BM25(b=2)


def test_what_all_cost_is_said(caplog) -> None:
    with caplog.at_level(logging.INFO):
        tell(All(), ASKED * 20, 10_000)
        assert not caplog.messages  # who names it knows it
        tell(Auto(), ASKED * 20, 10_000)
    assert "all 10,000 training examples for each of 20 questions (200,000 pairs)" in caplog.text


def test_questions_without_a_source_beside_others_are_told_of_what_is_left_out(caplog) -> None:
    with caplog.at_level(logging.INFO):
        tell(Auto(), SOURCED, 9)
        tell(Auto(b=3), [*ASKED, *SOURCED], 9)
        assert not caplog.messages  # each has its source among them; who names a number knows it
        tell(Auto(), [*ASKED, *SOURCED], 9)
    assert "BM25's best 5 of 9 training examples for each question, also for the 1 of 2 whose source is" in caplog.text
