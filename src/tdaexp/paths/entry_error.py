"""What single entries of a decomposition are off by, and one line with what to set where it is much."""

from __future__ import annotations

import logging

import numpy as np
import xarray as xr
from torch import Tensor

from tdaexp.pathkernel.decompose import error_of_sum
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.paths.decomposition import PathJob

log = logging.getLogger(__name__)
MUCH = 0.02
"""From here on a run without a tolerance says what to set."""


def entry_norms(errors: Tensor, entries: Tensor, job: PathJob, places: list[int]) -> dict[str, Tensor]:
    """Norms of entries [.., .., Q?, O?] and of their errors [.., .., q, O?], known of the queries at `places`.

    Where queries are kept, of the entries of these; else of the sums over all, whose error is estimated from theirs.
    """
    if "query" in job.keep:
        return {"entry_norm": entries[:, :, places].norm(), "error_norm": errors.norm()}
    error = error_of_sum(errors.movedim(2, 0), len(job.problem.queries))
    return {"entry_norm": entries.norm(), "error_norm": error}


def entry_error(found: dict[str, np.ndarray]) -> float:
    """What the entries of `influence` are off by, as a share of them (Euclidean norms), over all that is counted."""
    return share(*(float(np.linalg.norm(found[name])) for name in ("error_norm", "entry_norm")))


def share(error: float, entries: float) -> float:
    """Error / entries; nothing is off by nothing."""
    return float(error / entries) if entries else 0.0 if not error else float("inf")


def tell_entry_error(store: xr.Dataset, quadrature: Quadrature) -> None:
    """Log what the entries of the store are off by; a warning where that is much, or above the tolerance."""
    error, most = float(store.attrs["entry_error"]), int(store["nodes"].max())
    said = f"explaind: single entries are off by about {error:.2g} of their size (rule {quadrature.rule}, nodes {most})"
    key, unit = "method.quadrature", "pieces" if quadrature.rule == "secant" else "nodes"
    if quadrature.tolerance is None:
        wanted = f"; set {key}.tolerance={MUCH / 2:g} for more {unit} a step" if error > MUCH else ""
    elif error <= quadrature.tolerance:
        wanted = ""
    elif 2 * most > quadrature.most:
        wanted = (
            f", above {key}.tolerance={quadrature.tolerance:g}; allow more {unit} by {key}.most={4 * quadrature.most}"
        )
    else:
        wanted = f", above {key}.tolerance={quadrature.tolerance:g}, which every step keeps by itself; set a lower one"
    (log.warning if wanted else log.info)("%s%s", said, wanted)
