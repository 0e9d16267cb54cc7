"""BM25 candidates against a transcription of Algorithm 1 that scores every pair by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdaexp.data.biographies import Biographies
from tdaexp.data.candidates import BM25, BM25S, All, Sample, top
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

WORDS = ["red", "Red", "blue", "green", "cat", "dog", "the", "of", "house", "tree", "sun", "moon"]


def okapi_score(query: list[str], document: list[str], corpus: list[list[str]]) -> float:
    """BM25Okapi word by word: ATIRE term weights, negative weights raised to a quarter of the mean."""
    k1, b, epsilon = 1.5, 0.75, 0.25
    mean_length = sum(len(words) for words in corpus) / len(corpus)
    idf = {}
    for word in dict.fromkeys(w for words in corpus for w in words):
        n = sum(word in words for words in corpus)
        idf[word] = math.log(len(corpus) - n + 0.5) - math.log(n + 0.5)
    floor = epsilon * (sum(idf.values()) / len(idf))
    idf = {word: floor if value < 0 else value for word, value in idf.items()}
    score = 0.0
    for word in query:
        f = document.count(word)
        score += idf.get(word, 0.0) * f * (k1 + 1) / (f + k1 * (1 - b + b * len(document) / mean_length))
    return score


def algorithm_1(scores: list[float], b: int, truth: int | None) -> list[int]:
    """Algorithm 1, appendix B.1, one comparison at a time; of equal scores the earlier is the better."""
    candidates: list[int] = []
    while len(candidates) < min(b, len(scores)):
        best = None
        for j in range(len(scores)):
            if j not in candidates and (best is None or scores[j] > scores[best]):
                best = j
        candidates.append(best)
    if truth is not None and truth not in candidates:
        weakest = candidates[0]
        for j in candidates:
            if scores[j] < scores[weakest] or (scores[j] == scores[weakest] and j > weakest):
                weakest = j
        candidates.remove(weakest)
        candidates.append(truth)
    return candidates


def random_records(seed: int, count: int, prefix: str) -> list[Record]:
    rng = random.Random(seed)
    return [Record(f"{prefix}{i}", " ".join(rng.choices(WORDS, k=rng.randint(1, 6))), "yes") for i in range(count)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 7), count=st.integers(2, 15))
def test_bm25_equals_algorithm_1(seed: int, b: int, count: int) -> None:
    train = random_records(seed, count, "t")
    rng = random.Random(seed + 1)
    queries = [
        Record(f"q{i}", record.prompt, "", (f"t{rng.randrange(count)}",))
        for i, record in enumerate(random_records(seed + 2, 6, "q"))
    ]
    chosen = BM25(b=b).select(queries, train)
    corpus = [record.prompt.split() for record in train]
    for row, query in enumerate(queries):
        scores = [okapi_score(query.prompt.split(), words, corpus) for words in corpus]
        expected = algorithm_1(np.round(scores, 9).tolist(), b, int(query.truth[0][1:]))
        by_score = [round(scores[j], 9) for j in chosen.indices[row]]
        assert by_score == sorted(by_score, reverse=True)
        assert chosen.bm25[row] == pytest.approx([scores[j] for j in chosen.indices[row]], abs=1e-9)
        assert sorted(chosen.indices[row]) == sorted(expected)


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(0, 3).map(float), min_size=1, max_size=12),
    b=st.integers(1, 8),
    data=st.data(),
)
def test_top_with_ties_equals_algorithm_1(scores: list[float], b: int, data: st.DataObject) -> None:
    truth = data.draw(st.none() | st.integers(0, len(scores) - 1))
    chosen = top(np.array(scores), min(b, len(scores)), [] if truth is None else [truth])
    assert chosen.tolist() == sorted(algorithm_1(scores, b, truth), key=lambda j: (-scores[j], j))


def test_absent_truth_replaces_the_weakest_and_can_be_left_absent() -> None:
    train = [Record(f"t{i}", f"red blue {word}", "x") for i, word in enumerate(WORDS)]
    train.append(Record("far", "sea", "x"))
    query = Record("q", "red blue green", "", ("far",))
    kept = BM25(b=3).select([query], train).indices[0].tolist()
    plain = BM25(b=3, ensure_truth=False).select([query], train).indices[0].tolist()
    assert kept == [*plain[:2], len(train) - 1]
    assert len(train) - 1 not in plain


def test_several_sources_replace_the_weakest_others() -> None:
    score = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    assert top(score, 3, [5, 1]).tolist() == [0, 1, 5]
    assert top(score, 2, [5, 4, 0]).tolist() == [0, 4]


def test_equal_prompts_go_by_training_order() -> None:
    train = [Record(f"u{i}", f"other prompt {i}", "x") for i in range(60)]
    train[10:10] = [Record(f"t{i}", "same words", "x") for i in range(20)]
    chosen = BM25(b=5).select([Record("q", "same words", "")], train)
    assert chosen.indices[0].tolist() == [10, 11, 12, 13, 14]


def test_case_is_kept_unless_folded_and_the_field_is_the_prompt() -> None:
    train = [Record("a", "Red", "blue"), Record("b", "red", "green"), Record("c", "sun", "red")]
    query = [Record("q", "red", "blue")]
    assert BM25(b=1).select(query, train).indices[0, 0] == 1
    assert BM25(b=1, field="completion").select(query, train).indices[0, 0] == 0
    more = [*train, *random_records(0, 9, "r")]
    folded = BM25(b=2, lowercase=True).select([Record("q", "RED", "")], more)
    assert folded.bm25[0, 0] > 0
    assert BM25(b=2).select([Record("q", "RED", "")], more).bm25[0].tolist() == [0.0, 0.0]


def test_data_without_prompts_is_compared_by_its_text() -> None:
    train = [Record(word, "", f"{word} again") for word in ("sun", "moon", "tree")]
    queries = [Record("q", "", "a moon and stars")]
    assert BM25(b=1).select(queries, train).indices.tolist() == [[1]]


def test_all_ranks_every_example_with_both_indexes() -> None:
    corpus = Biographies(people=20).load()
    queries = corpus.queries["paraphrased"]
    for index in ("rank_bm25", "bm25s"):
        chosen = All(index_with=index).select(queries, corpus.train)
        assert chosen.indices.shape == (40, 40)
        assert (np.sort(chosen.indices, axis=1) == np.arange(40)).all()
        assert (np.diff(chosen.bm25, axis=1) <= 0).all()


def test_more_candidates_than_examples_gives_every_example() -> None:
    train = random_records(3, 4, "t")
    assert BM25(b=9).select(train, train).indices.shape == (4, 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), kinds=st.integers(2, 60), count=st.integers(2, 30))
def test_bm25s_scores_equal_rank_bm25_with_common_and_rare_words(seed: int, kinds: int, count: int) -> None:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(kinds)]
    train = [Record(f"t{i}", " ".join(rng.choices(words, k=rng.randint(1, 9))), "x") for i in range(count)]
    queries = [Record(f"q{i}", " ".join(rng.choices([*words, "new"], k=8)), "") for i in range(5)]
    slow, fast = (index.select(queries, train) for index in (BM25(b=count), BM25S(b=count)))
    by_train = [np.take_along_axis(c.bm25, np.argsort(c.indices, axis=1), axis=1) for c in (slow, fast)]
    np.testing.assert_allclose(by_train[0], by_train[1], rtol=1e-10, atol=1e-10)


def test_bm25s_takes_queries_without_a_known_word() -> None:
    train = random_records(1, 10, "t")
    for prompt in ("", "unheard"):
        chosen = BM25S(b=3).select([Record("q", prompt, "")], train)
        assert chosen.indices[0].tolist() == [0, 1, 2]
        assert chosen.bm25[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BM25(field="prompts"), "did you mean 'prompt'"),
        (lambda: BM25(b=0), "candidates.b=0"),
        (lambda: All(index_with="bm25"), "did you mean 'bm25s'"),
    ],
)
def test_bad_values_are_named(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_an_empty_field_is_an_error() -> None:
    with pytest.raises(UserError, match="empty in every training example"):
        BM25(field="completion").select([Record("q", "a", "")], [Record("t", "a", "")])


def test_a_sample_is_the_same_for_every_query_and_keeps_bm25_beside_it() -> None:
    corpus = Biographies(people=20, topics=1).load()
    queries = corpus.queries["paraphrased"]
    found = Sample(b=7, seed=3).select(queries, corpus.train)
    assert (found.indices == found.indices[0]).all() and len(set(found.indices[0])) == 7
    every = BM25S(b=20).select(queries, corpus.train)
    for row in range(len(queries)):
        lexical = dict(zip(every.indices[row], every.bm25[row], strict=True))
        assert [lexical[index] for index in found.indices[row]] == found.bm25[row].tolist()
    assert (Sample(b=7, seed=4).select(queries, corpus.train).indices != found.indices).any()
    assert Sample(b=500).select(queries, corpus.train).indices.shape == (20, 20)
