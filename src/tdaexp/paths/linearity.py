"""How far the training is from a linear function of its examples' weights: metagradients against real trainings.

A training without some examples is made, as those are that judge scores, and one in which the same examples count a
tenth less. What the scores foretell is first order: of a smooth training nearly all of the small change, and of the
large one as much as it is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from tdaexp.metrics.measured import measured
from tdaexp.paths.metagradient import Metagradients
from tdaexp.paths.states import Arrays
from tdaexp.runtime import ranks
from tdaexp.runtime.blockstore import BlockStore

LEFT_OUT = 0.05
"""Share of the examples that a trial is about."""
SMALL = 0.1
"""How much less they count in the small change."""


@dataclass(frozen=True)
class Trial:
    """Changes of the queries' measurements [T, Q]: `foretold` by the scores and `true`, without the examples; and
    `small`, the true ones of the small change, per unit of weight.
    """

    foretold: np.ndarray
    true: np.ndarray
    small: np.ndarray

    @property
    def error(self) -> float:
        """What the scores miss of the changes without the examples, as a share of those."""
        return _miss(self.foretold, self.true)

    @property
    def small_error(self) -> float:
        """The same of the small changes."""
        return _miss(self.foretold, self.small)


def tried(work: Metagradients, scores: np.ndarray, folder: Path, trials: int, seed: int) -> Trial:
    """Make `trials` pairs of trainings; `scores` [Q, N]. `folder` is named after all that decides the measurements.

    Cost: two trainings each, whatever the number of queries; the end of the training as it was is known.
    """
    train, queries = scores.shape[1], len(work.problem.queries)
    arrays: Arrays = {name: ((trials, queries), "float64") for name in ("true", "small")}
    kept = BlockStore(folder, arrays, [slice(k, k + 1) for k in range(trials)])
    left_out = [_drawn(train, seed, number) for number in range(trials)]
    with ranks.first_alone(), kept.pending() as missing:
        if missing:
            before = _measured(work, work.states.end)
        for number in kept.each(missing, "trainings for comparison"):
            changes = []
            for less in (1.0, SMALL):
                weights = np.where(left_out[number], 1.0 - less, 1.0)
                after = _measured(work, work.states.run(work.walk.weighted(weights)))
                changes.append((after - before) / less)
            kept.write(number, {"true": changes[0][None], "small": changes[1][None]})
    found = kept.read()
    foretold = -np.stack([scores[:, one].sum(1, dtype=np.float64) for one in left_out])
    return Trial(foretold, found["true"], found["small"])


def _drawn(train: int, seed: int, number: int) -> np.ndarray:
    """The examples [N] bool of a trial."""
    chosen = np.random.default_rng([seed, number]).permutation(train)[: max(1, round(LEFT_OUT * train))]
    found = np.zeros(train, dtype=bool)
    found[chosen] = True
    return found


def _measured(work: Metagradients, parameters: Tensor) -> np.ndarray:
    """The queries' measurements [Q] at parameters [D]."""
    work.derivatives.load(parameters)
    return measured(work.problem, work.walk.model, work.measurement, work.reduction)


def _miss(foretold: np.ndarray, true: np.ndarray) -> float:
    size = float(np.linalg.norm(true))
    return float(np.linalg.norm(foretold - true)) / size if size else 0.0
