"""The stages of a training that is explained step by step: recorded, or known by its checkpoints; then decomposed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.building.checkpoints import build_checkpoint_study, checkpoint_corpus
from tdaexp.building.recorded import build_recorded_study, load_recorded, recorded_corpus
from tdaexp.building.tasks import build_task_study, load_task
from tdaexp.data.records import Corpus
from tdaexp.metrics.explaind import reconstruction
from tdaexp.metrics.loss_change import loss_change
from tdaexp.planning.plan import tell_plan
from tdaexp.report.decomposition import decomposition_findings
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.device import resolve_device
from tdaexp.runtime.files import CHECKPOINTS, write_json
from tdaexp.runtime.fingerprint import deciding, fingerprint, provenance
from tdaexp.training.task import check_pair

log = logging.getLogger(__name__)


def train_recorded(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Train and record a classification task, or a language model; returns the last losses and accuracies."""
    is_task = check_pair(config.model, config.dataset)
    task = load_task(config) if is_task else load_recorded(config, recorded_corpus(config))
    if not ranks.current().first:
        return {}
    for entry in task.note["curves"]:
        measures = {key if "/" in key else f"train/batch_{key}": value for key, value in entry.items() if key != "step"}
        logger.log_metrics(measures, step=int(entry["step"]))
    metrics = {"train/steps": float(entry["step"]), **measures}
    log.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
    log.info("checkpoint: %s", task.folder)
    write_json(folder / CHECKPOINTS, [str(task.folder)])
    write_json(folder / "metrics.json", metrics)
    logger.log_metrics(metrics)
    return metrics


def decompose(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Decompose a recorded training, or simulated updates at a language model's checkpoints.

    Leaves the store, how well its sums reproduce the model, what it cost, and a page of what it
    shows.
    """
    clock = Clock()
    if check_pair(config.model, config.dataset):
        _tell_plan(config)
        with ranks.first_alone():
            task = load_task(config)
        clock.stop("model")
        recorded = build_task_study(config, task, resolve_device(config.trainer.accelerator))
        return _of_recorded(config, folder, logger, recorded, clock)
    if config.trainer.fit.record:
        corpus = recorded_corpus(config)
        _tell_plan(config, corpus)
        with ranks.first_alone():
            language = load_recorded(config, corpus)
        clock.stop("model")
        return _of_recorded(config, folder, logger, build_recorded_study(config, language), clock)
    corpus = checkpoint_corpus(config)
    _tell_plan(config, corpus)
    with ranks.first_alone():
        study = build_checkpoint_study(config, corpus)
    clock.stop("model")
    dataset = config.method.attribute(study)
    clock.stop("scoring")
    identities = [one.identity for one in study.snapshots]
    dataset.attrs["study"] = fingerprint(identities, study.pool.fingerprint(), study.queries.fingerprint())
    return _keep(config, folder, logger, dataset, loss_change(dataset), clock.seconds)


def _tell_plan(config: Any, corpus: Corpus | None = None) -> None:
    if ranks.current().first:
        tell_plan(config, corpus)


def _of_recorded(config: Any, folder: Path, logger: RunLogger, study: Any, clock: Clock) -> dict[str, float]:
    dataset = config.method.attribute(study)
    clock.stop("scoring")
    dataset.attrs["study"] = study.fingerprint
    return _keep(config, folder, logger, dataset, reconstruction(dataset), clock.seconds)


def _keep(
    config: Any,
    folder: Path,
    logger: RunLogger,
    dataset: xr.Dataset,
    measures: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, float]:
    """Write a path decomposition, its cost, and a page of what it shows into the run's folder; returns its measures.

    Of several processes the first one writes; the others return nothing.
    """
    if not ranks.current().first:
        return {}
    own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    dataset.attrs |= {"method": config.method.name, "label": config.method.label, "config": deciding(own)}
    dataset.attrs |= provenance()
    influence.save(dataset, folder / "influence.zarr")
    write_json(folder / "cost.json", seconds)
    findings = decomposition_findings(dataset, measures, config.method.name)
    log.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in findings.metrics.items()))
    dataset.attrs["cost"] = seconds
    return write_findings(folder, findings, {config.method.label: dataset}, logger)
