"""Removal: what a query loses with the rows that a method holds for its best, against random rows.

Source: the counterfactuals of Ilyas et al. 2022 and Park et al. 2023. With f(q; S) the query's measurement by a model
trained on S, T(q) the share of the training rows with the highest scores, and R_j random ones of that size:

    mean over q of  [mean over j of f(q; all but R_j)] - f(q; all but T(q))        in the measurement's units (nats)

so that it is positive where the method's rows carried more of the answer than random ones; differences are within a
query, and all methods have the same queries and the same R_j. Random rows are a line of the table too: each query has
one of the R_j as its T, against the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.retrained import OWN, RANDOM, Judged, Retrained, best_rows, some_queries
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError


def judge_removal(evidence: Retrained, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """The mean loss by each method's `scores` [Q, N] (NaN rows: a query that it does not answer), in each set and
    start.

    Intervals are over queries and random removals. Errors (UserError): no query that every method answers; as of the
    bank.
    """
    settings = evidence.settings.removal
    assert settings is not None
    methods = {label: values for label, values in scores.items() if label not in evidence.controls}
    asked = some_queries(evidence.problem, methods, settings.queries, evidence.settings.seed)
    if not len(asked):
        raise UserError("metric.removal: no query has scores of every run; name runs of the same queries (runs=[…])")
    count = len(evidence.problem.train)
    size = max(1, round(settings.share * count))
    generator, some = np.random.default_rng([evidence.settings.seed, size]), evidence.of_queries(asked)
    rows = {label: [best_rows(values[query], size) for query in asked] for label, values in methods.items()}
    drawn = [generator.choice(count, size, replace=False) for _ in range(settings.random)]
    found = []
    for start in evidence.settings.retraining.starts:
        variants = [some.variant(without(count, one), start, place) for place, one in enumerate(drawn)]
        for mine in rows.values():  # a query's number is its start's, whatever the method
            variants += [some.variant(without(count, one), start, place) for place, one in enumerate(mine)]
        outputs = some.outputs(variants, f"removal of {size} rows, {start} start")
        by_chance, theirs = outputs[: len(drawn)], outputs[len(drawn) :].reshape(len(rows), len(asked), len(asked))
        if start != OWN:
            some.check(by_chance)
        losses = {label: np.diagonal(one) for label, one in zip(rows, theirs, strict=True)}
        for name, places in some.by_query_set().items():
            for label, left in losses.items():
                one = loss_interval(by_chance[:, places], left[places], evidence.settings)
                found.append(Judged(label, name, f"removal_{start}", one, len(places)))
            if not set(losses) & {RANDOM}:
                one = chance_interval(by_chance[:, places], evidence.settings)
                found.append(Judged(RANDOM, name, f"removal_{start}", one, len(places)))
    return found


def without(count: int, rows: np.ndarray) -> np.ndarray:
    """Members [count] bool: all but the rows."""
    member = np.ones(count, dtype=bool)
    member[rows] = False
    return member


def loss_interval(by_chance: np.ndarray, left: np.ndarray, settings: MetricSettings) -> Interval:
    """Mean of `by_chance` [R, Q] less `left` [Q], over both axes; random removals and queries are resampled."""
    (removals, queries), rng = by_chance.shape, np.random.default_rng(settings.seed)
    first = rng.multinomial(removals, np.full(removals, 1 / removals), settings.bootstrap) / removals
    second = rng.multinomial(queries, np.full(queries, 1 / queries), settings.bootstrap) / queries
    resampled = ((first @ by_chance - left) * second).sum(1)
    return _interval(float((by_chance.mean(0) - left).mean()), resampled, settings)


def chance_interval(by_chance: np.ndarray, settings: MetricSettings) -> Interval:
    """The same of random removals [R, Q] themselves: each query has one of them against the mean of the others."""
    removals, queries = by_chance.shape
    own = by_chance[np.arange(queries) % removals, np.arange(queries)]
    lost = (by_chance.sum(0) - own) / (removals - 1) - own
    rng = np.random.default_rng(settings.seed)
    picked = rng.multinomial(queries, np.full(queries, 1 / queries), settings.bootstrap) / queries
    return _interval(float(lost.mean()), picked @ lost, settings)


def _interval(value: float, resampled: np.ndarray, settings: MetricSettings) -> Interval:
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
