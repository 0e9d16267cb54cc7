"""Checks as plain data, numbers and tables."""

from __future__ import annotations

import json
import math

import pytest

from tdaexp.runtime.errors import UserError
from tdaexp.trust.check import COLUMNS, Bounds, absent, as_json, flat, from_json, judged, table

CHECKS = [
    judged("batch_drift", 2.0, Bounds(1e-4, 1e-2), "It moves.", "so", {"q": 0.5}),
    judged("rank_stability", 0.9, Bounds(0.8, 0.5), "It stays.", "so"),
    absent("damping_stability", "the method has no damping"),
]


def test_verdicts_by_bounds_in_both_directions():
    small, large = Bounds(1e-4, 1e-2), Bounds(0.8, 0.5)
    assert [small.verdict(value) for value in (1e-4, 1e-3, 0.1, math.nan, math.inf)] == ["good", "open", *["bad"] * 3]
    assert [large.verdict(value) for value in (0.8, 0.6, 0.4, math.nan)] == ["good", "open", "bad", "bad"]
    assert str(small) == "good up to 0.0001, bad above 0.01" and str(large) == "good from 0.8, bad below 0.5"


def test_they_are_read_as_they_were_written_and_flat_names_hold_numbers():
    assert from_json(json.loads(json.dumps(as_json(CHECKS))), "x") == CHECKS
    assert from_json({}, "x") == []
    assert flat(CHECKS) == {"trust/batch_drift": 2.0, "trust/rank_stability": 0.9, "trust/bad": 1.0}
    assert flat([]) == {}


def test_a_table_for_notebooks():
    rows = table(CHECKS)
    assert list(rows) == COLUMNS and rows["verdict"].tolist() == ["bad", "good", "absent"]
    assert math.isnan(rows["value"][2]) and rows["says"][2] == "Not measured: the method has no damping."
    assert list(table([])) == COLUMNS


@pytest.mark.parametrize("broken", [{"checks": [{"name": "x"}]}, {"checks": [{**vars(CHECKS[0]), "verdict": "fine"}]}])
def test_a_damaged_file_is_one_line(broken):
    with pytest.raises(UserError, match=r"run/trust\.json: damaged"):
        from_json(broken, "run/trust.json")
