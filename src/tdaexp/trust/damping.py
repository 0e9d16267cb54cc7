"""Do the top rows stay where the damping is ten times smaller or larger?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.trust.check import Bounds, Check, NotMeasured, judged
from tdaexp.trust.probe import Allowance, sides_of, spread
from tdaexp.trust.stability import best_of

if TYPE_CHECKING:
    from tdaexp.methods.base import Method

BOUNDS = Bounds(0.8, 0.5)
FACTORS = (0.1, 1.0, 10.0)
QUERIES = 2
REACH = 3  # times as many of a query's best rows as are shown are scored again


def damping_curve(method: Method, problem: Problem, store: xr.Dataset, k: int, allowance: Allowance) -> Check:
    """The share of a query's best rows (`best_of`) that stay so, among three times as many, at other dampings."""
    if ranks.current().world > 1:
        raise NotMeasured("several processes share the work; a run in one process measures it")
    if method.fixed_damping is not None:
        raise NotMeasured(method.fixed_damping)
    if store["train"].shape != problem.pairs.shape:
        raise NotMeasured("the answer is about some of the queries")
    train, queries = sides_of(method, problem, list(store["component"].values))
    rows = np.array(spread(queries.lengths, QUERIES))
    scores = influence.scores(influence.of_queries(store, rows)).values
    k = best_of(int((~np.isnan(scores)).sum(1).min()), k)
    best = influence.top(scores, REACH * k)
    pairs = np.where(best < 0, -1, np.take_along_axis(problem.pairs[rows], np.maximum(best, 0), axis=1))
    allowance.spend(float(len(FACTORS) * queries.lengths[rows].sum() + train.lengths[pairs[pairs >= 0]].sum()))
    found = method.redamped(problem, rows.tolist(), pairs, FACTORS)
    own = found[FACTORS.index(1.0)]
    shares = {factor: _kept(own, values, k) for factor, values in zip(FACTORS, found, strict=True) if factor != 1.0}
    value = min(shares.values())
    again = np.nanmax(np.abs(own - np.take_along_axis(scores, np.maximum(best, 0), axis=1))) / np.nanmax(np.abs(own))
    told = " and ".join(f"{share:.2f} at {factor:g} times the damping" for factor, share in shares.items())
    says = f"Of a question's {k} best rows this share stays among the {k} best: {told}." + (
        "" if BOUNDS.verdict(value) == "good" else " The ranking hangs on the damping: compare several."
    )
    how = (
        f"{len(rows)} questions, the {best.shape[1]} best rows of each scored again at {FACTORS[0]:g}, 1 and "
        f"{FACTORS[-1]:g} times the damping; at 1 they differ from the answer by {again:.1g} of the largest"
    )
    details = {f"kept at × {factor:g}": share for factor, share in shares.items()} | {"scored again": float(again)}
    return judged("damping_stability", value, BOUNDS, says, how, details)


def _kept(scores: np.ndarray, others: np.ndarray, k: int) -> float:
    """The mean share of the k best by some scores [Q, C] that are among the k best by others."""
    mine, theirs = influence.top(scores, k), influence.top(others, k)
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(mine, theirs, strict=True)]))
