"""The study of a classification task: a recorded training, its examples and the queries to explain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdaexp.data.tensors import TensorExamples
from tdaexp.problem import identity_of
from tdaexp.runtime import cache
from tdaexp.runtime.code import Work
from tdaexp.training.trajectory import Trajectory

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TaskStudy:
    """A model (in eval mode), the examples that it was trained on, in the order of the trajectory's ids, and queries.

    `query_set` [Q] says which set each belongs to; `components`: name to parameter names; `cache` is the folder for
    what can be used again; `identity` is that of the trained weights; `held_out` examples may rank the steps. The
    module is on `device`, where steps are decomposed; examples and trajectory stay in main memory.
    """

    module: nn.Module
    components: dict[str, tuple[str, ...]]
    train: TensorExamples
    queries: TensorExamples
    query_set: list[str]
    trajectory: Trajectory
    cache: Path
    identity: str
    dtype: torch.dtype = torch.float32
    held_out: TensorExamples | None = None
    device: torch.device = CPU

    @property
    def fingerprint(self) -> str:
        """Identity of the trained weights, the training examples and the queries, as of a `Problem`."""
        return identity_of(self.identity, self.train, self.queries)

    def store(self, kind: str, *depends_on: Any, by: Work) -> Path:
        """Folder in the cache for what `by` computes, which depends on this study and on `depends_on`."""
        parts = [self.trajectory.settings.identity, self.train.fingerprint(), self.queries.fingerprint()]
        # Numbers differ between kinds of devices. The CPU's go without a name.
        place = [str(self.dtype), *([] if self.device.type == "cpu" else [self.device.type])]
        return cache.entry(self.cache, kind, *parts, self.components, *place, *depends_on, by=[by, type(self)])

    def batch(self, examples: TensorExamples) -> tuple[Tensor, Tensor]:
        """Inputs, in the study's dtype where they are real numbers, and targets, on its device."""
        inputs = examples.inputs
        real = inputs.is_floating_point()
        return inputs.to(self.device, self.dtype if real else inputs.dtype), examples.targets.to(self.device)
