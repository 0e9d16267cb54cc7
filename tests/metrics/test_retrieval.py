import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tdaexp.metrics.retrieval import accuracy, recall, reciprocal_rank, source_ranks

NAN = np.nan


def test_a_tie_is_no_retrieval():
    scores = np.array([[2.0, 1.0], [1.0, 1.0], [1.0, 2.0]])
    truth = np.array([[True, False]] * 3)
    assert accuracy(scores, truth).tolist() == [1, 0, 0]
    assert reciprocal_rank(scores, truth).tolist() == [1, 0.5, 0.5]


def test_missing_pairs_and_missing_sources():
    scores = np.array([[NAN, 1.0, 0.5], [1.0, NAN, NAN], [NAN, NAN, NAN], [3.0, 2.0, 1.0]])
    truth = np.array([[True, False, False], [True, False, False], [True, False, False], [False] * 3])
    assert accuracy(scores, truth).tolist() == [0, 1, 0, 0]
    assert reciprocal_rank(scores, truth).tolist() == [0, 1, 0, 0]
    assert recall(scores, truth, 2).tolist() == [0, 1, 0, 0]


def test_several_sources_help_each_other():
    scores = np.array([[5.0, 4.0, 3.0, 2.0]])
    truth = np.array([[False, True, False, True]])
    assert reciprocal_rank(scores, truth).tolist() == [0.5]
    assert [float(recall(scores, truth, k)[0]) for k in (1, 2, 3, 4)] == [0, 0.5, 0.5, 1]


def test_sources_that_tie_take_a_place_each():
    scores, truth = np.ones((1, 4)), np.array([[True, True, True, False]])
    assert source_ranks(scores, truth).tolist() == [[2, 3, 4]]
    assert [float(recall(scores, truth, k)[0]) for k in (1, 2, 3, 4)] == [0, 1 / 3, 2 / 3, 1]


def ranks_by_hand(scores, truth):
    ranks = []
    for i, mine in enumerate(scores):
        if truth[i] and not np.isnan(mine):
            ahead = 0
            for j, other in enumerate(scores):
                ahead += other > mine or (other == mine and (j < i or not truth[j]))
            ranks.append(1 + ahead)
    return sorted(ranks)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_ranks_against_counting_by_hand(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, candidates)).astype(float)
    scores[rng.random(scores.shape) < 0.2] = NAN
    truth = rng.random(scores.shape) < 0.4
    ranks = source_ranks(scores, truth)
    for row in range(queries):
        expected = ranks_by_hand(scores[row], truth[row])
        assert sorted(ranks[row][np.isfinite(ranks[row])].tolist()) == expected
        assert reciprocal_rank(scores, truth)[row] == (1 / expected[0] if expected else 0)
        assert accuracy(scores, truth)[row] == (expected[:1] == [1])
        for k in (1, 2, 3):
            found = sum(rank <= k for rank in expected)
            assert recall(scores, truth, k)[row] == (found / truth[row].sum() if truth[row].any() else 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_of_the_first_and_the_last_of_many_ranks_are_those_among_all(seed, queries, k, more):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.arange(queries * (2 * k + more)).reshape(queries, -1).astype(float), axis=1)
    truth = rng.random(scores.shape) < 0.3
    order = np.argsort(-scores, axis=1)
    ends = np.concatenate([order[:, :k], order[:, -k:]], axis=1)
    found, own = np.take_along_axis(scores, ends, axis=1), np.take_along_axis(truth, ends, axis=1)
    assert accuracy(found, own).tolist() == accuracy(scores, truth).tolist()
    for most in range(1, k + 1):
        assert recall(found, own, most, more, truth.sum(1)).tolist() == recall(scores, truth, most).tolist()
    for row in range(queries):
        expected = source_ranks(scores, truth)[row]
        known = source_ranks(found, own, more)[row]
        assert set(known[np.isfinite(known)]) == {rank for rank in expected if rank <= k or k + more < rank < np.inf}
