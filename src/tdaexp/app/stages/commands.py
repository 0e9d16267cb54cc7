"""The three commands as plain functions: a checked configuration and a run folder in, files and flat metrics out.

Nothing here knows Hydra, or which kind of model a run is about.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.app.config import AttributeConfig, EvaluateConfig, TrainConfig
from tdaexp.app.stages.cached import look_after
from tdaexp.app.stages.dropping import drop_rows
from tdaexp.building.build import builder_of, trainings
from tdaexp.data.pieces import SOURCE
from tdaexp.data.records import Corpus, Skipped
from tdaexp.methods.base import Method, check_combines, check_truth
from tdaexp.metrics.belonging import by_document, by_source
from tdaexp.metrics.combining import check_candidates, mean_query
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.proximity import proximity
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import distinct_labels, same_study
from tdaexp.models.answers import greedy_answers
from tdaexp.papers.base import Evidence
from tdaexp.planning.plan import tell_plan
from tdaexp.problem import Problem
from tdaexp.report.answer_files import write_answer
from tdaexp.report.console import print_answer
from tdaexp.report.decomposition import decomposition_findings
from tdaexp.report.findings import write_findings
from tdaexp.report.itself import totals, write_itself
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.shading import tokens_json
from tdaexp.report.texts import Texts, as_json, as_one, from_json, texts_of
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.csvs import csv_text, frame_csv
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import CHECKPOINTS, write_json, write_text
from tdaexp.runtime.fingerprint import deciding, file_fingerprint, provenance
from tdaexp.runtime.progress import doing
from tdaexp.runtime.reading import parse_json, read_text
from tdaexp.selection.products_file import read_products

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A method's store (None: nothing was asked), seconds by stage, texts of its queries and training examples (None:
    not known), how near the two training stages' models are (None: there is one), rows of the data that were left out,
    and the training examples' self-influence (None: nobody wanted it).
    """

    store: xr.Dataset | None
    cost: dict[str, float]
    texts: Texts | None = None
    near: pd.DataFrame | None = None
    skipped: list[Skipped] = field(default_factory=list)
    itself: xr.Dataset | None = None

    def describe(self, method: Method, config: dict[str, Any]) -> None:
        """Note in the stores' attributes what they are the answer of: the method, and a run's configuration."""
        for store in (self.store, self.itself):
            if store is not None:
                label = store.attrs.get("label", method.label)  # a method may have to say how it went
                store.attrs |= {"method": method.name, "label": label, "config": deciding(config), **provenance()}


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
    if not ranks.current().first:
        return {}
    answer.describe(config.method, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    return keep(config.metric, folder, logger, answer)


def _of_products(config: AttributeConfig) -> Answer:
    start, file = time.monotonic(), Path(str(config.products))
    store = config.method.from_products(read_products(file, config.query_set))
    store.attrs["study"] = file_fingerprint(file)
    return Answer(store, {"scoring": time.monotonic() - start})


def _of_problem(config: AttributeConfig) -> Answer:
    """The method's answer about the problem that the configuration describes."""
    clock, builder = Clock(), builder_of(config)
    doing("reading the data")
    if getattr(config.dataset, "combine", None) is not None:  # only data of texts has it
        check_combines(config.method)
    check_sources(config.method, builder.corpus)
    if ranks.current().first:
        tell_plan(config, builder.corpus)
    return answered(config, builder.problem(clock), builder.corpus, clock)


def answered(config: AttributeConfig, problem: Problem, corpus: Corpus | None, clock: Clock) -> Answer:
    """The configured method's answer about a problem, made of texts or not (None); of two training stages, a method
    that knows one sees the model after the configured one.
    """
    method, combine = config.method, getattr(config.dataset, "combine", None)
    if combine is not None:
        check_combines(method)
        check_candidates(problem.query_set, problem.pairs)
    log.info("%s", problem.components().coverage_line())
    if problem.finetuned is not None and problem.classes and method.reads_model and not method.both_stages:
        raise UserError(
            f"method={method.name}: needs one model for training texts and queries, but model.finetuned classifies and "
            "reads no next token; take multistage, multistage_dot, repsim, bm25 or random"
        )
    seen = problem if method.both_stages else problem.after(config.stage)
    store = method.attribute(seen) if len(problem.queries) else None
    itself = method.self_influence(seen) if config.self_influence else None
    clock.stop("scoring")
    for found in (store, itself):
        if found is not None:
            found.attrs["study"] = problem.study
    cost = problem.split_cost(clock.seconds)
    near = _second_stage(problem, store) if store is not None and ranks.current().first else None
    texts = texts_of(problem, corpus.train if problem.belongs and corpus is not None else ())
    if combine is not None and store is not None:
        store, texts = mean_query(store), as_one(texts, problem.query_set, problem.queries.ids, combine)
    return Answer(store, cost, texts, near, [] if corpus is None else corpus.skipped, itself)


def check_sources(method: Method, corpus: Corpus | None) -> None:
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


def keep(settings: MetricSettings, folder: Path, logger: RunLogger, answer: Answer) -> dict[str, float]:
    """Write an answer's stores, what it cost, and a page of what it shows into a folder; returns its metrics."""
    write_json(folder / "cost.json", answer.cost)
    if answer.skipped:
        rows = [(*where, reason) for where, reason in answer.skipped]
        write_text(folder / "skipped.csv", csv_text(("file", "row", "reason"), rows))
    if answer.texts is not None:
        write_json(folder / "texts.json", as_json(answer.texts))
    own = {} if answer.itself is None else write_itself(folder, answer.itself, answer.texts)
    if answer.store is None:
        write_json(folder / "metrics.json", own)
        logger.log_metrics(own)
        return own
    store = answer.store
    name, label = store.attrs["method"], store.attrs["label"]
    doing("writing the store")
    influence.save(store, folder / "influence.zarr")
    store = store.assign_attrs(cost=answer.cost)
    if SOURCE in store.coords:
        write_text(folder / "sources.csv", frame_csv(by_source(by_document(store))))
    if "candidate" not in store.dims:
        findings = decomposition_findings(store, name)
        log.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in findings.metrics.items()))
        return write_findings(folder, findings, {label: store}, logger)
    if "train_share" in store:
        write_text(folder / "tokens.json", tokens_json(store))
    doing("writing the rows next to each question")
    store = influence.scored(store)
    itself = None if answer.itself is None else totals(answer.itself)
    write_answer(folder, store, answer.texts, settings.top_k, itself)
    metrics = write_report(folder, {label: store}, answer.texts, settings, logger, answer.near) | own
    write_json(folder / "metrics.json", metrics)
    print_answer(folder, store, answer.texts)
    return metrics


def evaluate(config: EvaluateConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Compare the influence stores of `runs`, and another program's scores, in a report; or analyse them."""
    if config.cache is not None:
        return look_after(Path(config.cache_dir), config.cache)
    if config.drop is not None:
        doing("leaving rows out of the training file")
        metrics = drop_rows(config, folder)
        write_json(folder / "metrics.json", metrics)
        return metrics
    doing("reading the stores")
    if config.analysis is not None:
        evidence = Evidence(config, [influence.load(Path(store)) for store in config.runs])
        return write_findings(folder, config.analysis.run(evidence), evidence.labelled(), logger)
    stores, found = _pair_stores([Path(store) for store in config.runs])
    texts: Texts = {"query": {}, "train": {}}
    for store, dataset in zip(stores, found, strict=True):
        dataset.attrs["cost"] = beside(store, "cost.json")
        if same_study(dataset, found[0]):  # other models write other texts under the same ids
            for role, known in texts_beside(store).items():
                texts[role] = texts.get(role, {}) | known
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


def texts_beside(store: Path) -> Texts:
    """The texts of the run that a store belongs to."""
    return from_json(beside(store, "texts.json"), str(store.parent / "texts.json"))


def beside(store: Path, name: str) -> dict[str, Any]:
    """A JSON file of the run that a store belongs to; empty where there is none."""
    file = store.parent / name
    found = parse_json(read_text(file), str(file)) if file.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{file}: damaged; delete it, or run attribute.py again")
    return found
