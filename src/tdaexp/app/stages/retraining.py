"""Stores judged by models that are trained again: from the runs' own configurations to what each metric says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tdaexp.app.check import Checker
from tdaexp.app.config import AttributeConfig, EvaluateConfig
from tdaexp.building.build import builder_of
from tdaexp.building.retraining import recipe_of
from tdaexp.metrics.lds import judge_lds, scores_of_all
from tdaexp.metrics.retrained import Judged, Retrained
from tdaexp.metrics.settings import MetricSettings
from tdaexp.problem import Problem
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import doing
from tdaexp.training.bank import Bank

JUDGES = {"lds": judge_lds}
"""By the key of `metric` that chooses it."""
RANDOM = "random"


def judged_by_retraining(
    config: EvaluateConfig, stores: dict[str, xr.Dataset], unfit: dict[str, str] | None = None
) -> list[Judged]:
    """What the chosen metrics say of all stores by label; nothing where none is chosen.

    Where `unfit` is given, a store without scores of all pairs is noted there and left out.

    Errors (UserError): stores of several models or data; a model that cannot be trained again; stores without scores of
    all pairs.
    """
    chosen = [name for name in JUDGES if getattr(config.metric, name) is not None]
    if not chosen:
        return []
    evidence = _evidence(config, stores, chosen[0])
    scores = {}
    for label, store in stores.items():
        try:
            scores[label] = _scores(store, evidence.problem)
        except UserError as error:
            if unfit is None:
                raise UserError(f"'{label}': {error}") from error
            unfit[label] = str(error)
    scores |= _controls(stores, evidence.problem, config.metric)
    return [one for name in chosen for one in JUDGES[name](evidence, scores)]


def _evidence(config: EvaluateConfig, stores: dict[str, xr.Dataset], metric: str) -> Retrained:
    """The problem of the stores, built again as their runs did, and the bank of its models."""
    studies = {store.attrs.get("study") for store in stores.values()}
    if len(studies) > 1:
        raise UserError(
            f"metric={metric}: the runs are of {len(studies)} models or data sets, and a bank of retrained models is "
            "of one; name the runs of one (runs=[…])"
        )
    told = next((store.attrs["config"] for store in stores.values() if store.attrs.get("config")), None)
    if told is None:
        raise UserError(f"metric={metric}: no store says how its model was trained; add a run of attribute.py to runs")
    run = _configuration(told, config, metric)
    doing("building the problem")
    problem = builder_of(run).problem(Clock())
    if {problem.study} != studies:
        raise UserError(
            f"metric={metric}: the runs' model or data are not what they were (a file, the program or a package has "
            "changed); run attribute.py again"
        )
    return Retrained(problem, Bank.of(recipe_of(run), Path(config.cache_dir)), config.metric)


def _configuration(told: dict[str, Any], config: EvaluateConfig, metric: str) -> AttributeConfig:
    """A run's configuration as objects, with this command's metrics, cache and place."""
    if not (told.get("model") or {}).get("_target_") or told.get("products"):
        raise UserError(
            f"metric={metric}: no configuration says how the model was trained; judge a run of attribute.py"
        )
    values = {key: value for key, value in told.items() if key not in ("metric", "logger")}
    checker = Checker(lambda path: "config of the run")
    hints = {"metric": {}, "logger": {"kind": "none"}, "cache_dir": config.cache_dir}
    run: AttributeConfig = checker.build(AttributeConfig, {**values, **hints})
    own = dataclasses.replace(
        run.trainer, strategy="single", devices=1, nodes=1, accelerator=config.trainer.accelerator
    )
    return dataclasses.replace(run, metric=config.metric, trainer=own, plan=False, self_influence=False)


def _scores(store: xr.Dataset, problem: Problem) -> np.ndarray:
    """Scores [Q, N] of a store, its queries and examples in the problem's order; NaN for a query that it lacks."""
    values = scores_of_all(store, problem.train.ids)
    names = zip(store["query_set"].values, store["query"].values, strict=True)
    rows = {(str(name), str(query)): row for row, (name, query) in enumerate(names)}
    found = np.full((len(problem.queries), values.shape[1]), np.nan)
    for place, key in enumerate(zip(problem.query_set, problem.queries.ids, strict=True)):
        if key in rows:
            found[place] = values[rows[key]]
    return found


def _controls(stores: dict[str, xr.Dataset], problem: Problem, settings: MetricSettings) -> dict[str, np.ndarray]:
    """What every table carries: chance."""
    if any(store.attrs.get("method") == RANDOM for store in stores.values()):
        return {}
    shape = (len(problem.queries), len(problem.train))
    return {RANDOM: np.random.default_rng(settings.seed).standard_normal(shape)}
