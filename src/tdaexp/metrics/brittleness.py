"""Brittleness: the smallest share of a method's best rows without which an answer flips.

Source: Ilyas et al. 2022, section 4.1 (data support). Asked are queries that the explained model answers rightly. For
each, models are trained without the best rows by its scores, share after share from the smallest, until one does not
answer rightly: of a classifier, its likeliest class is another; of a language model, the greedy first token of the
answer is.

`brittleness` is the mean over queries of the smallest share that flips, on the grid of shares (lower: fewer rows carry
the answer); a query that none of them flips counts the largest, so that the mean is a lower bound then. `flipped` is
the share of the queries that flip at all. Random rows are the control: so many orders of all rows, the same for every
query.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tdaexp.metrics.intervals import bootstrap
from tdaexp.metrics.measured import measured
from tdaexp.metrics.removal import without
from tdaexp.metrics.retrained import OWN, RANDOM, Judged, Retrained, best_rows, some_queries
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
LEAD = "first_token_lead"
"""The measurement that is positive where the first token of the answer, or the class, is the likeliest."""


@dataclass(frozen=True)
class Order:
    """Rows [n] in the order in which they are left out for some `queries`; `label` says by whose scores.

    Orders of one `number` have one start, where starts are their own.
    """

    label: str
    number: int
    rows: np.ndarray
    queries: np.ndarray


def judge_brittleness(evidence: Retrained, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """Brittleness by each method's `scores` [Q, N] (NaN rows: a query that it does not answer), in each set and start.

    Errors (UserError): queries that compare two answers; no query that the model answers rightly and every method has
    scores of; a share that leaves no example of a class; as of the bank.
    """
    settings = evidence.settings.brittleness
    assert settings is not None
    methods = {label: values for label, values in scores.items() if label not in evidence.controls}
    asked = _asked(evidence, methods, settings.queries)
    some, count, every = evidence.of_queries(asked).asking(LEAD), len(evidence.problem.train), np.arange(len(asked))
    sizes = [max(1, round(share * count)) for share in settings.shares]
    orders = [
        Order(label, place, best_rows(values[query], sizes[-1]), every[place : place + 1])
        for label, values in methods.items()
        for place, query in enumerate(asked)
    ]
    if RANDOM not in methods:
        generator = np.random.default_rng([evidence.settings.seed, count])
        drawn = [generator.permutation(count)[: sizes[-1]] for _ in range(settings.random)]
        orders += [Order(RANDOM, number, rows, every) for number, rows in enumerate(drawn)]
    most = len(orders) * len(sizes) * len(evidence.settings.retraining.starts)
    log.info("brittleness: %d orders of rows at %d shares, at most %d trainings", len(orders), len(sizes), most)
    found = []
    for start in evidence.settings.retraining.starts:
        flips = search(some, start, sizes, orders)
        for label in dict.fromkeys(order.label for order in orders):
            mine = flips[[order.label == label for order in orders]]
            for name, places in some.by_query_set().items():
                numbers = summary(mine[:, places], np.array(settings.shares))
                for metric, one in zip(("brittleness", "flipped"), bootstrap(numbers, evidence.settings), strict=True):
                    found.append(Judged(label, name, f"{metric}_{start}", one, len(places)))
    return found


def search(evidence: Retrained, start: str, sizes: list[int], orders: list[Order]) -> np.ndarray:
    """Where in `sizes` each query of each order first flips [orders, Q], their number where none does, -1 if not asked.

    Every order goes on while a query of it has not flipped; at each size all of them are trained together.
    """
    count, queries = len(evidence.problem.train), len(evidence.problem.queries)
    flips, open_ = np.full((len(orders), queries), -1), np.zeros((len(orders), queries), dtype=bool)
    for row, order in enumerate(orders):
        flips[row, order.queries], open_[row, order.queries] = len(sizes), True
    largest = [evidence.variant(without(count, order.rows), start, order.number) for order in orders]
    evidence.bank.check(largest, f"brittleness, {sizes[-1]} rows")  # now, not after hours
    for place, size in enumerate(sizes):
        going = np.flatnonzero(open_.any(1))
        if not len(going):
            break
        variants = [
            evidence.variant(without(count, orders[row].rows[:size]), start, orders[row].number) for row in going
        ]
        outputs = evidence.outputs(variants, f"brittleness, {size} of {count} rows, {start} start")
        if not place and start != OWN:
            evidence.check(outputs)
        flipped = np.zeros_like(open_)
        flipped[going] = outputs <= 0
        flips[flipped & open_] = place
        open_ &= ~flipped
    return flips


def summary(flips: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The smallest share that flips a query, and whether any does [2, Q]: means over the orders that it is asked in."""
    asked = flips >= 0
    smallest, ever = np.append(shares, shares[-1])[flips], flips < len(shares)
    return np.stack([(values * asked).sum(0) / asked.sum(0) for values in (smallest, ever)])


def _asked(evidence: Retrained, methods: Mapping[str, np.ndarray], most: int) -> np.ndarray:
    """Rows of some queries that the explained model answers rightly, and that every method has scores of."""
    problem = evidence.problem
    if getattr(problem.queries, "contrastive", False):
        raise UserError(
            "metric.brittleness: queries that compare two answers have none that flips; take metric=removal, or "
            "queries without a rejected answer"
        )
    right = measured(problem, problem.model, LEAD) > 0
    known = {**methods, "": np.where(right[:, None], 0.0, np.nan)}
    asked = some_queries(problem, known, most, evidence.settings.seed)
    if not len(asked):
        raise UserError(
            f"metric.brittleness: of {len(right)} queries the model answers {int(right.sum())} rightly, and none of "
            "those has scores of every run; train longer, or name runs of the same queries (runs=[…])"
        )
    return asked
