"""What can a sketch of this size keep? Stored sketches' cosines of a few pairs against the exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from tdaexp.gradients.features import Sketches
from tdaexp.gradients.passes import Gradients
from tdaexp.influence import EPSILON
from tdaexp.runtime import ranks
from tdaexp.trust.check import Bounds, Check, NotMeasured, judged
from tdaexp.trust.probe import Allowance, Probe, few_pairs

BOUNDS = Bounds(0.95, 0.8)
QUERIES, EXAMPLES = 4, 8
LEAST = 6  # pairs that a rank correlation is formed of


@dataclass(frozen=True)
class Sketched:
    """The gradients that an answer has sketches of, `pairs` [Q, C] of them, and `features`: the sketches of queries and
    training examples, as they are stored. Components are `summed` into one vector, or stand side by side.
    """

    train: Gradients
    queries: Gradients
    pairs: np.ndarray
    features: Callable[[], tuple[Sketches, Sketches]]
    summed: bool = False


def sketch_ceiling(sketched: Sketched, tokens_per_batch: int, allowance: Allowance) -> Check:
    """Rank correlation of sketched with exact cosines: what is left of the products that every score is made of."""
    if ranks.current().world > 1:
        raise NotMeasured("several processes share the work; a run in one process measures it")
    probe, rows, columns = few_pairs(
        sketched.train, sketched.queries, sketched.pairs, tokens_per_batch, QUERIES, EXAMPLES
    )
    pairs = len(rows) * len(columns)
    if pairs < LEAST:
        raise NotMeasured(f"a rank correlation of {pairs} pairs says nothing")
    allowance.spend(probe.positions)
    exact, components = _exact(probe), len(probe.train.components)
    stored = zip(sketched.features(), (rows, columns), strict=True)
    sides = [_whole(features, chosen, components, sketched.summed) for features, chosen in stored]
    rough = _cosines(*sides)
    if np.ptp(exact) == 0 or np.ptp(rough) == 0:
        raise NotMeasured("all pairs have the same cosine")
    value = float(spearmanr(exact.ravel(), rough.ravel()).statistic)
    error = float(np.sqrt(((rough - exact) ** 2).mean()))
    more = "" if BOUNDS.verdict(value) == "good" else "; more dimensions keep more (method.dimensions, or budget)"
    says = (
        f"Cosines of gradients that were sketched to {sides[0].shape[1]:,} dimensions rank these pairs with a "
        f"correlation of {value:.3f} to the exact ones (they are off by {error:.2g}){more}."
    )
    how = (
        f"Spearman's correlation over {pairs} pairs ({len(rows)} queries × {len(columns)} of their candidates) of "
        "cosines of stored sketches and of the gradients themselves"
    )
    return judged("sketch_ceiling", value, BOUNDS, says, how)


def _exact(probe: Probe) -> np.ndarray:
    found = probe.products(alone=False)
    norms = np.sqrt(found["query_sq"].sum(-1)[:, None] * found["train_sq"].sum(-1))
    return np.asarray(found["dot"].sum(-1) / (norms + EPSILON))


def _whole(features: Sketches, numbers: list[int], components: int, summed: bool) -> np.ndarray:
    """Whole sketches [n, k] of some examples."""
    rows = features.rows(features.place[numbers]).astype(np.float64)
    return rows.reshape(len(rows), components, -1).sum(1) if summed else rows


def _cosines(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(train, axis=1)
    return np.asarray(queries @ train.T / (norms + EPSILON))
