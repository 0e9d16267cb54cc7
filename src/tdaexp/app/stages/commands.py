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
from tdaexp.app.stages.dashboard import runs_in_wandb, show_comparison, show_leaderboard
from tdaexp.app.stages.dropping import drop_rows
from tdaexp.building.build import builder_of, trainings
from tdaexp.methods.base import check_combines
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.stores import distinct_labels, same_study
from tdaexp.papers.base import Evidence
from tdaexp.planning.plan import tell_plan
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
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
    if config.leaderboard is not None:
        return show_leaderboard(config, folder, logger)
    doing("reading the stores")
    if config.analysis is not None:
        evidence = Evidence(config, [influence.load(Path(store)) for store in config.runs])
        return write_findings(folder, config.analysis.run(evidence), evidence.labelled(), logger)
    mirrored = runs_in_wandb(config, config.runs) if config.dashboard == "workspace" else []
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
    metrics = write_report(folder, datasets, texts, config.metric, logger)
    if config.dashboard is not None:
        named = metrics if len(datasets) > 1 else {f"{next(iter(datasets))}/{key}": one for key, one in metrics.items()}
        costs = {
            label: sum(store.attrs["cost"].values()) for label, store in datasets.items() if store.attrs.get("cost")
        }
        show_comparison(config, folder, logger, mirrored, named, costs)
    return metrics


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
