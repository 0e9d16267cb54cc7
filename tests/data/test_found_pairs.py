"""Pairs of another run: its own, in its order, and refused where it was asked about something else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.data.found import Found
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

TRAIN = [Record(f"t{k}", f"prompt {k}", f" answer {k}") for k in range(5)]
QUERIES = [Record(f"q{k}", f"question {k}", " yes") for k in range(3)]
NAMES = np.array([["t3", "t0"], ["t1", ""], ["t4", "t2"]], dtype=object)


@pytest.fixture
def run(tmp_path):
    """A run's folder, with its texts beside its store."""
    values = np.where(NAMES == "", np.nan, 1.0)
    ids = [one.id for one in QUERIES]
    store = influence.build(values, query=ids, query_set=["a"] * 3, train=NAMES, truth=NAMES == "t0")
    influence.save(store.assign_attrs(method="dot", label="dot"), tmp_path / "influence.zarr")
    sides = {"query": QUERIES, "train": TRAIN}
    texts = {role: {one.id: [one.prompt, one.completion.strip()] for one in side} for role, side in sides.items()}
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    return tmp_path


def test_pairs_are_those_of_the_run_by_name(run):
    found = Found(str(run))
    assert found.size(TRAIN) == 2
    turned = found.select(QUERIES[::-1][:2], TRAIN[::-1])
    assert turned.indices.tolist() == [[0, 2], [3, -1]] and np.isnan(turned.bm25).all()
    assert found.select([], TRAIN).indices.shape == (0, 2)
    (run / "texts.json").unlink()
    assert Found(str(run)).select(QUERIES, TRAIN).indices.tolist() == [[3, 0], [1, -1], [4, 2]]


def test_what_the_run_was_not_about_is_refused(run):
    found = Found(str(run))
    with pytest.raises(UserError, match=r"has no pair of the question 'q9' \(1 of 1 are not in it\)"):
        found.select([Record("q9", "question", " yes")], TRAIN)
    with pytest.raises(UserError, match=r"has a pair with 't4', which is none of these 4 training examples"):
        found.select(QUERIES, TRAIN[:4])
    other = [*TRAIN[:4], Record("t4", "prompt 4", " another answer")]
    with pytest.raises(UserError, match=r"has another text as 't4' than this data"):
        found.select(QUERIES, other)
    assert found.select(QUERIES[:2], other).indices.tolist() == [[3, 0], [1, -1]]
    with pytest.raises(UserError, match=r"has another text as 'q0'"):
        found.select([Record("q0", "something else", " yes")], TRAIN)
    (run / "texts.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"texts.json: damaged"):
        Found(str(run)).select(QUERIES, TRAIN)


def test_a_folder_must_be_named_and_be_a_run(tmp_path):
    with pytest.raises(UserError, match=r"name its folder, candidates.run=FOLDER"):
        Found()
    with pytest.raises(UserError, match=r"no such influence store"):
        Found(str(tmp_path)).select(QUERIES, TRAIN)
