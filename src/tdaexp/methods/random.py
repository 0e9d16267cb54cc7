"""Random scores: the floor. Fills query and train; each pair's score depends on the seed and the two ids alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.rehearsal import repeated


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

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Uniform scores on the pairs of the products file."""
        scores = products.drop_vars(["influence", "query_sq", "train_sq"])
        values = self._draw(products["query"].values, products["query_set"].values, products["train"].values)
        scores["influence"] = (("query", "candidate"), values)
        return scores.drop_vars(["component", "size"]).assign_attrs(normalise="none")

    def _draw(self, queries, sets, train: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        """Scores [Q, C] from a hash of (seed, query set, query id, training id)."""
        values = np.empty(train.shape)
        for row in repeated(range(len(train))):
            keys = [f"{sets[row]}/{queries[row]}/{name}" for name in train[row]]
            values[row] = [self._uniform(key) for key in keys]
        return values

    def _uniform(self, key: str) -> float:
        return int(fingerprint(self.seed, key), 16) / 2.0**64
