"""A classification task by its sizes, and what passes over its examples take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.building.parts import alike, chosen_candidates
from tdaexp.data.best import Best
from tdaexp.data.tensors import TensorExamples
from tdaexp.models.components import ComponentMap
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.planning.rehearsed import Pass, RehearsedHistory, pass_of, unheard, without_numbers
from tdaexp.problem import Compute, Problem, Wanted
from tdaexp.runtime.fake_device import DEVICE
from tdaexp.runtime.rehearsal import Rehearsal, aside
from tdaexp.runtime.rehearsed_store import STORE
from tdaexp.training.recorder import plan as recording
from tdaexp.training.settings import FitSettings
from tdaexp.training.trajectory import Layout

MANY = 9  # examples of a batch that tells what one takes


@dataclass(frozen=True, eq=False)
class TaskWork:
    """A training by its sizes: `examples` are the training set, `queries` a count.

    `selector` chooses their candidates. `watched`: of how many examples of each part the loss is looked at on the way,
    None = all.
    """

    module: nn.Module
    rehearsal: Rehearsal
    components: ComponentMap
    examples: TensorExamples
    queries: int
    classes: int
    fit: FitSettings
    selector: Any = None
    tokens_per_batch: int = 4096
    cache_gb: float = 2.0
    watched: int | None = None

    @property
    def train(self) -> int:
        """Number of training examples."""
        return len(self.examples)

    @property
    def example(self) -> Tensor:
        """One input [1, ...]."""
        return self.examples.inputs[:1]

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return min(self.fit.batch_size, self.train)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return int(self.components.sizes.sum())

    @property
    def pass_flop(self) -> float:
        """FLOP of a training pass over all examples and queries."""
        return self.training.flop * (self.train + self.queries)

    @property
    def weights(self) -> float:
        """Bytes of the parameters."""
        return 4.0 * self.size

    @property
    def inputs(self) -> float:
        """Bytes of all examples."""
        return float(self.example.nbytes * (self.train + self.queries))

    @property
    def summary(self) -> str:
        """One line about the sizes."""
        return f"{self.size:,} parameters, {self.train:,} training examples, {self.queries:,} queries"

    @cached_property
    def layout(self) -> Layout | None:
        """The trajectory that the training leaves; None where it is not recorded."""
        if not self.fit.record:
            return None
        named = dict(self.module.named_parameters())
        return recording(named, self.fit, examples=self.train, batch=self.batch, identity="")

    @property
    def trajectory_bytes(self) -> float:
        """Size of the recording on disk: uncompressed files of whole blocks, the last one padded."""
        if self.layout is None:
            return 0.0
        rows = len(self.layout.blocks) * self.layout.rows
        return rows * (4.0 * self.size * len(self.layout.states()) + 12.0 * self.batch) + STORE

    @cached_property
    def model(self) -> nn.Module:
        """The network on the rehearsal's device."""
        return without_numbers(self.module, self.rehearsal)

    @cached_property
    def forward(self) -> Pass:
        """A forward pass over one example; what a pass makes of the weights alone is left out of the bytes."""

        def run(rows: int) -> Pass:
            with torch.no_grad():
                return pass_of(self.rehearsal, lambda: self.model(self._rows(rows)))

        one, many = run(1), run(MANY)
        return Pass(one.flop, (many.bytes - one.bytes) / (MANY - 1))

    @cached_property
    def training(self) -> Pass:
        """A forward and a backward pass for one example, with gradients of all parameters, which are not counted."""

        def run() -> None:
            with torch.enable_grad():
                self.model.requires_grad_(True)
                torch.autograd.grad(self.model(self._rows(MANY)).sum(), list(self.model.parameters()))
                self.model.requires_grad_(False)

        many = pass_of(self.rehearsal, run)
        return Pass(many.flop / MANY, max(0.0, many.bytes - self.weights) / MANY)

    def _rows(self, count: int) -> Tensor:
        return torch.ones(count, *self.example.shape[1:], dtype=self.example.dtype, device=DEVICE)

    def problem(self, query_set: str, seed: int) -> Problem:
        """The problem of these sizes."""
        objective, train, model = Classes(), self.examples, self.model
        self.rehearsal.watch(model)
        batch = objective.batch(train, range(min(2, len(train)))).to(DEVICE)
        with unheard():
            candidates = chosen_candidates(self.selector, self.queries, len(train))
        found = self.selector if isinstance(self.selector, Best) else None
        if found is not None:
            candidates = alike(np.arange(found.size(range(self.train))), self.queries)
        with aside():
            parts = discovered(model, lambda: objective.outputs(model, batch), len(batch.ids))
        queries = train.select(np.arange(self.queries) % len(train))
        return Problem(
            model=model,
            identity="model",
            map=parts,
            objective=objective,
            train=train,
            queries=TensorExamples([f"q{k}" for k in range(self.queries)], queries.inputs, queries.targets),
            query_set=[query_set] * self.queries,
            candidates=candidates,
            truth=np.ones(candidates.indices.shape, dtype=bool),
            compute=Compute(DEVICE, torch.float32, self.tokens_per_batch, self.cache_gb),
            cache=Path(),
            seed=seed,
            history=RehearsedHistory(model, self.fit.steps if self.fit.record else 1),
            wanted=None if found is None else Wanted(found, [np.zeros(0, dtype=np.int64)] * self.queries),
        )
