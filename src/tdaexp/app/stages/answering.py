"""An answer, from the problem to the files of a run's folder: what `attribute.py` and a Python call have in common."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.app.config import AttributeConfig
from tdaexp.data.pieces import SOURCE
from tdaexp.data.records import Corpus, Skipped
from tdaexp.methods.base import Method, check_combines, check_truth
from tdaexp.metrics.belonging import by_document, by_source
from tdaexp.metrics.combining import check_candidates, mean_query
from tdaexp.metrics.proximity import proximity
from tdaexp.metrics.settings import MetricSettings
from tdaexp.models.answers import greedy_answers
from tdaexp.problem import Problem
from tdaexp.report.answer_files import write_answer
from tdaexp.report.console import print_answer
from tdaexp.report.dashboards.swept import COST
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
from tdaexp.runtime.files import write_json, write_text
from tdaexp.runtime.fingerprint import deciding, provenance
from tdaexp.runtime.progress import doing
from tdaexp.runtime.reading import parse_json, read_text
from tdaexp.trust import check
from tdaexp.trust.check import Check
from tdaexp.trust.measure import checks_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A method's store (None: nothing was asked), seconds by stage, texts of its queries and training examples (None:
    not known), how near the two training stages' models are (None: there is one), rows of the data that were left out,
    the training examples' self-influence (None: nobody wanted it), and the checks of the store.
    """

    store: xr.Dataset | None
    cost: dict[str, float]
    texts: Texts | None = None
    near: pd.DataFrame | None = None
    skipped: list[Skipped] = field(default_factory=list)
    itself: xr.Dataset | None = None
    trust: list[Check] = field(default_factory=list)

    def describe(self, method: Method, config: dict[str, Any], choices: dict[str, str] | None = None) -> None:
        """Note in the stores' attributes what they are the answer of: the method, and a run's configuration.

        `choices` are those of the groups, by which a comparison calls what differs between runs.
        """
        for store in (self.store, self.itself):
            if store is not None:
                label = store.attrs.get("label", method.label)  # a method may have to say how it went
                store.attrs |= {"method": method.name, "label": label, "config": deciding(config), **provenance()}
                store.attrs |= {"choices": choices} if choices else {}


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
    if seen.wanted is not None and len(seen.queries):
        seen = method.found(seen)
    store = method.attribute(seen) if len(problem.queries) else None
    itself = method.self_influence(seen) if config.self_influence else None
    clock.stop("scoring")
    for found in (store, itself):
        if found is not None:
            found.attrs["study"] = problem.study
    cost = problem.split_cost(clock.seconds)
    trust = _checked(config, seen, store) if store is not None and ranks.current().first else []
    clock.stop("trust")
    cost |= {"trust": clock.seconds["trust"]} if trust else {}
    near = _second_stage(problem, store) if store is not None and ranks.current().first else None
    found = seen.pairs if seen.wanted is not None and itself is None else None
    texts = texts_of(problem, corpus.train if problem.belongs and corpus is not None else (), found)
    if combine is not None and store is not None:
        store, texts = mean_query(store), as_one(texts, problem.query_set, problem.queries.ids, combine)
    return Answer(store, cost, texts, near, [] if corpus is None else corpus.skipped, itself, trust)


def _checked(config: AttributeConfig, problem: Problem, store: xr.Dataset) -> list[Check]:
    doing("checking the answer")
    sharded = config.trainer.strategy == "fsdp"
    return checks_of(config.method, problem, store, k=config.metric.top_k, wanted=config.trust, sharded=sharded)


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
    logger.log_metrics({f"cost/{stage}_seconds": seconds for stage, seconds in answer.cost.items()})
    logger.log_metrics({COST: sum(answer.cost.values())})
    if answer.skipped:
        rows = [(*where, reason) for where, reason in answer.skipped]
        write_text(folder / "skipped.csv", csv_text(("file", "row", "reason"), rows))
    if answer.texts is not None:
        write_json(folder / "texts.json", as_json(answer.texts))
    own = check.flat(answer.trust) | (
        {} if answer.itself is None else write_itself(folder, answer.itself, answer.texts)
    )
    if answer.trust:
        write_json(folder / check.FILE, check.as_json(answer.trust))
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
        findings.metrics |= check.flat(answer.trust)
        return write_findings(folder, findings, {label: store}, logger, answer.trust)
    if "train_share" in store:
        write_text(folder / "tokens.json", tokens_json(store))
    doing("writing the rows next to each question")
    store = influence.scored(store)
    itself = None if answer.itself is None else totals(answer.itself)
    write_answer(folder, store, answer.texts, settings.top_k, itself)
    trust = {label: answer.trust}
    metrics = write_report(folder, {label: store}, answer.texts, settings, logger, answer.near, trust=trust) | own
    write_json(folder / "metrics.json", metrics)
    print_answer(folder, store, answer.texts)
    return metrics


def texts_beside(store: Path) -> Texts:
    """The texts of the run that a store belongs to."""
    return from_json(beside(store, "texts.json"), str(store.parent / "texts.json"))


def checks_beside(store: Path) -> list[Check]:
    """The checks of the run that a store belongs to; none where it has none."""
    return check.from_json(beside(store, check.FILE), str(store.parent / check.FILE))


def beside(store: Path, name: str) -> dict[str, Any]:
    """A JSON file of the run that a store belongs to; empty where there is none."""
    file = store.parent / name
    found = parse_json(read_text(file), str(file)) if file.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{file}: damaged; delete it, or run attribute.py again")
    return found
