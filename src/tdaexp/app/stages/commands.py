"""The three commands as plain functions: a checked configuration and a run folder in, files and flat metrics out.

Nothing here knows Hydra, or which kind of model a run is about.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.app.config import AttributeConfig, EvaluateConfig, TrainConfig
from tdaexp.app.stages.cached import look_after
from tdaexp.building.build import builder_of, trainings
from tdaexp.data.records import Corpus
from tdaexp.methods.base import Method, check_truth
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.proximity import proximity
from tdaexp.metrics.stores import distinct_labels, same_study
from tdaexp.models.answers import greedy_answers
from tdaexp.papers.base import Evidence
from tdaexp.planning.plan import tell_plan
from tdaexp.problem import Problem
from tdaexp.report.decomposition import decomposition_findings
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.shading import tokens_json
from tdaexp.report.texts import Texts
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import CHECKPOINTS, write_json, write_text
from tdaexp.runtime.fingerprint import deciding, file_fingerprint, provenance
from tdaexp.runtime.progress import doing
from tdaexp.runtime.reading import parse_json, read_text
from tdaexp.selection.products_file import read_products

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A method's store, seconds by stage, texts of its queries and training examples (None: not known), and how near
    the two training stages' models are (None: there is one).
    """

    store: xr.Dataset
    cost: dict[str, float]
    texts: Texts | None = None
    near: pd.DataFrame | None = None


def train(config: TrainConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Train the configured model on the data set, in both stages where it has two; returns the last measures."""
    metrics: dict[str, float] = {}
    left = []
    for one in trainings(config):
        for step, measures in one.curves:
            logger.log_metrics(measures, step=step)
        log.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in one.metrics.items()))
        log.info("checkpoint: %s", one.folder)
        metrics |= one.metrics
        left.append(str(one.folder))
    if not ranks.current().first:
        return {}
    write_json(folder / CHECKPOINTS, left)
    write_json(folder / "metrics.json", metrics)
    logger.log_metrics(metrics)
    return metrics


def attribute(config: AttributeConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Score pairs, or decompose a training, as the method does; leaves the store, its metrics and a report."""
    answer = _of_problem(config) if config.products is None else _of_products(config)
    return _keep(config, folder, logger, answer) if ranks.current().first else {}


def _of_products(config: AttributeConfig) -> Answer:
    start, file = time.monotonic(), Path(str(config.products))
    store = config.method.from_products(read_products(file, config.query_set))
    store.attrs["study"] = file_fingerprint(file)
    return Answer(store, {"scoring": time.monotonic() - start})


def _of_problem(config: AttributeConfig) -> Answer:
    """The method's answer about the problem that the configuration describes."""
    clock, method, builder = Clock(), config.method, builder_of(config)
    doing("reading the data")
    _check_sources(method, builder.corpus)
    if ranks.current().first:
        tell_plan(config, builder.corpus)
    problem = builder.problem(clock)
    log.info("%s", problem.components().coverage_line())
    if problem.finetuned is not None and problem.classes and method.reads_model and not method.both_stages:
        raise UserError(
            f"method={method.name}: needs one model for training texts and queries, but model.finetuned classifies and "
            "reads no next token; take multistage, multistage_dot, repsim, bm25 or random"
        )
    store = method.attribute(problem if method.both_stages else problem.after(config.stage))
    clock.stop("scoring")
    store.attrs["study"] = problem.study
    cost = problem.split_cost(clock.seconds)
    sides = {"query": problem.queries, "train": problem.train}
    texts = {name: dict(zip(side.ids, side.texts, strict=True)) for name, side in sides.items()}
    return Answer(store, cost, texts, _second_stage(problem, store) if ranks.current().first else None)


def _check_sources(method: Method, corpus: Corpus | None) -> None:
    """Refuse query sets without known sources, before anything is loaded, where the method rests on them."""
    for name, records in corpus.queries.items() if corpus is not None else ():
        check_truth(method, [name] * len(records), [bool(record.truth) for record in records])


def _second_stage(problem: Problem, store: xr.Dataset) -> pd.DataFrame | None:
    """How near the second stage's model is to the first; its own answers to the queries go into the store."""
    if problem.finetuned is None or problem.loaded is None:
        return None
    doing("the model's own answers")
    successor = problem.finetuned.loaded
    answers = greedy_answers(successor, problem.queries, problem.compute.tokens_per_batch)
    answered = dict(zip(problem.queries.ids, answers, strict=True))
    store["answered"] = ("query", np.array([answered[query] for query in store["query"].values]))
    return proximity(problem.loaded, successor)


def _keep(config: AttributeConfig, folder: Path, logger: RunLogger, answer: Answer) -> dict[str, float]:
    """Write an answer's store, what it cost, and a page of what it shows into the run's folder; returns its metrics."""
    store, method = answer.store, config.method
    own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    label = store.attrs.get("label", method.label)  # a method may have to say how it went
    store.attrs |= {"method": method.name, "label": label, "config": deciding(own), **provenance()}
    doing("writing the store")
    influence.save(store, folder / "influence.zarr")
    write_json(folder / "cost.json", answer.cost)
    store.attrs["cost"] = answer.cost
    if "candidate" not in store.dims:
        findings = decomposition_findings(store, method.name)
        log.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in findings.metrics.items()))
        return write_findings(folder, findings, {label: store}, logger)
    if answer.texts is not None:
        write_json(folder / "texts.json", answer.texts)
    if "train_share" in store:
        write_text(folder / "tokens.json", tokens_json(store))
    return write_report(folder, {label: store}, answer.texts, config.metric, logger, answer.near)


def evaluate(config: EvaluateConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Compare the influence stores of `runs`, and another program's scores, in a report; or analyse them."""
    if config.cache is not None:
        return look_after(Path(config.cache_dir), config.cache)
    doing("reading the stores")
    if config.analysis is not None:
        evidence = Evidence(config, [influence.load(Path(store)) for store in config.runs])
        return write_findings(folder, config.analysis.run(evidence), evidence.labelled(), logger)
    stores, found = _pair_stores([Path(store) for store in config.runs])
    texts: Texts = {"query": {}, "train": {}}
    for store, dataset in zip(stores, found, strict=True):
        dataset.attrs["cost"] = _beside(store, "cost.json")
        if same_study(dataset, found[0]):  # other models write other texts under the same ids
            for role, known in _beside(store, "texts.json").items():
                texts[role] |= known
    if config.scores is not None:
        found.append(read_scores(Path(config.scores), found[0]))
    datasets = dict(zip(distinct_labels(found), found, strict=True))
    return write_report(folder, datasets, texts, config.metric, logger)


def _pair_stores(stores: list[Path]) -> tuple[list[Path], list[xr.Dataset]]:
    """The stores that score pairs; a decomposition of a training is judged by its own run, and left out here."""
    found = [(store, influence.load(store)) for store in stores]
    pairs = [(store, dataset) for store, dataset in found if "candidate" in dataset.dims]
    if found and not pairs:
        raise UserError(
            f"runs: {stores[0]} decomposes a training and scores no pairs, so there is nothing to rank; its run's "
            "metrics.json says how complete it is; add runs of ekfac, dot or random"
        )
    for store in set(stores) - {store for store, _ in pairs}:
        log.warning("%s: left out, it decomposes a training and scores no pairs", store)
    return [store for store, _ in pairs], [dataset for _, dataset in pairs]


def _beside(store: Path, name: str) -> dict[str, Any]:
    """A JSON file of the run that a store belongs to; empty where there is none."""
    file = store.parent / name
    found = parse_json(read_text(file), str(file)) if file.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{file}: damaged; delete it, or run attribute.py again")
    return found
