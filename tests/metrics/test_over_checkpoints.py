"""Choices over checkpoints: on stores in which another component finds the source early than late."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics.over_checkpoints import jaccard, over_checkpoints
from tdaexp.metrics.settings import MetricSettings
from tdaexp.papers.base import Evidence
from tdaexp.papers.over_checkpoints import OverCheckpoints
from tdaexp.runtime.errors import UserError

QUERIES, TRAIN = 40, 5
SETTINGS = MetricSettings(bootstrap=200, folds=4)
NAMES = ["early", "late", "noise"]


def store(knows: str, step: int | None = None, names: list[str] = NAMES, queries: range = range(QUERIES)):
    """Products in which the component of that name finds the source of every query, and the others nothing."""
    rng = np.random.default_rng(len(knows))
    values = 0.1 * rng.normal(size=(len(queries), TRAIN, 3))
    truth = np.zeros((len(queries), TRAIN), bool)
    truth[:, 2] = True
    values[:, 2, NAMES.index(knows)] = 1.0
    ids = np.array([f"t{k}" for k in range(TRAIN)], dtype=object)
    found = influence.build(
        values, query=[f"q{k}" for k in queries], query_set=["asked"] * len(queries),
        train=np.tile(ids, (len(queries), 1)),
        truth=truth, truth_known=np.ones(len(queries), bool), component=names, size=np.array([10, 10, 80]),
    )  # fmt: skip
    told = None if step is None else f"kept/step-{step}"
    return found.assign_attrs(method="full", label="full", config={"model": {"pretrained": told}})


def test_a_choice_that_moved_serves_no_more_and_one_that_stayed_does():
    early, middle, late = over_checkpoints([store("early"), store("late"), store("late")], 0.1, SETTINGS)
    assert early.chosen.tolist() == [True, False, False] and late.chosen.tolist() == [False, True, False]
    assert (early.overlap, middle.overlap, late.overlap) == (0, 1, 1) and early.halves == late.halves == 1
    assert early.here.mean() == late.here.mean() == middle.at_last.mean() == 1 and early.at_last.mean() < 0.6
    np.testing.assert_array_equal(late.here, late.at_last)
    assert early.alone[0] == late.alone[1] == 1 and early.rank < middle.rank == 1
    assert late.full.mean() == 1


def test_a_choice_does_not_see_the_queries_that_it_is_judged_on():
    """Where one fold's queries alone are found by a component, no choice for that fold knows it."""
    one = store("early")
    fold = np.random.default_rng(SETTINGS.seed).permutation(np.arange(QUERIES) % SETTINGS.folds)
    values = one["influence"].values.copy()
    values[fold == 0, 2] = [0.0, 1.0, 0.0]
    found = over_checkpoints([one.assign(influence=(one["influence"].dims, values))] * 2, 0.1, SETTINGS)[0]
    assert found.here[fold != 0].mean() == 1 and found.here[fold == 0].mean() < 0.7
    np.testing.assert_array_equal(found.here, found.at_last)


def test_the_peak_is_where_greedy_search_is_highest():
    found = over_checkpoints([store("early"), store("late")], None, SETTINGS)
    assert [one.chosen.tolist() for one in found] == [[True, False, False], [False, True, False]]


def test_overlap_is_what_both_take_over_what_either_takes():
    assert jaccard(np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 1], bool)) == 0.25


def test_queries_count_that_all_stores_have():
    found = over_checkpoints([store("early"), store("late", queries=range(10, 50))], 0.1, SETTINGS)
    assert len(found[0].here) == len(found[1].here) == 30
    with pytest.raises(UserError, match=r"1 queries with a known source are in all stores"):
        over_checkpoints([store("early"), store("late", queries=range(39, 60))], 0.1, SETTINGS)


def test_stores_of_other_components_are_refused():
    with pytest.raises(UserError, match="runs: the stores have other components"):
        over_checkpoints([store("early"), store("late", names=["a", "b", "c"])], 0.1, SETTINGS)


def analysed(*stores, budget=0.1):
    config = SimpleNamespace(metric=SETTINGS)
    return OverCheckpoints(budget).run(Evidence(config, list(stores)))


def test_the_analysis_orders_checkpoints_by_step():
    found = analysed(store("late", 400), store("early", 50), store("late", 100))
    table = found.tables["over_checkpoints_asked"]
    assert table["step"].tolist() == [50, 100, 400] and table["components"].tolist() == ["early", "late", "late"]
    assert table["overlap"].tolist() == [0, 1, 1] and found.metrics["asked/overlap/50"] == 0
    assert "chosen at step 50 and at the last, 400, have an overlap of 0.00" in found.statements[0].text
    assert [one.name for one in found.drawings] == ["over_checkpoints"]


@pytest.mark.parametrize("stores", [[store("late", 400)], [store("late", 400), store("late", None)]])
def test_the_analysis_needs_checkpoints_and_says_how_they_are_made(stores):
    with pytest.raises(UserError, match=r"runs: needs two or more stores .* model.pretrained=CHECKPOINT"):
        analysed(*stores)


def test_checkpoints_are_those_of_one_training_and_each_is_there_once():
    with pytest.raises(UserError, match=r"runs: two runs are of step 50; name one for each checkpoint"):
        analysed(store("early", 50), store("late", 50), store("late", 100))
    other = store("late", 100)
    other.attrs["config"] = {"model": {"pretrained": "elsewhere/step-100"}}
    with pytest.raises(UserError, match=r"runs: checkpoints of several trainings \(.*elsewhere, .*kept\); name runs"):
        analysed(store("early", 50), other)


def test_a_budget_that_is_no_share_is_refused():
    with pytest.raises(UserError, match=r"analysis.budget=2: must be above 0 and at most 1"):
        OverCheckpoints(2)
