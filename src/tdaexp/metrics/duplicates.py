"""Duplicates: is a query's own copy in the training data found, and do copies get the same score?

Two tests that a sensible method passes (cf. the identical class test of Hanawa et al. 2021, of which the first is the
limit): `duplicate_found` is the share of the queries that repeat a training row whose best row is one of their copies.
`duplicates_apart` is, of a query, the root mean square over pairs of a training row and its repetition of the
difference of their scores, over that of pairs of random rows: 0 where copies get the same score, 1 where they are as
far apart as any two rows; the mean over queries.

What repeats is told by content: a text reads the same (prompt and completion); other examples give the model the same
inputs and have the same target. In a task the queries of dataset.query_sets=[train] repeat rows, and
dataset.repeated=0.1 makes rows that repeat others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from tdaexp.data.examples import Examples
from tdaexp.metrics.as_it_is import AsItIs
from tdaexp.metrics.intervals import Interval, bootstrap
from tdaexp.metrics.retrained import Judged, rows_by_set
from tdaexp.metrics.settings import MetricSettings
from tdaexp.objectives.base import Objective
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

LEAST = 1e-12  # spread below which all scores of a query are the same


def judge_duplicates(evidence: AsItIs, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """Both numbers for each method's `scores` [Q, N] (NaN: a pair that it did not score), as far as there are copies.

    Intervals are over queries. Errors (UserError): no query repeats a row, and no row another.
    """
    settings, problem = evidence.settings.duplicates, evidence.problem
    assert settings is not None
    content = contents(problem.train, problem.objective)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(content):
        places[one].append(row)
    copies = [places.get(one, []) for one in contents(problem.queries, problem.objective)]
    pairs = np.array([(mine[0], other) for mine in places.values() for other in mine[1:]]).reshape(-1, 2)
    if not any(copies) and not len(pairs):
        raise UserError(
            "metric.duplicates: no query repeats a training row, and no row another; ask about training rows "
            "(dataset.query_sets=[train]) or repeat some (dataset.repeated=0.1), both of classification tasks"
        )
    generator = np.random.default_rng([evidence.settings.seed, len(pairs)])
    pairs = pairs[np.sort(generator.permutation(len(pairs))[: settings.pairs])]
    other = np.stack([generator.choice(len(content), 2, replace=False) for _ in range(settings.pairs)])
    found = []
    for name, rows in rows_by_set(problem).items():
        repeating = rows[[bool(copies[row]) for row in rows]]
        for label, values in scores.items():
            known = repeating[[bool(np.isfinite(values[row, copies[row]]).any()) for row in repeating]]
            if len(known):
                hits = np.array([float(np.nanargmax(values[row]) in copies[row]) for row in known])
                (interval,) = bootstrap(hits[None], evidence.settings)
                found.append(Judged(label, name, "duplicate_found", interval, len(known)))
            apart = spread_of(values[rows], pairs, other, evidence.settings) if len(pairs) else None
            if apart is not None:
                found.append(Judged(label, name, "duplicates_apart", *apart))
    return found


def spread_of(
    values: np.ndarray, pairs: np.ndarray, other: np.ndarray, settings: MetricSettings
) -> tuple[Interval, int] | None:
    """`duplicates_apart` of scores [Q, N] by pairs of rows [P, 2], with the number of its queries; None without one.

    Counted are queries that have scores of some pair of both kinds, and whose scores are not all the same.
    """
    near, far = (_mean_square(values[:, both[:, 0]] - values[:, both[:, 1]]) for both in (pairs, other))
    counted = ~np.isnan(near) & (far > LEAST * np.nanmax(values**2, initial=0))
    if not counted.any():
        return None
    ratio = np.sqrt(near[counted] / far[counted])
    (one,) = bootstrap(ratio[None], settings)
    return one, int(counted.sum())


def contents(examples: Any, objective: Objective[Any]) -> list[str]:
    """What each example says, the same for two that repeat each other."""
    if isinstance(examples, Examples):
        return [" ".join(text.split()) for text in examples.texts]
    batches = (objective.batch(examples, [row]) for row in range(len(examples)))
    return [fingerprint(*(tensor.numpy() for tensor in one.tensors())) for one in batches]


def _mean_square(differences: np.ndarray) -> np.ndarray:
    """Of each row the mean of the squares that are known; NaN where none is."""
    known = ~np.isnan(differences)
    total = np.where(known, differences, 0.0) ** 2
    return np.where(known.any(1), total.sum(1) / np.maximum(known.sum(1), 1), np.nan)
