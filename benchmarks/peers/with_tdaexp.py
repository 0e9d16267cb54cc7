"""This program on a piece of work: any method of its own, on the problem that the work was exported from.

Leaves OUT/influence.zarr beside the scores, as a run does, for `evaluate.py runs=[OUT] scores=FILE`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from export import configured, problem_of
from torch import Tensor
from work import Work, main

from tdaexp import influence
from tdaexp.app.stages.answering import Answer
from tdaexp.objectives.base import Inputs, Objective
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem

ANSWERED: list[xr.Dataset] = []


class DataLabels(Objective[Any]):
    """Curvature on the examples' own labels instead of drawn ones: the empirical Fisher, which no method here has."""

    def sampled(self, logits: Tensor, inputs: Inputs, seed: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses on the targets."""
        return super().sampled(logits, inputs, seed, torch.where(inputs.weights > 0, inputs.targets, -1))


class DataClasses(DataLabels, Classes):
    """Of classes."""


class DataTokens(DataLabels, NextToken):
    """Of texts."""


def attribute(work: Work, options: list[str], labels: str = "drawn") -> Callable[[], np.ndarray]:
    """A method by its `options` on the command line; `labels` are "drawn" from the model, or the "data"'s own."""
    method, problem = _opened(work, options, labels)

    def job() -> np.ndarray:
        with tempfile.TemporaryDirectory() as cache:  # nothing is there from before
            store = method.attribute(replace(problem, cache=Path(cache))).load()
        store.attrs["study"] = problem.study
        Answer(store, {}).describe(method, {})
        ANSWERED.append(store)
        found = influence.dense(store)
        assert found["query"].values.tolist() == work.queries.ids
        return found.sel(train=work.train.ids).values

    return job


def itself(work: Work, options: list[str]) -> Callable[[], np.ndarray]:
    """Self-influence of the training examples."""
    method, problem = _opened(work, options, "drawn")

    def job() -> np.ndarray:
        with tempfile.TemporaryDirectory() as cache:
            found = method.self_influence(replace(problem, cache=Path(cache)))["self_influence"].load()
        assert found["train"].values.tolist() == work.train.ids
        return found.sum("component").values

    return job


def _opened(work: Work, options: list[str], labels: str) -> tuple[Any, Problem]:
    """The configured method and its problem."""
    config = configured([*work.about["options"], *options], work.folder / "cache")
    problem = problem_of(config)
    if labels == "data":
        texts = isinstance(problem.objective, NextToken)
        problem = replace(problem, objective=DataTokens(problem.objective.pad_id) if texts else DataClasses())
    return config.method, problem


def run(arguments: list[str] | None = None) -> None:
    """The command line (`work.main`)."""
    place = main("tdaexp", {"attribute": attribute, "itself": itself}, arguments)
    for answer in ANSWERED:
        place.mkdir(exist_ok=True)
        influence.save(answer, place / "influence.zarr")


if __name__ == "__main__":
    run()
