"""Keeping: how good a model is that was trained on the rows alone that a method holds for the best.

Source: data pruning and selection by influence (Xia et al. 2024 keep a share of the rows by their similarity to a few
examples of the task). The queries of a set are cut into two halves. K is the share of the training rows with the
highest mean score over the queries of the first half, R_j random rows of that size, and q a query of the second, which
decided nothing. With f(q; S) the query's measurement by a model trained on S, over r repeated trainings each,

    mean over q of  [mean over r of f(q; K)] - [mean over j of f(q; R_j)]        in the measurement's units (nats)

so that it is positive where the rows that were kept teach more than random ones. The line `all rows` is the same of
models trained on every row. From starts of their own models see as many epochs as the explained one, so that fewer rows
are fewer steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.judging_settings import Keeping
from tdaexp.metrics.removal import without
from tdaexp.metrics.retrained import OWN, Judged, Retrained, best_rows, some_queries
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError
from tdaexp.training.bank import Variant

ALL = "all rows"
"""Stands in a table where a method's label does."""


def judge_keeping(evidence: Retrained, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """The gain by each method's `scores` [Q, N] (NaN rows: a query that it does not answer), in each set and start.

    Intervals are over queries, repeated trainings and random rows. Errors (UserError): a set of fewer than two queries
    that every method answers; as of the bank.
    """
    settings = evidence.settings.keeping
    assert settings is not None
    problem = evidence.problem
    methods = {label: values for label, values in scores.items() if label not in evidence.controls}
    asked = some_queries(problem, methods, len(problem.queries), evidence.settings.seed)
    some = evidence.of_queries(asked)
    sets = some.by_query_set()
    small = [name for name, rows in sets.items() if len(rows) < 2]
    if small or not sets:
        raise UserError(
            f"metric.keeping: {', '.join(small) or 'no set'}: fewer than two queries that every run answers; one half "
            "decides, the other judges; ask more, or name runs of the same queries (runs=[…])"
        )
    halves = {name: halved(rows, name, evidence.settings.seed) for name, rows in sets.items()}
    found = []
    for start in evidence.settings.retraining.starts:
        plans = _plans(some, settings, {label: values[asked] for label, values in methods.items()}, halves, start)
        count = len(problem.train)
        what = f"keeping {round(settings.share * count)} of {count} rows, {start} start"
        outputs = some.outputs([variant for plan in plans.values() for variant in plan], what)
        ends = np.cumsum([len(plan) for plan in plans.values()])
        each = dict(zip(plans, np.split(outputs, ends[:-1]), strict=True))
        chance = each.pop(("", ""))
        if start != OWN:
            some.check(chance)
        for (label, name), values in each.items():
            for own in [name] if name else list(halves):
                judges = halves[own][1]
                one = gain(values[:, judges], chance[:, judges], evidence.settings)
                found.append(Judged(label, own, f"keeping_{start}", one, len(judges)))
    return found


def halved(rows: np.ndarray, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The queries of a set in two halves, drawn by the seed: those that decide, and those that judge (more, if odd)."""
    order = np.random.default_rng([seed, *name.encode()]).permutation(rows)
    return np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])


def _plans(
    some: Retrained,
    settings: Keeping,
    scores: Mapping[str, np.ndarray],
    halves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    start: str,
) -> dict[tuple[str, str], list[Variant]]:
    """Trainings by label and query set; all rows serve every set, random ones are called by nothing."""
    count = len(some.problem.train)
    size = max(1, round(settings.share * count))
    generator = np.random.default_rng([some.settings.seed, size])

    def repeated(member: np.ndarray) -> list[Variant]:
        return [some.variant(member, start, number) for number in range(settings.repeats)]

    plans: dict[tuple[str, str], list[Variant]] = {}
    for label, values in scores.items():
        for name, (deciding, _) in halves.items():
            plans[label, name] = repeated(kept(count, best_rows(values[deciding].mean(0), size)))
    plans[ALL, ""] = repeated(np.ones(count, dtype=bool))
    drawn = [kept(count, generator.choice(count, size, replace=False)) for _ in range(settings.random)]
    plans["", ""] = [some.variant(member, start, number) for number, member in enumerate(drawn)]
    return plans


def kept(count: int, rows: np.ndarray) -> np.ndarray:
    """Members [count] bool: the rows alone."""
    return ~without(count, rows)


def gain(values: np.ndarray, chance: np.ndarray, settings: MetricSettings) -> Interval:
    """Mean of `values` [R, Q] less that of `chance` [J, Q]; trainings, random rows and queries are resampled."""
    rng = np.random.default_rng(settings.seed)

    def picked(count: int) -> np.ndarray:
        return rng.multinomial(count, np.full(count, 1 / count), settings.bootstrap) / count

    queries = picked(values.shape[1])
    drawn = ((picked(len(values)) @ values - picked(len(chance)) @ chance) * queries).sum(1)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(values.mean() - chance.mean()), float(low), float(high))
