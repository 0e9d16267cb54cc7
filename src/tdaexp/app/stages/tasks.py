"""Scores of pairs of a classification task's examples: what `attribute` does where there are no texts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.building.tasks import build_problem, load_task
from tdaexp.data.tensors import TensorExamples
from tdaexp.planning.plan import tell_plan
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.files import write_json
from tdaexp.runtime.fingerprint import deciding, provenance

log = logging.getLogger(__name__)


def score_task(config: Any, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Score pairs of queries and training examples; leaves what `attribute` leaves for texts."""
    clock = Clock()
    if ranks.current().first:
        tell_plan(config)
    with ranks.first_alone():
        task = load_task(config)
    clock.stop("model")
    problem = build_problem(config, task, config.candidates)
    log.info("%s", problem.components().coverage_line())
    dataset = config.method.attribute(problem)
    clock.stop("scoring")
    if not ranks.current().first:
        return {}
    dataset.attrs["study"] = problem.fingerprint
    cost = problem.split_cost(clock.seconds)
    _keep(config, folder, dataset, cost)
    texts = {"query": _texts(problem.queries), "train": _texts(problem.train)}
    write_json(folder / "texts.json", texts)
    dataset.attrs["cost"] = cost
    return write_report(folder, {dataset.attrs["label"]: dataset}, texts, config.metric, logger)


def _keep(config: Any, folder: Path, dataset: xr.Dataset, cost: dict[str, float]) -> None:
    """Write the store and what it cost."""
    own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    dataset.attrs |= {"method": config.method.name, "label": config.method.label, "config": deciding(own)}
    dataset.attrs |= provenance()
    influence.save(dataset, folder / "influence.zarr")
    write_json(folder / "cost.json", cost)


def _texts(examples: TensorExamples) -> dict[str, str]:
    """What the report shows of each example: its class, and its tokens where it has some."""
    shown = [f"class {target}" for target in examples.targets.tolist()]
    if not examples.inputs.is_floating_point():
        rows = examples.inputs.flatten(1).tolist()
        shown = [f"{' '.join(map(str, row))} ({text})" for row, text in zip(rows, shown, strict=True)]
    return {one: f"{one}: {text}" for one, text in zip(examples.ids, shown, strict=True)}
