"""The three commands as plain functions: a checked configuration and a run folder in, files and flat metrics out.

Nothing here knows Hydra, or which kind of model a run is about.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.app.config import AttributeConfig, EvaluateConfig, TrainConfig
from tdaexp.app.stages.answering import Answer, answered, beside, check_sources, keep, texts_beside
from tdaexp.app.stages.cached import look_after
from tdaexp.app.stages.dropping import drop_rows
from tdaexp.app.stages.retraining import judged_by_retraining
from tdaexp.building.build import builder_of, trainings
from tdaexp.methods.base import check_combines
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.stores import distinct_labels, same_study
from tdaexp.papers.base import Evidence
from tdaexp.planning.plan import tell_plan
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.retrained import frame, retrained_findings
from tdaexp.report.texts import Texts
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import CHECKPOINTS, write_json
from tdaexp.runtime.fingerprint import file_fingerprint
from tdaexp.runtime.progress import doing
from tdaexp.selection.products_file import read_products

log = logging.getLogger(__name__)


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
    every = {Path(store): influence.load(Path(store)) for store in config.runs}
    pairs = [store for store, dataset in every.items() if "candidate" in dataset.dims]
    found, texts = [every[store] for store in pairs], _told(pairs, every)
    if config.scores is not None and found:
        found.append(read_scores(Path(config.scores), found[0]))
    decomposed = [dataset for store, dataset in every.items() if store not in pairs]
    labels = distinct_labels([*found, *decomposed])
    labelled = dict(zip(labels, [*found, *decomposed], strict=True))
    judged = judged_by_retraining(config, labelled)
    if not ranks.current().first:
        return {}
    again = frame(judged) if judged else None
    _tell_left_out(every, pairs, again is not None)
    if not found and again is not None:
        return write_findings(folder, retrained_findings(again), labelled, logger)
    datasets = {label: labelled[label] for label in labels[: len(found)]}
    return write_report(folder, datasets, texts, config.metric, logger, judged_again=again)


def _told(stores: list[Path], every: dict[Path, xr.Dataset]) -> Texts:
    """The texts of the runs of these stores; what each run cost becomes an attribute of its store."""
    texts: Texts = {"query": {}, "train": {}}
    for store in stores:
        every[store].attrs["cost"] = beside(store, "cost.json")
        if same_study(every[store], every[stores[0]]):  # other models write other texts under the same ids
            for role, known in texts_beside(store).items():
                texts[role] = texts.get(role, {}) | known
    return texts


def _tell_left_out(every: dict[Path, xr.Dataset], pairs: list[Path], judged: bool) -> None:
    """Say of a decomposition of a training that its own run judges it. Errors (UserError): there is nothing else."""
    if every and not pairs and not judged:
        raise UserError(
            f"runs: {next(iter(every))} decomposes a training and scores no pairs, so there is nothing to rank; its "
            "run's metrics.json says how complete it is; add runs of ekfac, dot or random, or judge it by retraining "
            "(metric=lds)"
        )
    for store in set(every) - set(pairs):
        if not judged:
            log.warning("%s: left out, it decomposes a training and scores no pairs", store)
