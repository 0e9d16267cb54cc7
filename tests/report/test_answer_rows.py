"""Rows next to questions, against a plain sort of the dense scores."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.report.answers import questions, row_table, top_rows
from tdaexp.report.texts import Passage
from tdaexp.runtime import rows

SAID = "amber birch cedar delta ember fjord grove heath islet jetty knoll ledge marsh north ocean"


def built(scores, train=None, **more):
    scores = np.asarray(scores, dtype=float)
    count, wide = scores.shape
    names = np.array([[f"t{k}" for k in range(wide)]] * count, dtype=object) if train is None else train
    return influence.build(
        np.where(names == "", np.nan, scores),
        query=[f"q{k}" for k in range(count)],
        query_set=["asked"] * count,
        train=names,
        truth=np.zeros((count, wide), bool),
        truth_known=np.zeros(count, bool),
        attrs={"method": "dot", "label": "dot"},
        **more,
    )


@pytest.fixture(scope="module")
def many():
    """30 queries of some of 80 rows each, all texts apart."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(30, 60))
    train = np.array([[f"t{k}" for k in rng.permutation(80)[:60]] for _ in range(30)], dtype=object)
    train[5, 40:] = ""
    train[6, :] = ""
    return built(scores, train)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(4)
    said = {f"t{k}": Passage(" ".join(rng.choice(SAID.split(), 9)), f"answer {k}") for k in range(80)}
    return {"query": {f"q{k}": Passage(f"question {k}?", "indeed") for k in range(30)}, "train": said}


def test_best_and_worst_are_those_of_a_sort(many, texts, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1)  # a block for each query
    found = top_rows(many, texts, 3)
    for query, scores in influence.dense(many).to_pandas().iterrows():
        ordered = scores.dropna().sort_values(ascending=False, kind="stable")
        mine = found[found["query"] == query]
        for side, wanted in (("helpful", ordered[:3]), ("harmful", ordered[::-1][:3])):
            part = mine[mine["side"] == side]
            assert part["row"].tolist() == wanted.index.tolist()
            np.testing.assert_array_equal(part["score"], wanted)
            assert part["rank"].tolist() == list(range(1, len(wanted) + 1))
            assert part["text"].tolist() == [texts["train"][row].whole for row in wanted.index]
    assert set(found["query"]) == {f"q{k}" for k in range(30)} - {"q6"}


@pytest.mark.parametrize(
    ("scores", "helpful", "harmful"),
    [
        ([5, 4, 3, 2, 1, 0.5], [5, 4, 3], [0.5, 1, 2]),  # none harms: those that helped least
        ([-5, -4, -3, -2, -1, -0.5], [-0.5, -1, -2], [-5, -4, -3]),
        ([2, -1, 0, -3], [2, 0], [-3, -1]),
        ([2, 1, 3], [3, 2, 1], []),
        ([-2, -1, -3], [], [-3, -2, -1]),
        ([0, 0], [0, 0], []),
    ],
)
def test_no_row_stands_on_both_sides(scores, helpful, harmful):
    found = top_rows(built([scores]), None, 3)
    assert found[found["side"] == "helpful"]["score"].tolist() == helpful
    assert found[found["side"] == "harmful"]["score"].tolist() == harmful
    assert not found["row"].duplicated().any()


def test_near_identical_rows_are_one_entry():
    sentence = f"{SAID} {SAID}"
    train = {
        "t0": Passage("Who? ", sentence),
        "t1": Passage("who?", sentence.upper() + "!"),
        "t2": Passage("Who?", sentence.replace("ocean", "sea", 1)),
        "t3": Passage("Who else?", sentence),  # another question
        "t4": Passage("Who?", "amber birch"),
        "t5": Passage("", "!?"),
        "t6": Passage("", "!?"),
        "t7": Passage("", "?!"),
        "t8": Passage("", "born in 1950"),
        "t9": Passage("", "born in 1951"),
    }
    store = built([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5]])
    (one,) = questions(store, {"query": {}, "train": train}, 10)
    assert [(entry.row, entry.rank, entry.near) for entry in one.sides["helpful"]] == [
        ("t0", 1, [("t1", 8.0), ("t2", 7.0)]),
        ("t3", 4, []),
        ("t4", 5, []),
        ("t5", 6, [("t6", 3.0)]),
        ("t7", 8, []),
        ("t8", 9, []),
        ("t9", 10, []),
    ]
    (few,) = questions(store, {"query": {}, "train": train}, 2)
    assert [entry.row for entry in few.sides["helpful"]] == ["t0", "t3"]  # copies take no place
    assert [entry.row for entry in few.sides["harmful"]] == ["t9", "t8"]
    assert one.sides["harmful"] == []


def test_rows_are_summed_up_over_queries(many, texts, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1)
    found = row_table(many, texts, {"t3": 2.5})
    dense = influence.dense(many).to_pandas().reindex(columns=list(texts["train"]))
    assert found["row"].tolist() == list(texts["train"])
    np.testing.assert_allclose(found["mean"], dense.mean(), rtol=1e-12)
    np.testing.assert_array_equal(found["highest"], dense.max())
    np.testing.assert_array_equal(found["lowest"], dense.min())
    np.testing.assert_array_equal(found["queries"], dense.notna().sum())
    assert found["self_influence"].notna().sum() == 1 and found["self_influence"][3] == 2.5
    assert "self_influence" not in row_table(many, texts)


def test_a_row_that_no_query_met_has_no_numbers(texts):
    found = row_table(built([[1.0, -2.0]]), texts).set_index("row")
    assert found.loc["t1", ["mean", "highest", "lowest", "queries"]].tolist() == [-2.0, -2.0, -2.0, 1]
    assert found.loc["t2", "queries"] == 0 and np.isnan(found.loc["t2", "mean"])
    assert row_table(built([[1.0, -2.0]]), None)["row"].tolist() == ["t0", "t1"]
