"""Which steps of a training a decomposition may do with (Eichin et al. 2026, section 4.2 and appendix G.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def steps_of_largest_change(steps: Sequence[int], changes: np.ndarray, share: float) -> list[int]:
    """The steps [S] with the largest |change| [S] of a held-out loss, in order of time; ties to the earlier step.

    ⌈share · S⌉ of them, at least one.
    """
    order = np.argsort(-np.abs(np.asarray(changes, dtype=np.float64)), kind="stable")
    return sorted(steps[place] for place in order[: _count(len(steps), share)])


def evenly_spaced_steps(steps: Sequence[int], share: float) -> list[int]:
    """As many steps, evenly over the training: the control."""
    count = _count(len(steps), share)
    return [steps[(2 * place + 1) * len(steps) // (2 * count)] for place in range(count)]


def _count(steps: int, share: float) -> int:
    return max(1, int(np.ceil(round(share * steps, 9))))
