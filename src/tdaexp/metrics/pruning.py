"""Which parameters pruning keeps: the largest by a score, singly or as whole units (filters and neurons).

A unit is one output of a layer: the row of its weight and its bias (Li et al. 2017 remove such filters by their L1
norm, within each layer). Sparsity is the share of the prunable parameters that are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Units:
    """Of every parameter in order: `unit` [D] is its unit's number, `layer` [D] its layer's."""

    unit: np.ndarray
    layer: np.ndarray

    @property
    def layers(self) -> np.ndarray:
        """Layer of each unit [U]."""
        first = np.unique(self.unit, return_index=True)[1]
        return self.layer[first]

    def norms(self, values: np.ndarray) -> np.ndarray:
        """Σ |value| of each unit [U] (Li et al. 2017)."""
        return np.bincount(self.unit, np.abs(values))


def units_of(shapes: Mapping[str, tuple[int, ...]]) -> Units:
    """Units of parameters named LAYER.weight and LAYER.bias; the first axis of a shape counts a layer's outputs."""
    layers: dict[str, int] = {}
    begin: dict[str, int] = {}
    units, owner, total = [], [], 0
    for name, shape in shapes.items():
        layer = name.rpartition(".")[0]
        if layer not in layers:
            layers[layer], begin[layer] = len(layers), total
            total += shape[0]
        units.append(np.repeat(begin[layer] + np.arange(shape[0]), int(np.prod(shape[1:]))))
        owner.append(np.full(int(np.prod(shape)), layers[layer]))
    return Units(np.concatenate(units), np.concatenate(owner))


def largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The largest round((1 − sparsity) · D) scores [D], as bool; of equal ones the first in order."""
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[: round((1 - sparsity) * len(scores))]] = True
    return kept


def largest_units(scores: np.ndarray, units: Units, sparsity: float) -> np.ndarray:
    """Parameters [D] of the units with the largest scores [U]: the same share of each layer, at least one unit."""
    kept = np.zeros(len(scores), dtype=bool)
    for layer in np.unique(units.layers):
        mine = np.flatnonzero(units.layers == layer)
        count = max(1, round((1 - sparsity) * len(mine)))
        kept[mine[np.argsort(-scores[mine], kind="stable")[:count]]] = True
    return np.asarray(kept[units.unit])


def agreement(pruned: np.ndarray, whole: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Logits [Q, C] of a pruned and of the whole network: `accuracy`, `agreement` of classes, `kl` of the pruned
    network's classes from the whole one's, in nats.
    """
    logs, other = (log_softmax(values.astype(np.float64), axis=1) for values in (whole, pruned))
    found = pruned.argmax(1)
    return {
        "accuracy": float((found == targets).mean()),
        "agreement": float((found == whole.argmax(1)).mean()),
        "kl": float((np.exp(logs) * (logs - other)).sum(1).mean()),
    }
