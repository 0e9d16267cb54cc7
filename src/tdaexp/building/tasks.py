"""From a checked configuration to the problem of a classification task: trained, its queries and pairs chosen."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdaexp.building.parts import chosen_candidates, compute_of
from tdaexp.building.self_check import check
from tdaexp.building.settings import Asked, Named
from tdaexp.data.best import Best
from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorExamples
from tdaexp.models.components import ComponentMap
from tdaexp.models.discovery import PROBED, discovered
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Problem, Wanted
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.device import resolve_device
from tdaexp.training.history import RecordedSteps
from tdaexp.training.task import TrainedTask, trained_task


@dataclass(frozen=True)
class Tasks:
    """Builds the problem of a classification task."""

    config: Asked

    @property
    def corpus(self) -> None:
        """None: a task has no texts."""

    def problem(self, clock: Clock) -> Problem:
        """The trained classifier; a recording is float32, and so is its decomposition."""
        config = self.config
        with ranks.first_alone():
            task = load_task(config)
        clock.stop("model")
        if config.method.decomposes:
            return build_problem(config, task, None, torch.float32)
        return build_problem(config, task, config.candidates)


def load_task(config: Named) -> TrainedTask:
    """Train and record the configured classification task, or load it where it was trained before."""
    return trained_task(
        config.model,
        config.dataset.corpus(),
        config.trainer.fit,
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        device=resolve_device(config.trainer.accelerator),
    )


def build_problem(
    config: Named,
    task: TrainedTask,
    selector: object = None,
    dtype: torch.dtype | None = None,
    components: ComponentMap | None = None,
) -> Problem:
    """The trained network with its queries and their candidates; the truth is that both are of one class.

    `selector` chooses the candidates: of the group `candidates`, None = no pair is scored. The model is of the
    trainer's precision, or of the `dtype`; its `components` are found by their types where they are not given.
    """
    compute = compute_of(config.trainer, dtype)
    names, queries = task.asked(config.dataset.query_sets, config.dataset.query_limit)
    train = task.corpus.train
    candidates = chosen_candidates(selector, len(queries), len(train))
    model = task.module if compute.dtype == torch.float32 else copy.deepcopy(task.module).to(compute.dtype)
    few = train.inputs[:PROBED].to(compute.device)
    turned = few.flip(0)
    more = [(lambda: task.module(turned), len(few))]
    found = components or discovered(task.module, lambda: task.module(few), len(few), more)
    check(model, found, Classes(), train.select(range(len(few))), f"model={config.model.name}")
    return Problem(
        model=model,
        identity=task.fingerprint,
        map=found,
        objective=Classes(),
        train=train,
        queries=queries,
        query_set=names,
        candidates=candidates,
        truth=same_class(queries, train, candidates),
        compute=compute,
        cache=Path(config.cache_dir),
        seed=config.seed,
        history=RecordedSteps(model, task.trajectory, task.held_out) if config.trainer.fit.record else None,
        wanted=Wanted(selector, of_classes(queries, train)) if isinstance(selector, Best) else None,
    )


def of_classes(queries: TensorExamples, train: TensorExamples) -> list[np.ndarray]:
    """Numbers of the training examples that are of each query's class [Q]: its sources."""
    known = {int(one): np.flatnonzero((train.targets == one).numpy()) for one in queries.targets.unique()}
    return [known[int(one)] for one in queries.targets]


def same_class(queries: TensorExamples, train: TensorExamples, candidates: Candidates) -> np.ndarray:
    """Which candidates [Q, C] are of their query's class: the truth of a task."""
    found: np.ndarray = (queries.targets[:, None] == train.targets[torch.from_numpy(candidates.indices)]).numpy()
    return found
