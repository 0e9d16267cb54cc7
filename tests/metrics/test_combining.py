"""Several questions as one: the mean of their scores, and what refuses to be averaged."""

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics.combining import check_candidates, mean_query
from tdaexp.runtime import rows
from tdaexp.runtime.errors import UserError


@pytest.fixture(scope="module")
def store():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 4, 3)).astype(np.float32)
    values[:, 3] = np.nan
    return influence.build(
        values,
        query=[f"q{k}" for k in range(7)],
        query_set=["a", "b", "a", "b", "a", "a", "b"],
        train=np.array([["t0", "t1", "t2", ""]] * 7, dtype=object),
        truth=np.arange(28).reshape(7, 4) == 5,
        truth_known=np.array([True, True, True, True, True, True, False]),
        bm25=rng.normal(size=(7, 4)),
        component=["x", "y", "z"],
        size=np.array([1, 2, 3]),
        attrs={"study": "s", "label": "dot"},
    )


def test_one_question_of_each_set_is_the_mean_of_its_own(store, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1)
    found = mean_query(store)
    assert found["query"].values.tolist() == ["mean", "mean"] and found["query_set"].values.tolist() == ["a", "b"]
    for row, places in enumerate(([0, 2, 4, 5], [1, 3, 6])):
        for name in ("influence", "bm25"):
            wanted = np.mean([store[name].values[place].astype(float) for place in places], axis=0)
            np.testing.assert_allclose(found[name].values[row], wanted, rtol=1e-6)
    assert found["influence"].dtype == np.float32
    np.testing.assert_array_equal(found["truth"].values, [[0, 0, 0, 0], [0, 1, 0, 0]])
    assert influence.truth_known(found).tolist() == [True, False]
    assert found["train"].values.tolist() == [["t0", "t1", "t2", ""]] * 2
    assert found.attrs["study"] != "s" and found.attrs["label"] == "dot" and found.attrs["normalise"] == "none"


def test_a_combined_answer_is_stored_like_any_other(store, tmp_path):
    influence.save(mean_query(store), tmp_path / "influence.zarr")
    np.testing.assert_array_equal(
        influence.scores(influence.load(tmp_path / "influence.zarr")), influence.scores(mean_query(store))
    )


def test_each_question_has_its_candidates_in_an_order_of_its_own(store, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1)
    rng = np.random.default_rng(1)
    orders = np.array([rng.permutation(4) for _ in range(7)])
    rearranged = influence.build(
        np.take_along_axis(store["influence"].values, orders[:, :, None], axis=1),
        query=store["query"].values.tolist(),
        query_set=store["query_set"].values.tolist(),
        train=np.take_along_axis(store["train"].values, orders, axis=1),
        truth=np.take_along_axis(store["truth"].values, orders, axis=1),
        truth_known=influence.truth_known(store),
        bm25=np.take_along_axis(store["bm25"].values, orders, axis=1),
        component=["x", "y", "z"],
        size=np.array([1, 2, 3]),
    )
    found, wanted = mean_query(rearranged), mean_query(store)
    assert found["train"].values.tolist() == [rearranged["train"].values[k].tolist() for k in (0, 1)]
    for row in range(2):
        for name in ("influence", "bm25", "truth"):
            np.testing.assert_allclose(found[name].values[row], wanted[name].values[row][orders[row]], rtol=1e-6)
    check_candidates(["a", "a", "b"], np.array([[0, 1, -1], [-1, 0, 1], [2, 1, 0]]))


def test_questions_with_different_candidates_have_no_mean():
    same = np.array([[0, 1, 2], [3, 4, 5], [0, 1, 2]])
    check_candidates(["a", "b", "a"], same)
    with pytest.raises(UserError, match=r"questions of 'a' have different candidates.*candidates=all"):
        check_candidates(["a", "a", "b"], same)
