"""The walk over pairs with a work of whole numbers: every pair once, in blocks of any size, out of memory or killed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of, make_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tdaexp.gradients.pair_driver import PairWork, _Meeting, meet_pairs
from tdaexp.gradients.schedule import plan_blocks
from tdaexp.gradients.vector_products import vector_products
from tdaexp.runtime.blockstore import BlockStore

QUERIES, TRAIN = 7, 9
PAIRS = np.random.default_rng(0).integers(-1, TRAIN, (QUERIES, 4))
PAIRS[3] = -1


class Numbers(PairWork[np.ndarray]):
    """Query q holds 100 (q + 1); meeting example t gives 100 (q + 1) + t, and how often each was run is counted."""

    arrays = {"pair": "pair", "query": "query"}  # noqa: RUF012
    doing, kind, width = "numbers", "float64", 2

    def __init__(self, most: int = 99) -> None:
        self.most, self.held, self.met, self.finished = most, [], [], 0

    def plan(self, pairs, memory):
        ones = np.ones(len(pairs), dtype=np.int64)
        return plan_blocks(pairs, ones, np.ones(TRAIN, dtype=np.int64), ones.astype(float), 4, memory)

    def hold(self, block, write, later):
        self._run(block.members, self.held)
        values = 100.0 * (np.array(block.members) + 1)
        later.add(
            lambda found: write("query", slice(None), found), torch.from_numpy(np.stack([values, -values], axis=1))
        )
        return values

    def meet(self, batch, held, pairs, write, later):
        self._run(batch, self.met)
        found = held[pairs.left.numpy()] + np.array(batch)[pairs.right.numpy()]
        write("pair", np.stack([found, -found], axis=1))

    def _run(self, members, counted):
        if len(members) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        counted += members

    def done(self):
        self.finished += 1


def right(found, pairs=PAIRS):
    queries = 100.0 * (np.arange(len(pairs)) + 1)
    wanted = np.where(pairs < 0, np.nan, queries[:, None] + pairs)
    np.testing.assert_array_equal(found["pair"], np.stack([wanted, -wanted], axis=2))
    np.testing.assert_array_equal(found["query"], np.stack([queries, -queries], axis=1))


@pytest.mark.parametrize("held", [1, 2, 7])
def test_every_pair_whatever_fits(held, tmp_path):
    work = Numbers()
    right(meet_pairs(work, PAIRS, store=tmp_path / "s", cache_gb=held / 1e9))
    assert sorted(work.held) == list(range(QUERIES)) and work.finished == 1
    if held == QUERIES:
        assert sorted(work.met) == np.unique(PAIRS[PAIRS >= 0]).tolist()
    again = Numbers(most=0)
    right(meet_pairs(again, PAIRS, store=tmp_path / "s", cache_gb=1.0))  # read, in blocks of the first plan
    assert not again.finished


@pytest.mark.parametrize("most", [1, 2])
def test_out_of_memory_halves(most, tmp_path):
    right(meet_pairs(Numbers(most), PAIRS, store=tmp_path / "s", cache_gb=1.0))


def test_a_killed_walk_computes_no_block_twice(tmp_path, monkeypatch):
    first, second, real = Numbers(), Numbers(), BlockStore.write

    def write(store, block, values):
        if block == 2:
            raise KeyboardInterrupt
        real(store, block, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockStore, "write", write)
        meet_pairs(first, PAIRS, store=tmp_path / "s", cache_gb=2e-9)
    right(meet_pairs(second, PAIRS, store=tmp_path / "s", cache_gb=1.0))
    assert len(first.held) + len(second.held) == QUERIES + 2  # the block that was lost


@pytest.mark.parametrize("shape", [(3, 2), (3, 0)])
def test_queries_without_any_candidate(shape, tmp_path):
    pairs = np.full(shape, -1)
    right(meet_pairs(Numbers(), pairs, store=tmp_path / "s", cache_gb=1.0), pairs)


def test_vectors_of_queries_without_any_candidate_are_not_asked_for(models, tmp_path):
    train = gradients_of(models("olmo-tied"), make_examples(1, 4))
    found = vector_products(train, np.full((3, 2), -1), lambda _: pytest.fail("asked"), store=tmp_path / "s")
    assert found.shape == (3, 2, len(train.components)) and np.isnan(found).all()


@settings(deadline=None)
@given(st.integers(0, 99), st.permutations(range(6)), st.integers(1, 6))
def test_where_a_batchs_examples_stand_in_a_table(seed, order, size):
    """Row by row, an example that stands in a row twice too."""
    table = np.random.default_rng(seed).integers(-1, 6, (5, 3))
    batch = list(order[:size])
    (rows, columns), there = _Meeting(table).of(batch)
    wanted = [(row, column, batch.index(t)) for (row, column), t in np.ndenumerate(table) if t in batch]
    assert list(zip(rows.tolist(), columns.tolist(), there.tolist(), strict=True)) == wanted
