"""Which rows a choice leaves out."""

import logging

import numpy as np
import pandas as pd
import pytest

from tdaexp.report.dropping import chosen
from tdaexp.runtime.errors import UserError

VALUES = pd.Series([0.5, -2.0, np.nan, 3.0, -1.0, -2.0, 0.0, 1.0], [f"t{k}" for k in range(8)])


@pytest.mark.parametrize(
    ("drop", "by", "wanted"),
    [
        (2, "harmful", ["t1", "t5"]),
        (0.35, "harmful", ["t1", "t5", "t4"]),
        (0.01, "harmful", ["t1"]),  # at least one
        (2, "helpful", ["t3", "t7"]),
        (4, "self", ["t3", "t7", "t0", "t6"]),
    ],
)
def test_the_worst_go_first(drop, by, wanted):
    found = chosen(VALUES, drop, by)
    assert found.index.tolist() == wanted
    assert found.tolist() == VALUES[wanted].tolist()


def test_no_row_is_called_harmful_that_helps(caplog):
    with caplog.at_level(logging.WARNING):
        assert chosen(VALUES, 6, "harmful").index.tolist() == ["t1", "t5", "t4"]
    assert "only 3 of the 6 rows asked for are harmful" in caplog.text
    with pytest.raises(UserError, match="drop_by=harmful: no training row has such a value"):
        chosen(VALUES.abs(), 2, "harmful")


def test_a_training_set_is_not_emptied():
    with pytest.raises(UserError, match="drop=8: is all of the 8 training rows"):
        chosen(VALUES, 8, "self")
