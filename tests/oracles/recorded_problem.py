"""The problem of a recorded training, with all pairs: what tests of path methods run on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorCorpus
from tdaexp.models.components import ComponentMap
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Compute, Problem
from tdaexp.training.history import RecordedSteps
from tdaexp.training.trajectory import Trajectory

CPU = torch.device("cpu")


def recorded_problem(
    module: nn.Module,
    corpus: TensorCorpus,
    trajectory: Trajectory,
    cache: Path,
    *,
    components: ComponentMap | None = None,
    dtype: torch.dtype = torch.float32,
    held_out: bool = False,
) -> Problem:
    """All pairs of the test and training examples; the test examples rank the steps where they are `held_out`."""
    train, queries = corpus.train, corpus.test
    everything = np.tile(np.arange(len(train)), (len(queries), 1))
    return Problem(
        model=module,
        identity="test",
        map=components or discovered(module),
        objective=Classes(),
        train=train,
        queries=queries,
        query_set=["test"] * len(queries),
        candidates=Candidates(everything, np.full(everything.shape, np.nan)),
        truth=(queries.targets[:, None] == train.targets).numpy(),
        compute=Compute(CPU, dtype, 64, 1.0),
        cache=cache,
        seed=0,
        history=RecordedSteps(module, trajectory, queries if held_out else None),
    )


def having_model(problem: Problem, module: nn.Module) -> Problem:
    """The problem of another network with the same parameters."""
    return replace(problem, model=module, map=discovered(module), history=replace(problem.history, model=module))
