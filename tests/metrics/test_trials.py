"""Retrieval over trials, and weighted intervals, against resampling by hand."""

import numpy as np
import pytest

from tdaexp.metrics.compare import compare
from tdaexp.metrics.intervals import bootstrap
from tdaexp.metrics.judge import judge
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.trials import draw_trials, spread, weights
from tdaexp.runtime.errors import UserError


def test_trials_are_samples_without_replacement():
    settings = MetricSettings(trials=4, queries_per_trial=6, seed=2)
    trials = draw_trials(10, settings)
    assert [len(set(trial)) for trial in trials] == [6] * 4
    assert len({tuple(trial) for trial in trials}) > 1
    assert [t.tolist() for t in trials] == [t.tolist() for t in draw_trials(10, settings)]
    assert weights(10, settings).sum() == 24
    values = np.random.default_rng(0).random(10)
    means = [values[trial].mean() for trial in trials]
    assert np.average(values, weights=weights(10, settings)) == pytest.approx(np.mean(means))
    assert spread(values, settings) == pytest.approx(np.std(means, ddof=1))


@pytest.mark.parametrize("size", [None, 10, 200])
def test_one_trial_of_all_where_there_are_no_more_queries(size):
    settings = MetricSettings(trials=3, queries_per_trial=size)
    assert [trial.tolist() for trial in draw_trials(10, settings)] == [list(range(10))]
    assert np.isnan(spread(np.arange(10.0), settings))


def test_weighted_intervals_are_those_of_repeated_queries():
    """A weight of 0 drops a query; the interval widens with unequal weights and holds the weighted mean."""
    rng = np.random.default_rng(1)
    values = rng.random((2, 300))
    weight = rng.integers(0, 3, 300).astype(float)
    settings = MetricSettings(bootstrap=4000)
    found = bootstrap(values, settings, weight)
    kept = weight > 0
    drawn = np.random.default_rng(7)
    resampled = np.empty((4000, 2))
    for k in range(4000):
        picked = drawn.choice(np.flatnonzero(kept), kept.sum())
        resampled[k] = values[:, picked] @ weight[picked] / weight[picked].sum()
    for row, interval in enumerate(found):
        assert interval.value == pytest.approx(np.average(values[row], weights=weight))
        low, high = np.quantile(resampled[:, row], [0.025, 0.975])
        assert interval.low == pytest.approx(low, abs=3e-3) and interval.high == pytest.approx(high, abs=3e-3)


def test_equal_weights_change_nothing():
    values, settings = np.random.default_rng(1).random((2, 30)), MetricSettings(bootstrap=100)
    assert bootstrap(values, settings, np.full(30, 2.0)) == bootstrap(values, settings)


def test_a_judgement_over_trials(products_dataset):
    settings = MetricSettings(bootstrap=100, trials=3, queries_per_trial=8)
    flat, whole = judge(products_dataset, settings), judge(products_dataset, MetricSettings(bootstrap=100))
    assert flat["hard/bm25_accuracy"] != whole["hard/bm25_accuracy"]
    assert "hard/mrr_sd" in flat and "hard/mrr_sd" not in whole
    assert flat["hard/mrr_low"] <= flat["hard/mrr"] <= flat["hard/mrr_high"]
    assert "hard/recall@5" not in flat  # of three candidates


def test_rank_correlation_with_a_named_reference(products_dataset, select_dataset):
    negative = products_dataset.assign(influence=-products_dataset["influence"]).assign_attrs(method="cg", label="cg")
    stores = {"full": products_dataset, "select": select_dataset, "cg": negative}
    usual = compare(stores, MetricSettings(bootstrap=50)).set_index(["method", "query_set"])["rank_correlation"]
    table = compare(stores, MetricSettings(bootstrap=50, reference="cg")).set_index(["method", "query_set"])
    found = table["rank_correlation"]
    assert found["cg", "easy"] == usual["full", "easy"] == 1 and found["full", "easy"] == -1  # signed
    assert found["select", "hard"] == pytest.approx(-usual["select", "hard"])
    assert table.loc[("select", "hard"), "rank_correlation_low"] <= found["select", "hard"]
    with pytest.raises(UserError, match=r"unknown method 'cgg'.*cg"):
        compare(stores, MetricSettings(reference="cgg"))
    with pytest.raises(UserError, match="several stores are of this method; name one of a, b"):
        compare({"a": negative, "b": negative}, MetricSettings(reference="cg"))


@pytest.mark.parametrize("key", ["trials", "queries_per_trial"])
def test_bad_numbers(key):
    with pytest.raises(UserError, match=rf"metric\.{key}=0: must be at least 1"):
        MetricSettings(**{key: 0})
