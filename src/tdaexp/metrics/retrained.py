"""What judges by retraining look at: a problem, the bank of its models trained again, and scores of all pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from zipfile import BadZipFile

import numpy as np

from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.measured import measured
from tdaexp.metrics.settings import MetricSettings
from tdaexp.objectives.measurements import sources
from tdaexp.problem import Problem
from tdaexp.runtime import cache, ranks
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.reading import reason
from tdaexp.training.bank import Bank, Variant

SAME, OWN = "same", "own"
RANDOM = "random"
"""The label of chance, where no run is of it."""
CEILING = "noise ceiling"
"""Stands in a table where a method's label does."""
FURTHEST = 0.5
"""How far the training on all examples may end from the explained model, in standard deviations over the subsets."""


@dataclass(frozen=True)
class Judged:
    """One number of a `metric`: of a method's `label`, or of a control, on so many `queries` of a set."""

    label: str
    query_set: str
    metric: str
    interval: Interval
    queries: int


def rows_by_set(problem: Problem) -> dict[str, np.ndarray]:
    """Rows of the queries of each set."""
    names = np.array(problem.query_set, dtype=object)
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def some_queries(problem: Problem, scores: Mapping[str, np.ndarray], most: int, seed: int) -> np.ndarray:
    """Rows of at most so many queries of each set, drawn by the seed of those that every one of the `scores` answers.

    `scores` [Q, N] have a row of NaN for a query that they do not answer. In the problem's order; none where there is
    none.
    """
    answered = np.ones(len(problem.queries), dtype=bool)
    for values in scores.values():
        answered &= ~np.isnan(values).all(1)
    drawn = []
    for name, rows in rows_by_set(problem).items():
        known = rows[answered[rows]]
        generator = np.random.default_rng([seed, *name.encode()])
        drawn.append(np.sort(generator.choice(known, min(most, len(known)), replace=False)))
    return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def best_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows [count] with the largest scores [N], best first, ties by row; those without a score never."""
    order = np.argsort(-scores, kind="stable")[:count]  # NaN sorts last
    return np.asarray(order[~np.isnan(scores[order])])


@dataclass(frozen=True)
class Retrained:
    """The models of a `bank`, asked the queries of the `problem` that they were trained again for.

    `controls` are the labels of scores that no run gave.
    """

    problem: Problem
    bank: Bank
    settings: MetricSettings
    controls: frozenset[str] = frozenset()

    @property
    def measurement(self) -> str:
        """What is measured of a query."""
        return self.settings.retraining.measurement

    def by_query_set(self) -> dict[str, np.ndarray]:
        """Rows of the queries of each set."""
        return rows_by_set(self.problem)

    def of_queries(self, rows: np.ndarray) -> Retrained:
        """The same models, asked some of the queries."""
        return replace(self, problem=self.problem.of_queries(rows.tolist()))

    def asking(self, measurement: str) -> Retrained:
        """The same models, asked for another measurement."""
        retraining = replace(self.settings.retraining, measurement=measurement)
        return replace(self, settings=replace(self.settings, retraining=retraining))

    def variant(self, member: np.ndarray, start: str, number: int) -> Variant:
        """One training on the members: from the explained start in the explained batches, or with its own of both."""
        if start == SAME:
            return Variant(member, None, self.settings.retraining.weights == "renormalised")
        told = [self.settings.seed, abs(number), int(number < 0)]
        return Variant(member, int(np.random.default_rng(told).integers(2**31)))

    def starts(
        self, members: np.ndarray, numbers: Sequence[int], metric: str, remedy: str
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """For each configured start: its name, outputs [S, Q] of the models on `members` [S, N] (each called by one of
        the `numbers`), and which queries' measurements vary [Q] bool.

        Errors (UserError): none does, and the `remedy` for that; as of the bank.
        """
        for start in self.settings.retraining.starts:
            variants = [self.variant(one, start, number) for one, number in zip(members, numbers, strict=True)]
            outputs = self.outputs(variants, f"{metric.replace('_', '-')}, {start} start")
            if start != OWN:
                self.check(outputs)
            varies = np.ptp(outputs, axis=0) > 0
            if not varies.any():
                raise UserError(
                    f"metric.{metric}: the {self.measurement} of every query is the same in all {len(members)} "
                    f"retrained models, so there is nothing to foretell; {remedy}"
                )
            yield start, outputs, varies

    def outputs(self, variants: Sequence[Variant], what: str) -> np.ndarray:
        """Measurements [S, Q] float64 by the models; trained and asked now, where they were not before."""
        problem, keys = self.problem, [variant.key for variant in variants]
        asked = [self.measurement, *sources(self.measurement)]
        parts = (self.bank.recipe.identity, problem.queries.fingerprint(), asked, keys)
        by = [Retrained, measured, type(problem.objective), *self.bank.recipe.by]
        path = cache.entry(problem.cache, "retrained", *parts, by=by, name="{}.npz")
        if not ranks.from_first(path.exists()):
            self.bank.train(variants, what)
            if ranks.current().first:
                models = self.bank.networks(variants)
                found = np.stack([measured(problem, model, self.measurement) for model in models])
                with atomic_path(path) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, outputs=found)
            ranks.barrier()
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                outputs: np.ndarray = stored["outputs"]
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"{path}: damaged ({reason(error)}); delete it and run again") from error
        return outputs

    def check(self, outputs: np.ndarray) -> None:
        """Refuse a recipe that does not give the explained model again; `outputs` [S, Q] of subsets say what is far.

        Errors (UserError): the training on all examples ends elsewhere than the explained model.
        """
        everyone = np.ones(len(self.problem.train), dtype=bool)
        again = self.outputs([self.variant(everyone, SAME, 0)], "the whole")[0]
        own = measured(self.problem, self.problem.model, self.measurement)
        spread = float(np.sqrt(outputs.var(0).mean()))
        away = float(np.sqrt(((again - own) ** 2).mean()))
        if away > FURTHEST * spread:
            raise UserError(
                f"retraining: on all examples it ends elsewhere than the explained model (the queries' measurement "
                f"differs by {away:.3g}, over subsets it varies by {spread:.3g}); explain the model with the same "
                "packages, device and number of threads"
            )
