"""Plans: complete, within memory, and with few passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdaexp.gradients.schedule import kept_plan, plan_blocks
from tdaexp.runtime.errors import UserError


def setting(seed: int, queries: int = 40, train: int = 60, candidates: int = 3):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(-1, train, (queries, candidates))
    return pairs, rng.integers(3, 30, queries), rng.integers(3, 30, train), rng.uniform(1, 5, queries)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.5, 200))
def test_every_query_once_with_all_its_candidates(seed, tokens, memory):
    pairs, query_lengths, train_lengths, sizes = setting(seed)
    plan = plan_blocks(pairs, query_lengths, train_lengths, sizes, tokens, memory)
    assert sorted(q for block in plan for batch in block.queries for q in batch) == list(range(len(pairs)))
    for block in plan:
        queries = [q for batch in block.queries for q in batch]
        needed = sorted(set(pairs[queries].ravel().tolist()) - {-1})
        assert sorted(t for batch in block.train for t in batch) == needed
        assert sizes[queries].sum() <= memory or len(queries) == 1
        for batch, lengths in [(b, query_lengths) for b in block.queries] + [(b, train_lengths) for b in block.train]:
            assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens


def test_scattered_topics_are_gathered():
    """Queries that share candidates meet in one block, so that no training example runs twice."""
    rng = np.random.default_rng(0)
    topics, topic_of = rng.permutation(64).reshape(8, 8), rng.permutation(np.arange(32) % 8)
    pairs = np.stack([rng.choice(topics[topic], 4, replace=False) for topic in topic_of])
    sizes, lengths = np.ones(32), np.full(64, 5)
    passes = sum(len(b) for block in plan_blocks(pairs, lengths[:32], lengths, sizes, 20, 4) for b in block.train)
    in_given_order = sum(len(np.unique(pairs[start : start + 4])) for start in range(0, 32, 4))
    assert passes == len(np.unique(pairs))
    assert in_given_order > 1.5 * passes


def test_memory_for_everything_runs_everything_once():
    pairs, query_lengths, train_lengths, sizes = setting(1)
    plan = plan_blocks(pairs, query_lengths, train_lengths, sizes, 50, 1.001 * sizes.sum())
    assert len(plan) == 1


def test_dense_pairs_go_by_length():
    pairs = np.tile(np.arange(6), (9, 1))
    lengths = np.array([5, 3, 9, 4, 8, 2, 7, 6, 1])
    plan = plan_blocks(pairs, lengths, np.full(6, 4), np.ones(9), 100, 3)
    assert [sorted(lengths[q] for batch in block.queries for q in batch) for block in plan] == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]


def test_queries_without_candidates_are_planned_too():
    plan = plan_blocks(np.full((3, 2), -1), np.full(3, 4), np.full(5, 4), np.ones(3), 100, 10)
    assert [len(block.train) for block in plan] == [0]
    assert sorted(plan[0].queries[0]) == [0, 1, 2]


def test_a_plan_is_kept(tmp_path):
    """What was begun goes on with the plan that it was begun with."""
    pairs, query_lengths, train_lengths, sizes = setting(2)
    first = plan_blocks(pairs, query_lengths, train_lengths, sizes, 50, 20)
    other = plan_blocks(pairs, query_lengths, train_lengths, sizes, 50, 40)
    path = tmp_path / "store.plan.json"
    assert kept_plan(path, first) == first != other
    assert kept_plan(path, other) == first


def test_a_damaged_plan_is_named(tmp_path):
    path = tmp_path / "store.plan.json"
    for text in ("[{", '[{"other": 1}]', "3"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"store\.plan\.json: damaged plan"):
            kept_plan(path, [])
