"""Stores judged by models that are trained again: from the runs' own configurations to what each metric says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.app.check import Checker
from tdaexp.app.config import AttributeConfig, EvaluateConfig
from tdaexp.building.build import builder_of
from tdaexp.building.retraining import recipe_of
from tdaexp.building.settings import Builder
from tdaexp.data.faults import FLIPPED
from tdaexp.data.instructions import TAMPERED
from tdaexp.data.pieces import DOCUMENT
from tdaexp.data.records import Corpus
from tdaexp.metrics.as_it_is import AsItIs
from tdaexp.metrics.brittleness import judge_brittleness
from tdaexp.metrics.duplicates import judge_duplicates
from tdaexp.metrics.keeping import judge_keeping
from tdaexp.metrics.lds import judge_lds, known_scores, scores_of_all
from tdaexp.metrics.leave_one_out import judge_leave_one_out
from tdaexp.metrics.mislabelled import judge_mislabelled
from tdaexp.metrics.removal import judge_removal
from tdaexp.metrics.retrained import RANDOM, Judged, Retrained
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.tail_patch import judge_tail_patch
from tdaexp.problem import Problem
from tdaexp.report.itself import totals
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import SELF_INFLUENCE
from tdaexp.runtime.progress import doing
from tdaexp.training.bank import Bank

log = logging.getLogger(__name__)
JUDGES = {
    "lds": judge_lds,
    "leave_one_out": judge_leave_one_out,
    "removal": judge_removal,
    "brittleness": judge_brittleness,
    "keeping": judge_keeping,
}
"""What judges by models that are trained again, by the key of `metric` that chooses it."""
AS_IT_IS = {"tail_patch": judge_tail_patch, "mislabelled": judge_mislabelled, "duplicates": judge_duplicates}
"""What judges by the explained model as it is, and by what is known of the training rows."""


def judged_by_retraining(
    config: EvaluateConfig,
    stores: dict[str, xr.Dataset],
    unfit: dict[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
) -> list[Judged]:
    """What the chosen metrics say of all stores by label; nothing where none is chosen.

    Where `unfit` is given, a store without scores of all pairs is noted there and left out. `folders` are the runs',
    by label. Several processes share the trainings; what follows is process 0's.

    Errors (UserError): stores of several models or data; a model that cannot be trained again; stores without scores of
    all pairs.
    """
    again, as_it_is = (
        [name for name in known if getattr(config.metric, name) is not None] for known in (JUDGES, AS_IT_IS)
    )
    if not again and not as_it_is:
        return []
    run, builder, problem = _problem(config, stores, (again + as_it_is)[0])
    found: list[Judged] = []
    controls = _controls(stores, problem, config.metric)
    if again:
        scores = _every_score(stores, problem, scores_of_all, unfit) | controls
        recipe = recipe_of(run)
        if recipe.ids != problem.train.ids:
            raise UserError(
                f"metric={again[0]}: the data set trains on other examples, or in another order, than it shows; its "
                "load().train and train_records() must be the same"
            )
        _tell_other_measurements(stores, config.metric)
        evidence = Retrained(problem, Bank.of(recipe, Path(config.cache_dir)), config.metric, frozenset(controls))
        found += [one for name in again for one in JUDGES[name](evidence, scores)]
    if as_it_is and ranks.current().first:
        scores = _every_score(stores, problem, known_scores, unfit) | controls
        places = {label: folder for label, folder in (folders or {}).items() if (folder / SELF_INFLUENCE).exists()}
        itself = {label: _itself(folder, problem) for label, folder in places.items()}
        known = AsItIs(problem, config.metric, itself, _faulty(builder.corpus, problem), frozenset(controls))
        found += [one for name in as_it_is for one in AS_IT_IS[name](known, scores)]
    return found


def _problem(
    config: EvaluateConfig, stores: dict[str, xr.Dataset], metric: str
) -> tuple[AttributeConfig, Builder, Problem]:
    """The problem of the stores, built again as their runs did, with the configuration and who built it."""
    studies = {store.attrs.get("study") for store in stores.values()}
    strange = [label for label, store in stores.items() if store.attrs.get("study") is None]
    if strange and len(studies) > 1:
        raise UserError(
            f"metric={metric}: nothing says which model the scores '{strange[0]}' are of; name the runs that have "
            "their pairs (runs=[…])"
        )
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
    builder = builder_of(run)
    problem = builder.problem(Clock())
    if {problem.study} != studies:
        raise UserError(
            f"metric={metric}: the runs' model or data are not what they were (a file, the program or a package has "
            "changed); run attribute.py again"
        )
    return run, builder, problem


def _tell_other_measurements(stores: dict[str, xr.Dataset], settings: MetricSettings) -> None:
    """Say where a store answers about another measurement than the one that models trained again are asked."""
    asked = settings.retraining.measurement
    for label, store in stores.items():
        own = ((store.attrs.get("config") or {}).get("method") or {}).get("measurement")
        if own not in (None, asked):
            log.warning("'%s' is about %s, and judged on metric.retraining.measurement=%s", label, own, asked)


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


def _every_score(
    stores: dict[str, xr.Dataset],
    problem: Problem,
    read: Callable[[xr.Dataset, list[str]], np.ndarray],
    unfit: dict[str, str] | None,
) -> dict[str, np.ndarray]:
    """Scores of each store by label, as `read` gives them; what it refuses is an error, or noted in `unfit`."""
    found = {}
    for label, store in stores.items():
        try:
            found[label] = _scores(store, problem, read(store, problem.train.ids))
        except UserError as error:
            if unfit is None:
                raise UserError(f"'{label}': {error}") from error
            unfit[label] = str(error)
    return found


def _scores(store: xr.Dataset, problem: Problem, values: np.ndarray) -> np.ndarray:
    """A store's scores [Q, N], queries in the problem's order as the examples are; NaN for a query that it lacks."""
    names = zip(store["query_set"].values, store["query"].values, strict=True)
    rows = {(str(name), str(query)): row for row, (name, query) in enumerate(names)}
    found = np.full((len(problem.queries), values.shape[1]), np.nan)
    for place, key in enumerate(zip(problem.query_set, problem.queries.ids, strict=True)):
        if key in rows:
            found[place] = values[rows[key]]
    return found


def _controls(stores: dict[str, xr.Dataset], problem: Problem, settings: MetricSettings) -> dict[str, np.ndarray]:
    """What every table carries: chance, where no store is it or is called so."""
    if RANDOM in stores or any(store.attrs.get("method") == RANDOM for store in stores.values()):
        return {}
    shape = (len(problem.queries), len(problem.train))
    return {RANDOM: np.random.default_rng(settings.seed).standard_normal(shape)}


def _itself(folder: Path, problem: Problem) -> np.ndarray:
    """Self-influence [N] of the problem's training rows, from a run's folder."""
    known = totals(influence.load(folder / SELF_INFLUENCE))
    missing = set(problem.train.ids) - set(known)
    if missing:
        raise UserError(
            f"{folder / SELF_INFLUENCE}: lacks '{min(missing)}'; run attribute.py again with self_influence=true"
        )
    return np.array([known[one] for one in problem.train.ids])


def _faulty(corpus: Corpus | None, problem: Problem) -> np.ndarray | None:
    """Which training rows [N] are known to be faulty: by a flipped class, or tampered with; None: not known."""
    if corpus is None:
        flipped: np.ndarray | None = problem.train.meta.get(FLIPPED)
        return flipped
    groups = {record.id: record.meta.get("group") for record in corpus.train}
    if TAMPERED not in groups.values():
        return None
    return np.array([groups[one] == TAMPERED for one in problem.belongs.get(DOCUMENT, problem.train.ids)])
