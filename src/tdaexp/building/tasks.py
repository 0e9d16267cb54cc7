"""From a checked configuration to the study of a classification task: trained, its queries and pairs chosen."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdaexp.data.candidates import BM25, All, Candidates, Sample, top
from tdaexp.data.tensors import TensorExamples
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.paths.recorded_problem import CPU, TaskStudy
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.training.history import RecordedSteps
from tdaexp.training.task import TrainedTask, trained_task

log = logging.getLogger(__name__)


def load_task(config: Any) -> TrainedTask:
    """Train and record the configured classification task, or load it where it was trained before."""
    return trained_task(
        config.model,
        config.dataset.load(),
        config.trainer.fit,
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        device=resolve_device(config.trainer.accelerator),
    )


def build_task_study(config: Any, task: TrainedTask, device: torch.device = CPU) -> TaskStudy:
    """The recorded training with the queries that the data set's `query_sets` and `query_limit` name."""
    names, queries = _queries(config, task)
    return TaskStudy(
        task.module.to(device),
        {name: tuple(members) for name, members in task.components.members.items()},
        task.corpus.train,
        queries,
        names,
        task.trajectory,
        Path(config.cache_dir),
        identity=task.fingerprint,
        held_out=task.corpus.test,
        device=device,
    )


def build_problem(config: Any, task: TrainedTask, selector: Any = None) -> Problem:
    """The trained classifier with its queries and their candidates; the truth is that both are of one class.

    `selector` chooses the candidates: of the group `candidates`, null = all.
    """
    trainer = config.trainer
    device, dtype = resolve_device(trainer.accelerator), resolve_dtype(trainer.precision)
    names, queries = _queries(config, task)
    train = task.corpus.train
    candidates = chosen_candidates(selector or All(), len(queries), len(train))
    model = copy.deepcopy(task.module).to(device, dtype)
    objective, two = Classes(), range(min(2, len(train)))
    return Problem(
        model=model,
        identity=task.fingerprint,
        map=discovered(model, lambda: objective.outputs(model, objective.batch(train, two).to(device)), len(two)),
        objective=objective,
        train=train,
        queries=queries,
        query_set=names,
        candidates=candidates,
        truth=(queries.targets[:, None] == train.targets[torch.from_numpy(candidates.indices)]).numpy(),
        compute=Compute(device, dtype, trainer.tokens_per_batch, trainer.cache_gb),
        cache=Path(config.cache_dir),
        seed=config.seed,
        history=RecordedSteps(model, task.trajectory) if config.trainer.fit.record else None,
    )


def chosen_candidates(selector: Any, queries: int, train: int) -> Candidates:
    """Every training example for each query, or a random sample of them, the same for all queries.

    Lexical candidates need words: the default, `candidates=bm25`, stands for all. Errors (UserError): others.
    """
    if isinstance(selector, Sample):
        order = top(np.random.default_rng(selector.seed).random(train), selector.size(range(train)))  # type: ignore[arg-type]
    elif isinstance(selector, All) or type(selector) is BM25:
        order = np.arange(train)
    else:
        kind = type(selector).__name__.lower()
        raise UserError(f"candidates={kind}: reads texts; of a classification task choose candidates=all or =sample")
    log.info("candidates: %d of the %d training examples for each query", len(order), train)
    indices = np.tile(order, (queries, 1))
    return Candidates(indices, np.full(indices.shape, np.nan))


def _queries(config: Any, task: TrainedTask) -> tuple[list[str], TensorExamples]:
    """The query set of every query, and the queries: of each set the first `query_limit`."""
    parts = {"train": task.corpus.train, "test": task.corpus.test}
    limit = config.dataset.query_limit
    chosen = [(name, parts[name].select(range(len(parts[name]))[:limit])) for name in config.dataset.query_sets]
    queries = TensorExamples(
        [one for _, examples in chosen for one in examples.ids],
        torch.cat([examples.inputs for _, examples in chosen]),
        torch.cat([examples.targets for _, examples in chosen]),
    )
    return [name for name, examples in chosen for _ in examples.ids], queries
