"""Checks that name the example and the component behind a number that should not be there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdaexp.runtime.errors import UserError


def require_finite(values: np.ndarray, ids: Sequence[str], components: Sequence[str], losses: np.ndarray) -> None:
    """Refuse NaN and infinity in per-example, per-component numbers [B, K] made from gradients.

    Names the first example, and of its components the one nearest to the loss, where the fault must have
    come from; `losses` [B] tells whether the forward pass was at fault already.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    row = int(np.flatnonzero(bad.any(axis=1))[0])
    column = int(np.flatnonzero(bad[row])[-1])
    raise UserError(
        f"example '{ids[row]}': the gradient of component '{components[column]}' is {values[row, column]} "
        f"(its loss is {losses[row]:.6g}); check the checkpoint, or try trainer.precision=float32"
    )
