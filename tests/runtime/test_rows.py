"""Rows that are read when they are asked for: what numpy gives for the same keys, and nothing else is read."""

import numpy as np
import pytest
import xarray as xr

from tdaexp.runtime.rows import Rows, lazy, runs

VALUES = np.arange(7 * 4 * 3, dtype=np.float32).reshape(7, 4, 3)


@pytest.fixture
def rows():
    """Rows that write down in `asked` which of them were read."""
    found = Rows(VALUES.shape, VALUES.dtype, lambda places: found.asked.extend(places.tolist()) or VALUES[places])
    found.asked = []
    return found


KEYS = [
    3, slice(None), slice(2, 5), [6, 0, 0], np.array([True] * 2 + [False] * 5), np.zeros(0, dtype=int),
    (2, 1), (slice(1, 3), 2), ([5, 1], slice(None), 1), (slice(None), slice(1, 3), -1),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_keys_give_what_numpy_gives(rows, key):
    np.testing.assert_array_equal(rows[key], VALUES[key])


def test_only_what_is_asked_for_is_read(rows):
    dataset = xr.Dataset({"x": (("query", "candidate", "component"), lazy(rows))}).isel(query=slice(2, 6))
    part = dataset.isel(query=[3, 1], candidate=slice(1, 3))
    assert not rows.asked
    np.testing.assert_array_equal(part["x"].values, VALUES[[5, 3], 1:3])
    assert sorted(rows.asked) == [3, 5]
    np.testing.assert_array_equal(part["x"].values, VALUES[[5, 3], 1:3])
    assert len(rows.asked) == 2  # kept


def test_rows_in_another_order_and_with_other_values(rows):
    order = np.array([6, 2, 4])
    doubled = rows.at(order).map(lambda values, places: 2.0 * values + places[:, None, None], np.float64)
    assert (doubled.shape, doubled.dtype, len(doubled)) == ((3, 4, 3), np.float64, 3)
    np.testing.assert_array_equal(doubled, 2.0 * VALUES[order] + np.arange(3)[:, None, None])
    assert rows.asked == order.tolist()


LENGTHS = [(5, 2, [2, 2, 1]), (5, 99, [1] * 5), (5, 0, [4, 1]), (0, 1, [0])]


@pytest.mark.parametrize(("count", "row_bytes", "wanted"), LENGTHS)
def test_runs_are_as_long_as_fits(count, row_bytes, wanted, monkeypatch):
    monkeypatch.setattr("tdaexp.runtime.rows.BLOCK_BYTES", 4)
    found = list(runs(count, row_bytes))
    assert [run.stop - run.start for run in found] == wanted
    assert np.concatenate([np.arange(count)[run] for run in found]).tolist() == list(range(count))
