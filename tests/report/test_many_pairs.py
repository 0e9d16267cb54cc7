"""Answers about many pairs: memory holds blocks of queries, numbers are those of an answer that is in memory whole."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.gradients import pair_driver
from tdaexp.gradients.pair_driver import PairWork, meet_pairs
from tdaexp.gradients.schedule import plan_blocks
from tdaexp.metrics.selection import study
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.report import write_report
from tdaexp.runtime import rows
from tdaexp.runtime.rows import Rows

TRAIN, WIDTH, HELD = 400, 16, 20
BLOCK = HELD * TRAIN * WIDTH * 4 * 2  # bytes of a block's result: two arrays


class Numbers(PairWork[np.ndarray]):
    """Random products of every pair, of `HELD` queries at a time."""

    arrays = {"dot": "pair", "train_sq": "pair", "query_sq": "query"}  # noqa: RUF012
    doing, kind, width = "numbers", "float32", WIDTH

    def plan(self, pairs, memory):
        ones = np.ones(max(len(pairs), TRAIN), dtype=np.int64)
        return plan_blocks(pairs, ones[: len(pairs)], ones[:TRAIN], ones[: len(pairs)], 50, HELD)

    def hold(self, block, write, later):
        rng = np.random.default_rng(block.members[0])
        write("query_sq", slice(None), 1 + rng.random((len(block.members), WIDTH)))
        return rng

    def meet(self, batch, held, pairs, write, later):
        write("dot", held.standard_normal((len(pairs), WIDTH)))
        write("train_sq", 1 + held.random((len(pairs), WIDTH)))


def answered(folder, queries):
    """The answer of a walk over all pairs; ids, truth and lexical scores as a problem gives them."""
    pairs, ids = np.tile(np.arange(TRAIN), (queries, 1)), np.array([f"t{k}" for k in range(TRAIN)], object)
    found = meet_pairs(Numbers(), pairs, store=folder / "store", cache_gb=1.0)
    return influence.build(
        found["dot"],
        query=[f"q{k}" for k in range(queries)],
        query_set=["all"] * queries,
        train=Rows(pairs.shape, object, lambda places: ids[pairs[places]]),
        truth=pairs == np.arange(queries)[:, None] % TRAIN,
        truth_known=np.ones(queries, bool),
        bm25=Rows(pairs.shape, np.float64, lambda places: np.cos(pairs[places] * places[:, None])),
        component=[f"layers.{k}.w" for k in range(WIDTH)],
        size=np.arange(1, WIDTH + 1),
        query_sq=found["query_sq"],
        train_sq=found["train_sq"],
        attrs={"method": "full", "label": "full"},
    )


def reported(folder, queries):
    """Metrics of a run from the walk to the report, and the most memory that it took, in bytes."""
    texts = {"query": {}, "train": {}}
    tracemalloc.start()
    try:
        influence.save(answered(folder, queries), folder / "influence.zarr")
        stored = influence.load(folder / "influence.zarr")
        settings = MetricSettings(plots=False, bootstrap=100, folds=2)
        return write_report(folder, {"full": stored}, texts, settings), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def small(monkeypatch):
    """Blocks, files and studies in proportion to the test."""
    monkeypatch.setattr(rows, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(pair_driver, "FILE_BYTES", BLOCK // 8)
    monkeypatch.setattr("tdaexp.metrics.selection.STUDIED", BLOCK // 8)


@pytest.mark.long
def test_ten_times_the_pairs_take_no_more_than_three_blocks_results(small, tmp_path):
    reported(tmp_path / "first", 20)  # libraries are loaded on first use
    (_, few), (_, many) = (reported(tmp_path / str(count), count) for count in (30, 300))
    answer, pairs = 300 * TRAIN * WIDTH * 4 * 2, 300 * TRAIN * 8
    # the pairs are in memory, and sorted for the plan; so are the scores, twice while they are put together
    assert many < few + 6 * pairs, (few, many)
    assert many < answer, many


@pytest.mark.long
def test_numbers_are_those_of_one_block(tmp_path, monkeypatch):
    whole, _ = reported(tmp_path / "whole", 30)
    monkeypatch.setattr(rows, "BLOCK_BYTES", BLOCK // 5)
    monkeypatch.setattr(pair_driver, "FILE_BYTES", 1)
    cut, _ = reported(tmp_path / "cut", 30)
    assert cut == whole
    stores = [influence.load(tmp_path / name / "influence.zarr") for name in ("whole", "cut")]
    assert stores[0].identical(stores[1])
    assert len(list((tmp_path / "cut" / "influence.zarr" / "influence").iterdir())) > 8  # files of some queries each
    np.testing.assert_array_equal(influence.best(stores[1], 3), influence.top(influence.scores(stores[0]).values, 3))
    np.testing.assert_array_equal(influence.dense(stores[0]), influence.dense(stores[1]))


def test_a_study_of_too_many_products_draws_queries_and_says_so(small, tmp_path):
    reported(tmp_path, 60)
    (found,) = study(influence.load(tmp_path / "influence.zarr"), MetricSettings(folds=2)).values()
    assert found.asked == 20 and len(found.peak_held_out) == 20
    assert "components are studied on 20 of 60 queries" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["all/queries"] == 60
