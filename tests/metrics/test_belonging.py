"""Sums over documents and sources, against sums by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tdaexp import influence
from tdaexp.metrics.belonging import by_document, by_source

EXAMPLES = ["b#1", "b#2", "a", "c#1", "c#2"]
DOCUMENTS = ["b", "b", "a", "c", "c"]
SOURCES = ["wiki", "wiki", "", "books", "books"]
TRAIN = np.array([["c#1", "c#2", "a", "b#1", "b#2"], ["a", "b#1", "b#2", "", ""]], dtype=object)


def store(document: bool = True, source: bool = True):
    values = np.arange(20.0).reshape(2, 5, 2)
    values[TRAIN == ""] = np.nan
    belongs = ({"document": DOCUMENTS} if document else {}) | ({"source": SOURCES} if source else {})
    return influence.build(
        values,
        query=["q1", "q2"],
        query_set=["mine", "mine"],
        train=TRAIN,
        truth=np.isin(TRAIN, ["b#1", "b#2"]),
        truth_known=np.array([True, False]),
        bm25=np.where(TRAIN == "", np.nan, np.char.count(TRAIN.astype(str), "c").astype(float)),
        component=["x", "y"],
        size=np.array([1, 2]),
        belongs=belongs,
        example=EXAMPLES,
    )


def test_documents_are_the_sums_of_their_pieces(tmp_path) -> None:
    found = by_document(store())
    assert found["train"].values.tolist() == [["c", "a", "b"], ["a", "b", ""]]
    scores = influence.scores(store()).values
    wanted = [[scores[0, :2].sum(), scores[0, 2], scores[0, 3:].sum()], [scores[1, 0], scores[1, 1:3].sum(), np.nan]]
    np.testing.assert_allclose(influence.scores(found).values, wanted)
    assert found["truth"].values.tolist() == [[False, False, True], [False, True, False]]
    assert influence.truth_known(found).tolist() == [True, False]
    assert found["bm25"].values[0].tolist() == [1.0, 0.0, 0.0]
    assert dict(zip(found["example"].values, found["source"].values, strict=True)) == {
        "a": "", "b": "wiki", "c": "books"
    }  # fmt: skip
    influence.save(store(), tmp_path / "s.zarr")
    assert by_document(influence.load(tmp_path / "s.zarr")).identical(found)


def test_a_store_of_whole_texts_stays_as_it_is() -> None:
    whole = store(document=False)
    assert by_document(whole) is whole


def test_a_store_without_questions_has_documents_without_scores() -> None:
    assert by_document(store().isel(query=slice(0, 0))).sizes["query"] == 0


def test_sources_have_sums_means_and_counts() -> None:
    scores = influence.scores(store()).values
    wanted = pd.DataFrame(
        [
            ("mine", "q1", "", scores[0, 2], scores[0, 2], 1),
            ("mine", "q1", "books", scores[0, :2].sum(), scores[0, :2].mean(), 2),
            ("mine", "q1", "wiki", scores[0, 3:].sum(), scores[0, 3:].mean(), 2),
            ("mine", "q2", "", scores[1, 0], scores[1, 0], 1),
            ("mine", "q2", "wiki", scores[1, 1:3].sum(), scores[1, 1:3].mean(), 2),
        ],
        columns=["query_set", "query", "source", "sum", "mean", "count"],
    )
    pd.testing.assert_frame_equal(by_source(store()), wanted)
    assert by_source(by_document(store()))["count"].tolist() == [1, 1, 1, 1, 1]
    assert by_source(store(source=False)).empty
