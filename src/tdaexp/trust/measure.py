"""All checks of one run, made once its answer is there: they change nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from tdaexp.building.self_check import outcome_of
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import out_of_memory
from tdaexp.trust.check import ABSENT, BAD, Check, NotMeasured, absent
from tdaexp.trust.damping import damping_curve
from tdaexp.trust.drift import batch_drift, precision_drift
from tdaexp.trust.known import completeness, coverage, linearity, search_recall, self_check, solver
from tdaexp.trust.probe import Allowance, probe_of
from tdaexp.trust.sketch import sketch_ceiling
from tdaexp.trust.stability import rank_stability

if TYPE_CHECKING:
    from tdaexp.methods.base import Method

log = logging.getLogger(__name__)


def checks_of(
    method: Method, problem: Problem, store: xr.Dataset, *, k: int, wanted: bool | None = None, sharded: bool = False
) -> list[Check]:
    """Every check that has a meaning for a method's answer about a problem; `k` best rows of a question are looked at.

    `wanted` as for `Allowance`. Of a `sharded` model no pass is made. Random states stay as they are.
    """
    found = [_made("coverage", lambda: coverage(store, problem.map))]
    if found[0].verdict == ABSENT:
        return []  # words or states are compared: nothing here is about them
    stages = [problem.model] + ([problem.finetuned.loaded.model] if problem.finetuned is not None else [])
    outcomes = [one for one in map(outcome_of, stages) if one is not None]
    found.append(_made("self_check", lambda: self_check(outcomes)))
    if "candidate" not in store.dims:
        return _told([*found, _made("completeness", lambda: completeness(store))])
    allowance = _allowance(problem, wanted)
    with torch.random.fork_rng(devices=[]), np.errstate(divide="ignore", invalid="ignore"):
        found += _of_passes(method, problem, store, k, allowance, sharded)
    found.append(_made("rank_stability", lambda: rank_stability(store, k)))
    if "search" in store.attrs:
        found.append(_made("search_recall", lambda: search_recall(store)))
    if "tolerance" in store.attrs:
        found.append(_made("solver_residual", lambda: solver(store)))
    if "linear_error" in store.attrs:
        found.append(_made("linearity", lambda: linearity(store)))
    return _told(found)


def checks_of_store(store: xr.Dataset, k: int) -> list[Check]:
    """The checks that need no model: of an answer from stored products."""
    return _told([_made("rank_stability", lambda: rank_stability(store, k))])


def _of_passes(
    method: Method, problem: Problem, store: xr.Dataset, k: int, allowance: Allowance, sharded: bool
) -> list[Check]:
    names = ["batch_drift", "precision_drift"]
    if sharded:
        return [absent(name, "the model is shared out over processes (trainer=fsdp)") for name in names]
    try:
        probe = probe_of(method, problem, list(store["component"].values))
    except NotMeasured as reason:
        return [absent(name, reason) for name in names]
    makes: dict[str, Callable[[], Check]] = {
        "batch_drift": lambda: batch_drift(probe, allowance),
        "precision_drift": lambda: precision_drift(probe, allowance, problem.compute.cache_gb),
    }
    sketched = method.sketched(problem)
    if sketched is not None:
        makes["sketch_ceiling"] = lambda: sketch_ceiling(sketched, problem.compute.tokens_per_batch, allowance)
    makes["damping_stability"] = lambda: damping_curve(method, problem, store, k, allowance)
    return [_made(name, make) for name, make in makes.items()]


def _allowance(problem: Problem, wanted: bool | None) -> Allowance:
    """Of the passes over each query and each candidate, which a run makes at least."""
    objective, used = problem.objective, np.unique(problem.pairs[problem.pairs >= 0])
    train = objective.lengths(problem.model, problem.train)[used]
    queries = objective.lengths(problem.model, problem.queries)
    return Allowance(wanted, float(train.sum() + queries.sum()), problem.map.total)


def _made(name: str, make: Callable[[], Check]) -> Check:
    """The check, or why there is none: a run that has its answer does not end for want of a check."""
    try:
        return make()
    except (NotMeasured, UserError) as reason:
        return absent(name, reason)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return absent(name, "there was not enough memory")


def _told(checks: list[Check]) -> list[Check]:
    for one in checks:
        if one.verdict == BAD:
            log.warning("trust: %s is bad: %s", one.name.replace("_", " "), one.says)
    told = ", ".join(f"{one.name.replace('_', ' ')} {one.verdict}" for one in checks if one.verdict != ABSENT)
    log.info("trust: %s", told or "nothing was measured")
    return checks
