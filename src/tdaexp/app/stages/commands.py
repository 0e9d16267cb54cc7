"""The three commands as plain functions: a checked configuration and a run folder in, files and flat metrics out.

Nothing here knows Hydra, or which kind of model a run is about.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from functools import partial
from pathlib import Path

from tdaexp import influence
from tdaexp.app.config import AttributeConfig, EvaluateConfig, TrainConfig
from tdaexp.app.stages.answering import Answer, answered, check_sources, keep
from tdaexp.app.stages.cached import look_after
from tdaexp.app.stages.comparing import compared
from tdaexp.app.stages.dashboard import show_leaderboard
from tdaexp.app.stages.dropping import drop_rows
from tdaexp.app.stages.indexing import build_share
from tdaexp.app.stages.serving import serve
from tdaexp.app.stages.trained_again import trained_again
from tdaexp.app.sweep import read_row
from tdaexp.building.build import builder_of, built, trainings
from tdaexp.methods.base import check_combines
from tdaexp.papers.base import Evidence
from tdaexp.planning.plan import tell_plan
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.files import CHECKPOINTS, write_json
from tdaexp.runtime.fingerprint import file_fingerprint
from tdaexp.runtime.progress import doing
from tdaexp.runtime.reading import read_settings
from tdaexp.selection.products_file import read_products
from tdaexp.trust.measure import checks_of_store

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
    """Score pairs, or decompose a training, as the method does; leaves the store, its metrics and a report.

    With `shard`, a share of the method's index is built in place of all that.
    """
    if config.shard is not None:
        return build_share(config, config.shard, folder, logger)
    answer = _of_problem(config) if config.products is None else _of_products(config)
    if not ranks.current().first:
        return {}
    row = read_row(folder)
    values = read_settings(folder / "config.yaml")
    answer.describe(config.method, values, None if row is None else row.choices)
    return keep(config.metric, folder, logger, answer)


def _of_products(config: AttributeConfig) -> Answer:
    start, file = time.monotonic(), Path(str(config.products))
    store = config.method.from_products(read_products(file, config.query_set))
    store.attrs["study"] = file_fingerprint(file)
    cost = {"scoring": time.monotonic() - start}
    return Answer(store, cost, trust=checks_of_store(store, config.metric.top_k))


def _of_problem(config: AttributeConfig) -> Answer:
    """The method's answer about the problem that the configuration describes."""
    clock, builder = Clock(), builder_of(config)
    doing("reading the data")
    if getattr(config.dataset, "combine", None) is not None:  # only data of texts has it
        check_combines(config.method)
    check_sources(config.method, builder.corpus)
    if ranks.current().first:
        tell_plan(config, builder.corpus)
    problem = dataclasses.replace(built(config, builder, clock), retrained=partial(trained_again, config))
    return answered(config, problem, builder.corpus, clock)


def evaluate(config: EvaluateConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Compare the influence stores of `runs`, and another program's scores, in a report; or analyse them."""
    if config.cache is not None:
        return look_after(Path(config.cache_dir), config.cache)
    if config.serve:
        return serve(config)
    if config.drop is not None:
        doing("leaving rows out of the training file")
        metrics = drop_rows(config, folder)
        write_json(folder / "metrics.json", metrics)
        return metrics
    if config.leaderboard is not None:
        return show_leaderboard(config, folder, logger)
    doing("reading the stores")
    if config.analysis is not None:
        evidence = Evidence(config, [influence.load(store) for store in config.found.stores])
        return write_findings(folder, config.analysis.run(evidence), evidence.labelled(), logger)
    return compared(config, folder, logger)
