"""How large texts are, for plans."""

import logging

import numpy as np
import pytest

from tdaexp.data import sizes
from tdaexp.data.records import Record
from tdaexp.data.sizes import sizes_of


def test_counting_cuts_nothing_and_says_nothing(plain_tokenizer, caplog) -> None:
    with caplog.at_level(logging.INFO):
        found = sizes_of(
            [Record("a", "Where?", "in Riga, " * 40)], plain_tokenizer, max_length=20, loss_on="all", template="plain"
        )
    assert found.tokens.tolist() == [20] and caplog.text == ""


def test_of_many_records_the_longest_and_the_sum_are_near_what_counting_all_of_them_finds(
    plain_tokenizer, monkeypatch
) -> None:
    rng = np.random.default_rng(1)
    words = ["Riga", "Amsterdam", "a", "of", "the", "harbour", "1887", "was", "Ulm,"]
    records = [
        Record(str(one), " ".join(rng.choice(words, rng.integers(2, 9))), " ".join(rng.choice(words, length)))
        for one, length in enumerate(rng.integers(3, 60, 400))
    ]
    how = {"max_length": 300, "loss_on": "completion", "template": "plain"}
    exact = sizes_of(records, plain_tokenizer, **how)
    monkeypatch.setattr(sizes, "COUNTED", 100)
    found = sizes_of(records, plain_tokenizer, **how)
    assert found.tokens.max() == exact.tokens.max()
    assert (found.tokens == exact.tokens).sum() < 400  # not all were counted
    assert found.tokens.sum() == pytest.approx(exact.tokens.sum(), rel=0.02)
    assert found.predicted.sum() == pytest.approx(exact.predicted.sum(), rel=0.05)
    assert (found.predicted >= 1).all() and (found.predicted < found.tokens).all()
