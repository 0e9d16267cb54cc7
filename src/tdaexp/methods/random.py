"""Random scores: the floor that every method has to beat.

Source: none. From a hash of the seed, the query's set and id, and the training example's id,

    s(z, q) ~ uniform on [0, 1)

Sign: none. Fills query and train. Scale: from 0 to 1. Cost: none. Limits: guessing's accuracy is this method's mean;
one seed's number is a draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.rows import Rows


@dataclass
class Random(Method):
    """Keys: `seed`."""

    seed: int = 0

    @property
    def reads_model(self) -> bool:
        """No."""
        return False

    @property
    def linear(self) -> bool:
        """A control, about anything."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Uniform scores in [0, 1), the same whatever else is in the batch or the candidate set."""
        ids = np.array([*problem.train.ids, ""], dtype=object)
        queries, sets = np.array(problem.queries.ids, dtype=object), np.array(problem.query_set, dtype=object)

        def drawn(rows: np.ndarray) -> np.ndarray:
            return self._draw(queries[rows], sets[rows], ids[problem.pairs[rows]])

        return problem.label(Rows(problem.pairs.shape, np.float64, drawn))

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Uniform scores on the pairs of the products file."""
        scores = products.drop_vars(["influence", "query_sq", "train_sq"])
        values = self._draw(products["query"].values, products["query_set"].values, products["train"].values)
        scores["influence"] = (("query", "candidate"), values)
        return scores.drop_vars(["component", "size"]).assign_attrs(normalise="none")

    def _draw(self, queries: np.ndarray, sets: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Scores [Q, C] from a hash of (seed, query set, query id, training id); `train` has the ids [Q, C]."""
        rows = zip(sets, queries, train, strict=True)
        return np.array([[self._uniform(f"{s}/{q}/{name}") for name in names] for s, q, names in rows])

    def _uniform(self, key: str) -> float:
        return int(fingerprint(self.seed, key), 16) / 2.0**64
