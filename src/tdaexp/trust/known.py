"""Checks of what the run knows already: which parameters count, the check at load, solvers, sums of a decomposition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from tdaexp.building.self_check import TOLERANCE, Outcome
from tdaexp.metrics.stores import share
from tdaexp.models.components import ComponentMap, listed
from tdaexp.trust.check import BAD, GOOD, OPEN, Bounds, Check, NotMeasured, judged

COMPLETE = Bounds(1e-2, 0.1)
LINEAR = Bounds(0.3, 1.0)
RECALL = Bounds(0.95, 0.8)
LEFT_OUT = 0.05
"""Share of a model's parameters that may be missing."""


def coverage(store: xr.Dataset, components: ComponentMap) -> Check:
    """The share of the model's parameters that the answer counts; what is left out by choice, and what is skipped."""
    whole = components.complete() if "candidate" not in store.dims else components
    counted = set(whole.names)
    if "component" in store.coords:
        counted = set(store["component"].values) & counted
    elif "candidate" in store.dims:
        raise NotMeasured("the answer has no components")
    if not counted:
        raise NotMeasured("the answer's components are no parameters")
    kept = whole.select(counted)
    value, skipped = kept.covered / kept.total, sum(kept.skipped.values()) / kept.total
    verdict = BAD if skipped > LEFT_OUT else OPEN if 1 - value > LEFT_OUT else GOOD
    parts = [f"{100 * value:.4g} % of the {kept.total:,} parameters are attributed, in {len(kept)} components"]
    parts += [f"left out by choice: {listed(kept.unchosen)}"] if kept.unchosen else []
    parts += [f"skipped, as nothing attributes them: {listed(kept.skipped)}"] if kept.skipped else []
    if "weight" in store:
        used = [share(store.isel(query=store["query_set"].values == name)) for name in store["query_set_name"].values]
        parts.append(f"of these the answer takes {' and '.join(f'{100 * one:.3g} %' for one in used)}")
    threshold = f"good with at most {LEFT_OUT:g} left out, open beyond that by choice, bad with more skipped"
    says = "; ".join(parts) + "."
    return Check("coverage", value, verdict, threshold, says, "sizes of the components' parameters")


def self_check(outcomes: Sequence[Outcome]) -> Check:
    """The largest relative error of a component's gradient when the models were loaded."""
    made = [one for one in outcomes if one.checked]
    if not made:
        raise NotMeasured("autograd itself forms every gradient, or the model was not checked when it was loaded")
    worst = max(made, key=lambda one: one.error)
    kind = str(worst.dtype).removeprefix("torch.")
    limit = TOLERANCE.get(worst.dtype, TOLERANCE[max(TOLERANCE, key=TOLERANCE.__getitem__)])
    formed = sum(one.formed for one in outcomes)
    rest = f"; autograd itself forms those of {formed} others" if formed else ""
    says = (
        f"At load the captured gradients of {sum(one.checked for one in made)} components were autograd's but for "
        f"{worst.error:.2g} (largest relative error, in '{worst.component}', in {kind}){rest}."
    )
    how = "a few examples with different weights, one backward pass by autograd, component by component"
    return judged("self_check", worst.error, Bounds(limit, limit), says, how)


def completeness(store: xr.Dataset) -> Check:
    """What the sums of a decomposition leave of the outputs' true change."""
    if "residual" not in store:
        raise NotMeasured("the answer is no decomposition of a change")
    moved, left = (float(np.sqrt((store[name] ** 2).sum())) for name in ("change", "residual"))
    if not moved:
        raise NotMeasured("nothing moved")
    says = (
        f"The sums leave {left / moved:.2g} of the outputs' true change. That says nothing of single entries: a rule "
        "can be complete and its entries wrong."
    )
    how = "norm of what the sums leave, over the norm of the change, of all queries and outputs"
    return judged("completeness", left / moved, COMPLETE, says, how)


def solver(store: xr.Dataset) -> Check:
    """How far an iterative inverse got."""
    if "residual" not in store.attrs or "tolerance" not in store.attrs:
        raise NotMeasured("the answer needs no solver")
    value, tolerance = float(store.attrs["residual"]), float(store.attrs["tolerance"])
    reached = "all queries converged" if store.attrs["converged"] else "not all queries converged"
    says = f"The solver left a relative residual of {value:.2g} at most, {tolerance:g} was asked for; {reached}."
    bounds = Bounds(1.1 * tolerance, 10 * tolerance)
    return judged("solver_residual", value, bounds, says, "|b - (G + λI) x| / |b|, the largest of all queries")


def linearity(store: xr.Dataset) -> Check:
    """How much of real trainings without some examples the metagradients foretell."""
    if "linear_error" not in store.attrs:
        raise NotMeasured("no training was made for comparison")
    value, small = float(store.attrs["linear_error"]), float(store.attrs["small_error"])
    says = (
        f"Without {100 * store.attrs['left_out']:g} % of the training examples the queries' measurements moved as the "
        f"scores foretell but for {value:.2g} of it, where these count a tenth less but for {small:.2g}; on its way "
        f"back over the training the adjoint grew {store.attrs['adjoint_growth']:.3g} times."
    )
    how = "trainings from the same start in the same batches, against minus the sum of the scores: norms over queries"
    return judged("linearity", value, LINEAR, says, how)


def search_recall(store: xr.Dataset) -> Check:
    """Of the extremes among all rows of an index, how many an approximate search has found."""
    sides = {name.removeprefix("search_recall_"): float(value) for name, value in store.attrs.items()
             if name.startswith("search_recall_")}  # fmt: skip
    if not sides:
        raise NotMeasured("candidates.measured=0, and nobody has measured this search before")
    found = " and ".join(f"{100 * value:.1f} % of the most {name} ones" for name, value in sides.items())
    value = min(sides.values())
    more = "" if RECALL.verdict(value) == GOOD else (
        "; more of candidates.probes (ivf) or candidates.rescored find more, candidates.search=exact all of them"
    )  # fmt: skip
    says = f"Of the training examples that an exact search of the index gives, faiss found {found}{more}."
    how = (
        f"{store.attrs['search_questions']:.0f} questions were searched exactly, too, these or the first ones "
        f"that this index was asked; faiss: {store.attrs['search']}"
    )
    return judged("search_recall", value, RECALL, says, how, sides)
