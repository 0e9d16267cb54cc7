"""Whether a solver got where it was asked to: a mark for each query, lines in the log, attributes of the answer."""

from __future__ import annotations

import logging

import numpy as np
import xarray as xr

from tdaexp.curvature.inverse import Notes

log = logging.getLogger(__name__)
ROUNDING = 1.1  # the true residual may exceed the one that stops an iteration by so much


def with_marks(notes: Notes, tolerance: float, name: str, advice: str) -> Notes:
    """The notes and `converged` [Q], by their `residual`; tells the log how many queries did, and the `advice` if not.

    `name` of the solver.
    """
    residual = notes["residual"][1]
    reached = residual <= ROUNDING * tolerance
    log.info(
        "%s: %d of %d queries converged%s; residual %.2g at most, %.2g at the median",
        name,
        reached.sum(),
        len(reached),
        _iterations(notes),
        residual.max(),
        np.median(residual),
    )
    if not reached.all():
        log.warning(
            "%s: %d queries have not converged (tolerance %g); they are marked in the store: %s",
            name,
            (~reached).sum(),
            tolerance,
            advice,
        )
    return {**notes, "converged": ("query", reached)}


def _iterations(notes: Notes) -> str:
    if "iterations" not in notes:
        return ""
    counts = notes["iterations"][1]
    return f" in {counts.min()} to {counts.max()} iterations"


def marked(dataset: xr.Dataset, label: str, tolerance: float) -> xr.Dataset:
    """An answer with its worst residual, whether all queries converged, and a label that tells if not."""
    worst, reached = float(dataset["residual"].max()), bool(dataset["converged"].all())
    told = {} if reached else {"label": f"{label}, not converged"}
    return dataset.assign_attrs(residual=worst, converged=reached, tolerance=tolerance, **told)
