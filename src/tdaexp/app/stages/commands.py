"""The three commands as plain functions: a checked configuration and a run folder in, files and flat metrics out.

Nothing here knows Hydra. `config` is one of the root dataclasses of `tdaexp.app.config`; imports are inside the
functions' modules, not here, so that the command line stays quick until a stage starts.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.app.stages.cached import look_after
from tdaexp.app.stages.paths import decompose, train_recorded
from tdaexp.app.stages.tasks import score_task
from tdaexp.building.sharded import load_sharded
from tdaexp.building.texts import (
    build_problem,
    drawn,
    load_model,
    load_successor,
    with_generated,
)
from tdaexp.data.records import Corpus
from tdaexp.methods.base import check_truth
from tdaexp.methods.explaind import Explaind
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.proximity import proximity
from tdaexp.metrics.stores import distinct_labels, same_study
from tdaexp.models.answers import greedy_answers
from tdaexp.models.loaded import LoadedModel
from tdaexp.papers.base import Evidence
from tdaexp.planning.plan import tell_plan
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.shading import tokens_json
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import CHECKPOINTS, write_json, write_text
from tdaexp.runtime.fingerprint import deciding, file_fingerprint, fingerprint, provenance
from tdaexp.runtime.progress import doing
from tdaexp.runtime.reading import parse_json, read_text
from tdaexp.selection.products_file import read_products
from tdaexp.training.task import check_pair

log = logging.getLogger(__name__)
Texts = dict[str, dict[str, str]]


def train(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Train the configured model on the data set, in both stages where it has two; returns the final losses."""
    if check_pair(config.model, config.dataset) or config.trainer.fit.record:
        return train_recorded(config, folder, logger)
    doing("reading the data")
    if not config.model.needs_training:
        log.info("model.pretrained is set: training goes on from those weights")
    loaded = load_model(config, config.dataset.train_records(), always_train=True)
    metrics = _told(loaded, "train", logger)
    successor = load_successor(config, config.dataset.finetune_records(), loaded)
    left = [loaded]
    if successor is not None and config.model.finetuned is None:
        metrics |= _told(successor, "finetune", logger)
        left.append(successor)
    if not ranks.current().first:
        return {}
    write_json(folder / CHECKPOINTS, [str(one.model.name_or_path) for one in left])
    write_json(folder / "metrics.json", metrics)
    logger.log_metrics(metrics)
    return metrics


def _told(loaded: LoadedModel, stage: str, logger: RunLogger) -> dict[str, float]:
    """Log a trained model's losses and where it lies; returns the number of steps and the last loss."""
    note = json.loads((Path(str(loaded.model.name_or_path)) / "training.json").read_text(encoding="utf-8"))
    for step, loss in enumerate(note["loss"], start=1):
        logger.log_metrics({f"{stage}/loss": loss}, step=step)
    metrics = {f"{stage}/steps": float(len(note["loss"]))}
    if note["loss"]:
        metrics[f"{stage}/loss"] = note["loss"][-1]
    log.info("checkpoint: %s", loaded.model.name_or_path)
    return metrics


def attribute(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Decompose a training, or score pairs, as the method does; leaves the store, its metrics and a report."""
    if config.products is None:
        task = check_pair(config.model, config.dataset)
        if isinstance(config.method, Explaind):
            return decompose(config, folder, logger)
        if task:
            return score_task(config, folder, logger)
        if getattr(config.model, "checkpoints", None):
            raise UserError(
                f"model.checkpoints: method={config.method.name} reads one model; only explaind reads a list"
            )
    near = None
    if config.products is not None:
        start = time.monotonic()
        dataset = config.method.from_products(read_products(Path(config.products), config.query_set))
        dataset.attrs["study"] = file_fingerprint(Path(config.products))
        cost, texts = {"scoring": time.monotonic() - start}, None
    else:
        dataset, cost, texts, near = _attribute_model(config)
    if not ranks.current().first:
        return {}
    if texts is not None:
        write_json(folder / "texts.json", texts)
    own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    label = dataset.attrs.get("label", config.method.label)  # a method may have to say how it went
    dataset.attrs |= {"method": config.method.name, "label": label, "config": deciding(own)}
    dataset.attrs |= provenance()
    doing("writing the store")
    influence.save(dataset, folder / "influence.zarr")
    if "train_share" in dataset:
        write_text(folder / "tokens.json", tokens_json(dataset))
    write_json(folder / "cost.json", cost)
    dataset.attrs["cost"] = cost
    return write_report(folder, {label: dataset}, texts, config.metric, logger, near)


def evaluate(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
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


def _attribute_model(config: Any) -> tuple[xr.Dataset, dict[str, float], Texts, pd.DataFrame | None]:
    """The method's answer, seconds by stage, texts for the report, and how near the two training stages' models are."""
    clock = Clock()
    doing("reading the data")
    corpus = drawn(config.dataset.load(), config.dataset.query_limit, config.seed)
    for name, records in corpus.queries.items():
        check_truth(config.method, [name] * len(records), [bool(record.truth) for record in records])
    if ranks.current().first:
        tell_plan(config, corpus)
    loaded, successor, corpus = _models(config, corpus, clock)
    with ranks.first_alone():
        study = build_problem(config, corpus, loaded, successor)
        clock.stop("candidates")
    log.info("%s", study.components().coverage_line())
    if study.classes and config.method.reads_model and not config.method.both_stages:
        raise UserError(
            f"method={config.method.name}: needs one model for training texts and queries, but model.finetuned "
            "classifies and reads no next token; take multistage, multistage_dot, repsim, bm25 or random"
        )
    dataset = config.method.attribute(study if config.method.both_stages else study.after(config.stage))
    clock.stop("scoring")
    dataset.attrs["study"] = (
        study.fingerprint if successor is None else fingerprint(study.fingerprint, successor.fingerprint)
    )
    cost = study.split_cost(clock.seconds)
    near = None
    if successor is not None and ranks.current().first:
        doing("the model's own answers")
        answers = greedy_answers(successor, study.queries, study.compute.tokens_per_batch)
        answered = dict(zip(study.queries.ids, answers, strict=True))
        dataset["answered"] = ("query", np.array([answered[query] for query in dataset["query"].values]))
        near = proximity(loaded, successor)
    records = [record for name in config.dataset.query_sets for record in corpus.queries[name]]
    texts = {
        "query": {record.id: record.text for record in records},
        "train": {record.id: record.text for record in corpus.train},
    }
    return dataset, cost, texts, near


def _models(config: Any, corpus: Corpus, clock: Clock) -> tuple[LoadedModel, LoadedModel | None, Corpus]:
    """The models before and after the second stage, and the data with what the last one completes."""
    if config.trainer.strategy == "fsdp":
        loaded, successor = load_sharded(config, corpus), None
    else:
        with ranks.first_alone():
            loaded = load_model(config, corpus.train)
            successor = load_successor(config, corpus.finetune, loaded)
    clock.stop("model")
    corpus = with_generated(config, corpus, successor or loaded)
    clock.stop("queries")
    return loaded, successor, corpus


def _beside(store: Path, name: str) -> dict[str, Any]:
    """A JSON file of the run that a store belongs to; empty where there is none."""
    file = store.parent / name
    found = parse_json(read_text(file), str(file)) if file.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{file}: damaged; delete it, or run attribute.py again")
    return found
