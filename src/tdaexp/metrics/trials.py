"""Trials: a query set judged on several random samples of its queries, as benchmarks of many queries do.

Bao et al. 2025, section 5.3, average over three trials of 200 queries. Trials are drawn without replacement inside
each, independently of each other, so a query may be in several: the mean over trials is a weighted mean over queries.
"""

from __future__ import annotations

import numpy as np

from tdaexp.metrics.settings import MetricSettings


def draw_trials(count: int, settings: MetricSettings) -> list[np.ndarray]:
    """Positions of the queries in each trial, of `count`; one trial of all where no number of queries is set."""
    size = count if settings.queries_per_trial is None else min(settings.queries_per_trial, count)
    if size == count:
        return [np.arange(count)]
    rng = np.random.default_rng([settings.seed, settings.trials])
    return [np.sort(rng.choice(count, size, replace=False)) for _ in range(settings.trials)]


def weights(count: int, settings: MetricSettings) -> np.ndarray:
    """In how many trials each query is [Q]."""
    return np.bincount(np.concatenate(draw_trials(count, settings)), minlength=count).astype(np.float64)


def spread(values: np.ndarray, settings: MetricSettings) -> float:
    """Standard deviation over trials of the mean of `values` [Q]; NaN with one trial."""
    trials = draw_trials(len(values), settings)
    return float(np.std([values[trial].mean() for trial in trials], ddof=1)) if len(trials) > 1 else float("nan")
