"""Random scores: the floor. Fills query and train; each pair's score depends on the seed and the two ids alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp.costs.task_workload import TaskWorkload
from tdaexp.costs.workload import Workload
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.fingerprint import fingerprint


@dataclass
class Random(Method):
    """Keys: `seed`."""

    seed: int = 0

    @property
    def reads_model(self) -> bool:
        """No."""
        return False

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Uniform scores in [0, 1), the same whatever else is in the batch or the candidate set."""
        ids = np.array([*problem.train.ids, ""], dtype=object)[problem.pairs]
        return problem.label(self._draw(problem.queries.ids, problem.query_set, ids))

    def plan(self, work: Workload | TaskWorkload) -> list[StageCost]:
        """The answer, one number of float64 for each pair."""
        return [work.answer(2, self_products=False)]

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Uniform scores on the pairs of the products file."""
        scores = products.drop_vars(["influence", "query_sq", "train_sq"])
        values = self._draw(products["query"].values, products["query_set"].values, products["train"].values)
        scores["influence"] = (("query", "candidate"), values)
        return scores.drop_vars(["component", "size"]).assign_attrs(normalise="none")

    def _draw(self, queries, sets, train: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        """Scores [Q, C] from a hash of (seed, query set, query id, training id)."""
        rows = zip(sets, queries, train, strict=True)
        return np.array([[self._uniform(f"{s}/{q}/{name}") for name in names] for s, q, names in rows])

    def _uniform(self, key: str) -> float:
        return int(fingerprint(self.seed, key), 16) / 2.0**64
