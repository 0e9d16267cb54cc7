"""Rank correlations of resampled trials: each is scipy's of the repeated values; intervals know what is shared."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tdaexp.metrics.resampled_ranks import correlations, spearman_interval, tell_few, weighted_spearman
from tdaexp.metrics.settings import MetricSettings


@pytest.mark.parametrize("tied", [False, True])
def test_a_resample_is_spearman_of_repeated_values(tied):
    generator = np.random.default_rng(4)
    first, second = generator.standard_normal((2, 12))
    if tied:
        first = np.round(first)
    weights = generator.multinomial(12, np.full(12, 1 / 12), 20).T
    found = weighted_spearman(first, second, weights.astype(np.float32))
    wanted = [spearmanr(np.repeat(first, one), np.repeat(second, one)).statistic for one in weights.T]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_the_interval_knows_that_queries_share_trials():
    """Twenty copies of one query tell no more than the one: the interval is as wide as over trials alone."""
    generator = np.random.default_rng(5)
    foretold, found = np.tile(generator.standard_normal(40), (20, 1)), np.tile(generator.standard_normal(40), (20, 1))
    one = spearman_interval(foretold, found, MetricSettings(bootstrap=500))
    assert one.value == pytest.approx(correlations(foretold, found)[0])
    assert one.low < one.value < one.high and 0.4 < one.high - one.low < 0.8  # 4 / sqrt(40) = 0.63


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of normal pairs with ρ = 0.5 the 90 % interval holds Spearman's 6/π asin(ρ/2) about nine times of ten."""
    generator, truth, held = np.random.default_rng(6), 6 / np.pi * np.arcsin(0.25), 0
    for _ in range(60):
        first, noise = generator.standard_normal((2, 1, 60))
        second = 0.5 * first + np.sqrt(0.75) * noise
        one = spearman_interval(first, second, MetricSettings(bootstrap=200, confidence=0.9))
        held += one.low <= truth <= one.high
    assert 47 <= held <= 60  # 54 ± 3 standard deviations


def test_intervals_of_strong_correlations_hold_them():
    """Of normal pairs with ρ = 0.99 the 95 % interval holds 6/π asin(ρ/2) nearly as often, and always its own value."""
    generator, truth, held = np.random.default_rng(7), 6 / np.pi * np.arcsin(0.495), 0
    for _ in range(60):
        first, noise = generator.standard_normal((2, 4, 60))
        one = spearman_interval(first, 0.99 * first + np.sqrt(1 - 0.99**2) * noise, MetricSettings(bootstrap=200))
        held += one.low <= truth <= one.high
        assert one.low < one.value < one.high < 1
    assert held >= 51  # percentiles that are not moved hold it 20 times


def test_scores_that_foretell_nothing_count_zero():
    found = np.random.default_rng(0).standard_normal((2, 30))
    foretold = np.stack([found[0], np.ones(30)])
    assert correlations(foretold, found).tolist() == [1, 0]
    one = spearman_interval(foretold, found, MetricSettings(bootstrap=100))
    assert one.value == 0.5 and (one.low, one.high) == (0, 1)
    assert np.isnan(correlations(found, foretold)[1])


def test_few_trials_are_told(caplog):
    tell_few("lds.subsets", 20)
    assert not caplog.records
    tell_few("lds.subsets", 5)
    assert "metric.lds.subsets=5: fewer than 20 tell little" in caplog.text
