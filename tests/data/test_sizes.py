"""How large texts are, for plans."""

import logging

from tdaexp.data.records import Record
from tdaexp.data.sizes import sizes_of


def test_counting_cuts_nothing_and_says_nothing(plain_tokenizer, caplog) -> None:
    with caplog.at_level(logging.INFO):
        found = sizes_of(
            [Record("a", "Where?", "in Riga, " * 40)], plain_tokenizer, max_length=20, loss_on="all", template="plain"
        )
    assert found.tokens.tolist() == [20] and caplog.text == ""
