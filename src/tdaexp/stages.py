"""The three stages as plain functions: a checked configuration and a run folder in, files and flat metrics out.

Nothing here knows Hydra. `config` is one of the root dataclasses of `tdaexp.config`; imports are inside the functions'
modules, not here, so that the command line stays quick until a stage starts.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.data.candidate_cache import cached_candidates
from tdaexp.data.dataset import query_id
from tdaexp.data.examples import Examples
from tdaexp.data.records import Corpus, Record
from tdaexp.data.tokenise import tokenise
from tdaexp.methods.products_file import read_products
from tdaexp.methods.study import Compute, Study
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.stores import distinct_labels, same_study
from tdaexp.models.generate import generated_queries
from tdaexp.models.loaded import LoadedModel
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_json
from tdaexp.runtime.fingerprint import deciding, file_fingerprint, provenance
from tdaexp.training.trained import Tokenisation, trained

log = logging.getLogger(__name__)
Texts = dict[str, dict[str, str]]
GENERATED = "generated"


def train(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Train the configured model on the data set, or find it in the cache; returns the final training loss."""
    if not config.model.needs_training:
        log.info("model.pretrained is set: training goes on from those weights")
    loaded = load_model(config, config.dataset.train_records(), always_train=True)
    note = json.loads((Path(str(loaded.model.name_or_path)) / "training.json").read_text(encoding="utf-8"))
    for step, loss in enumerate(note["loss"], start=1):
        logger.log_metrics({"train/loss": loss}, step=step)
    metrics = {"train/steps": float(len(note["loss"]))}
    if note["loss"]:
        metrics["train/loss"] = note["loss"][-1]
    write_json(folder / "metrics.json", metrics)
    logger.log_metrics(metrics)
    log.info("checkpoint: %s", loaded.model.name_or_path)
    return metrics


def attribute(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Score the candidate pairs with the configured method; leaves the store, its metrics and a report."""
    if config.products is not None:
        start = time.monotonic()
        dataset = config.method.from_products(read_products(Path(config.products)))
        dataset.attrs["study"] = file_fingerprint(Path(config.products))
        cost, texts = {"scoring": time.monotonic() - start}, None
    else:
        dataset, cost, texts = _attribute_model(config)
        write_json(folder / "texts.json", texts)
    own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    dataset.attrs |= {"method": config.method.name, "label": config.method.label, "config": deciding(own)}
    dataset.attrs |= provenance()
    influence.save(dataset, folder / "influence.zarr")
    write_json(folder / "cost.json", cost)
    dataset.attrs["cost"] = cost
    return write_report(folder, {config.method.label: dataset}, texts, config.metric, logger)


def evaluate(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Compare the influence stores of `runs`, and another program's scores, in one table and one report."""
    stores = [Path(store) for store in config.runs]
    found = [influence.load(store) for store in stores]
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


def load_model(config: Any, records: list[Record], always_train: bool = False) -> LoadedModel:
    """Load the configured model, training it on the records when it has no weights yet (or `always_train`)."""
    device, dtype = resolve_device(config.trainer.accelerator), resolve_dtype(config.trainer.precision)
    if not (config.model.needs_training or always_train):
        return config.model.load(device, dtype)
    return trained(
        config.model,
        records,
        config.trainer.fit,
        Tokenisation(
            template=_template(config),
            max_length=config.dataset.max_length,
            loss_on=config.dataset.loss_on,
            append_eos=config.dataset.append_eos,
        ),
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        device=device,
        dtype=dtype,
        precision=config.trainer.precision,
    )


def _attribute_model(config: Any) -> tuple[xr.Dataset, dict[str, float], Texts]:
    """The method's answer on the configured model and data, seconds by stage, and the texts for the report."""
    clock = _Clock()
    corpus = config.dataset.load()
    loaded = load_model(config, corpus.train)
    clock.stop("model")
    corpus = _with_generated(config, corpus, loaded)
    clock.stop("queries")
    study = _study(config, corpus, loaded)
    clock.stop("candidates")
    log.info("%s", study.components().coverage_line())
    dataset = config.method.attribute(study)
    clock.stop("scoring")
    dataset.attrs["study"] = study.fingerprint
    cost = study.split_cost(clock.seconds)
    records = [record for name in config.dataset.query_sets for record in corpus.queries[name]]
    texts = {
        "query": {record.id: record.text for record in records},
        "train": {record.id: record.text for record in corpus.train},
    }
    return dataset, cost, texts


def _with_generated(config: Any, corpus: Corpus, loaded: LoadedModel) -> Corpus:
    """Add the query set in which the model completes the paraphrased prompts itself, where it is asked for."""
    if GENERATED not in config.dataset.query_sets:
        return corpus
    completed = generated_queries(
        loaded,
        corpus.queries["paraphrased"],
        config.decoding,
        Path(config.cache_dir) / "generated",
        template=_template(config),
        max_length=config.dataset.max_length,
    )
    renamed = [
        dataclasses.replace(record, id=query_id(record.id.removesuffix("/paraphrased"), GENERATED))
        for record in completed
    ]
    return Corpus(corpus.train, {**corpus.queries, GENERATED: renamed})


def _study(config: Any, corpus: Corpus, loaded: LoadedModel) -> Study:
    """Tokenise, choose the pairs, and put everything that a method may look at together."""
    names = list(config.dataset.query_sets)
    if not names:
        raise UserError("dataset.query_sets is empty; name at least one, e.g. dataset.query_sets=[paraphrased]")
    records = [record for name in names for record in corpus.queries[name]]
    candidates = cached_candidates(config.candidates, records, corpus.train, Path(config.cache_dir) / "candidates")
    position = {record.id: index for index, record in enumerate(corpus.train)}
    sources = [[position[source] for source in record.truth] for record in records]
    truth = np.stack([np.isin(row, own) for row, own in zip(candidates.indices, sources, strict=True)])
    return Study(
        train=_tokens(config, corpus.train, loaded),
        queries=_tokens(config, records, loaded),
        query_set=[name for name in names for _ in corpus.queries[name]],
        candidates=candidates,
        truth=truth,
        loaded=loaded,
        compute=Compute(
            loaded.model.device, loaded.model.dtype, config.trainer.tokens_per_batch, config.trainer.cache_gb
        ),
        cache=Path(config.cache_dir),
        seed=config.seed,
    )


def _tokens(config: Any, records: list[Record], loaded: LoadedModel) -> Examples:
    return tokenise(
        records,
        loaded.tokenizer,
        template=_template(config),
        max_length=min(config.dataset.max_length, loaded.max_length),
        loss_on=config.dataset.loss_on,
        append_eos=config.dataset.append_eos,
    )


def _template(config: Any) -> str:
    """The data set's template, or the model's where the data set leaves it open."""
    return str(config.model.template if config.dataset.template == "auto" else config.dataset.template)


def _beside(store: Path, name: str) -> dict[str, Any]:
    """A JSON file of the run that a store belongs to; empty where there is none."""
    file = store.parent / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, stage: str) -> None:
        """Charge the time since the last stop to `stage`."""
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now
