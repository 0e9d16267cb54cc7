"""Mean rank correlations over queries whose values were all found in the same few trials, with their intervals.

The trials (subsets that a model was trained on, examples that were left out) are shared by the queries, so that most of
the chance is in these: trials and queries are both resampled.
"""

from __future__ import annotations

import logging

import numpy as np

from tdaexp.metrics.intervals import Interval, around
from tdaexp.metrics.rank_correlation import spearman
from tdaexp.metrics.settings import MetricSettings

log = logging.getLogger(__name__)
FEW = 20
"""Trials below which an interval over them tells little."""


def tell_few(key: str, count: int) -> None:
    """Warn where so few trials, as the `key` says, are resampled."""
    if count < FEW:
        log.warning("metric.%s=%d: fewer than %d tell little; the intervals are wide, and rough", key, count, FEW)


def correlations(foretold: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Spearman's ρ per query [Q] of rows [Q, S]: 0 where all that is `foretold` is the same, which foretells nothing.

    NaN where all that was `found` is the same.
    """
    silent, same = (np.ptp(values, axis=1) == 0 for values in (foretold, found))
    return np.where(same, np.nan, np.where(silent, 0.0, spearman(foretold, found)))


def spearman_interval(foretold: np.ndarray, found: np.ndarray, settings: MetricSettings) -> Interval:
    """The mean of `correlations` over queries with its interval (`around`); rows [Q, S], no `found` constant."""
    rng, (queries, trials) = np.random.default_rng(settings.seed), foretold.shape
    weights = rng.multinomial(trials, np.full(trials, 1 / trials), settings.bootstrap).T.astype(np.float32)
    picked = rng.multinomial(queries, np.full(queries, 1 / queries), settings.bootstrap)  # [R, Q]
    total = np.zeros(settings.bootstrap)
    for row in range(queries):
        silent = np.ptp(foretold[row]) == 0
        rho = np.zeros(settings.bootstrap) if silent else weighted_spearman(foretold[row], found[row], weights)
        total += np.where(picked[:, row] > 0, rho * picked[:, row], 0)
    return around(float(correlations(foretold, found).mean()), total / queries, settings)


def weighted_spearman(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ [R] of values [S] each, ties by average rank, where value j counts `weights`[j] times, [S, R]
    float32.

    A value's rank less the mean rank is half the sum of the others' weights, each with the sign of the difference. NaN
    where all values that count are the same.
    """
    left, right = (np.sign(values[:, None] - values).astype(np.float32) @ weights for values in (first, second))
    covariance = (left * right * weights).sum(0, dtype=np.float64)
    norms = np.sqrt((left**2 * weights).sum(0, dtype=np.float64) * (right**2 * weights).sum(0, dtype=np.float64))
    return np.asarray(np.divide(covariance, norms, out=np.full(len(norms), np.nan), where=norms > 0))
