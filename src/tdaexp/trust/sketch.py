"""What can a sketch of this size keep? Its cosines of a few pairs of gradients against the exact ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from tdaexp.gradients.features import sketch_batch
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.sketch import Sketch
from tdaexp.influence import EPSILON
from tdaexp.trust.check import Bounds, Check, NotMeasured, judged
from tdaexp.trust.probe import Allowance, Probe

BOUNDS = Bounds(0.95, 0.8)
QUERIES, EXAMPLES = 4, 8
DRAWN = 100.0  # FLOP that drawing an entry of a dense sketch is worth, of which traker draws all for each batch
LEAST = 6  # pairs that a rank correlation is formed of


@dataclass(frozen=True)
class Sketched:
    """Sketches by component; `summed` into one vector, or side by side."""

    sketches: Mapping[str, Sketch]
    summed: bool = False

    @property
    def dimensions(self) -> int:
        """Of an example's whole sketch."""
        dims = [one.dim for one in self.sketches.values()]
        return max(dims) if self.summed else sum(dims)


def sketch_ceiling(sketched: Sketched, probe: Probe, allowance: Allowance) -> Check:
    """Rank correlation of sketched with exact cosines: no score that is made of the sketches ranks better than they."""
    pairs = len(probe.queries) * len(probe.train)
    if pairs < LEAST:
        raise NotMeasured(f"a rank correlation of {pairs} pairs says nothing")
    drawn = DRAWN * sum(one.dim * one.numel for one in sketched.sketches.values())
    allowance.spend(2 * probe.positions, drawn)
    exact, rough = _exact(probe), _cosines(*(_features(side, sketched, probe) for side in (probe.queries, probe.train)))
    value = float(spearmanr(exact.ravel(), rough.ravel()).statistic)
    error = float(np.sqrt(((rough - exact) ** 2).mean()))
    verdict = BOUNDS.verdict(value)
    more = "" if verdict == "good" else "; more dimensions keep more (method.dimensions, or budget)"
    says = (
        f"Cosines of gradients that were sketched to {sketched.dimensions:,} dimensions rank these pairs with a "
        f"correlation of {value:.3f} to the exact ones (they are off by {error:.2g}){more}."
    )
    how = (
        f"Spearman's correlation over {pairs} pairs ({len(probe.queries)} queries × {len(probe.train)} candidates) of "
        "cosines of sketched and of exact gradients of the loss"
    )
    return judged("sketch_ceiling", value, BOUNDS, says, how)


def _exact(probe: Probe) -> np.ndarray:
    found = probe.products(alone=False)
    norms = np.sqrt(found["query_sq"].sum(-1)[:, None] * found["train_sq"].sum(-1))
    return np.asarray(found["dot"].sum(-1) / (norms + EPSILON))


def _features(gradients: Gradients, sketched: Sketched, probe: Probe) -> np.ndarray:
    """Whole sketches [n, k] of a side's examples."""
    batches = gradients.batches(probe.tokens_per_batch)
    with gradients.ready():
        rows = np.concatenate([sketch_batch(gradients, sketched.sketches, batch) for batch in batches])
    rows = rows[np.argsort([number for batch in batches for number in batch])].astype(np.float64)
    return rows.reshape(len(rows), len(gradients.components), -1).sum(1) if sketched.summed else rows


def _cosines(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(train, axis=1)
    return np.asarray(queries @ train.T / (norms + EPSILON))
