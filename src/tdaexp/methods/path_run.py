"""Runs a decomposition over a trajectory forwards, in blocks of steps that do not depend on each other.

Each block is a pure function of the recorded steps, so that processes share them out and a killed run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.methods.replay import Parts, step_of
from tdaexp.methods.task_study import TaskStudy
from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.parameters import Function, Layout, Step
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.runtime.blockstore import BlockStore

STEPS_PER_BLOCK = 32
Arrays = dict[str, np.ndarray]
NUMBERS: dict[str, tuple[int, ...]] = {"change_norm": (), "residual_norm": (), "nodes": ()}


@dataclass(frozen=True)
class PathJob:
    """What to decompose: `function` of the study's queries, over the recorded steps in `counted`.

    `keep` holds the axes that are not summed, of step, component, train, query and output.
    """

    study: TaskStudy
    function: Function
    quadrature: Quadrature
    keep: frozenset[str]
    counted: list[int]
    mode: str

    @property
    def layout(self) -> Layout:
        """Parameters by component."""
        return Layout.of(dict(self.study.module.named_parameters()), self.study.components)

    @property
    def queries(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the queries."""
        inputs, targets = self.study.queries.inputs, self.study.queries.targets
        return inputs.to(self.study.dtype) if inputs.is_floating_point() else inputs, targets

    def examples(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of training examples."""
        inputs, targets = self.study.train.inputs[ids], self.study.train.targets[ids]
        return inputs.to(self.study.dtype) if inputs.is_floating_point() else inputs, targets

    def replay(self, number: int) -> Step:
        """One recorded update."""
        return step_of(self.study.trajectory, number, self.study.dtype)


def forward_run(job: PathJob, store: Path) -> Arrays:
    """Parts of the updates, in the order of time.

    Returns per step (where kept) or summed: each part [S?, K?, Q?, O?] and `importance_PART` [S?, K?], its sum of
    absolute values over queries and outputs; `residual`, `change` [Q, O]; `residual_norm`, `change_norm`, `nodes` [S].
    """
    walk = _Walk(job)
    rows, sums = walk.shapes()
    height = min(STEPS_PER_BLOCK, len(job.counted))
    blocks = [job.counted[k : k + height] for k in range(0, len(job.counted), height)]
    arrays = {name: ((len(blocks), height, *shape), "float64") for name, shape in rows.items()}
    arrays |= {f"sum.{name}": ((len(blocks), *shape), "float64") for name, shape in sums.items()}
    kept = BlockStore(store / "forward", arrays, [slice(k, k + 1) for k in range(len(blocks))])
    with kept.pending() as missing:
        for number in kept.each(missing, "decomposition, blocks of steps"):
            kept.write(number, walk.block(blocks[number], rows, height))
    found = kept.read()
    result = {name: found[name].reshape(-1, *shape)[: len(job.counted)] for name, shape in rows.items()}
    return result | {name: found[f"sum.{name}"].sum(0) for name in sums}


class _Walk:
    """Goes through recorded steps in order; what SGD's decay has in its buffer is caught up with where it jumps."""

    def __init__(self, job: PathJob) -> None:
        self.job, self.layout = job, job.layout
        self.parts = Parts(job.study.trajectory, self.layout)
        self.decomposer = Decomposer(job.function, self.layout, job.queries, job.quadrature, mode=job.mode)
        self.passed = 0  # recorded steps whose decay is in the buffer

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Shapes of what is kept of each step, and of what is summed over steps."""
        job, rows = self.job, dict(NUMBERS)
        whole = tuple(self.decomposer.value(job.replay(job.counted[0]).start).shape)
        sums: dict[str, tuple[int, ...]] = {"change": whole, "residual": whole}
        group = len(self.layout.components) if "component" in job.keep else 1
        tail = tuple(n for n, axis in zip(whole, ("query", "output"), strict=True) if axis in job.keep)
        for name in self.parts.names:
            if "step" in job.keep:
                rows |= {name: (group, *tail), f"importance_{name}": (group,)}
            else:
                sums[name] = (group, *whole)
        return rows, sums

    def block(self, steps: list[int], rows: dict[str, tuple[int, ...]], height: int) -> Arrays:
        """Rows [1, height, ...] of some steps, NaN behind their end, and sums [1, ...] over them."""
        sums: dict[str, Tensor] = {}
        self._catch_up(steps[0])
        found, before = [], None
        for place, number in enumerate(steps):
            if place and number != steps[place - 1] + 1:
                before = None
                self._catch_up(number)
            row, before = self._step(number, sums, before)
            found.append(row)
        empty = {name: np.full(shape, np.nan) for name, shape in rows.items()}
        values = [{name: row[name].numpy() for name in rows} for row in found] + [empty] * (height - len(found))
        whole = {name: np.stack([row[name] for row in values])[None] for name in rows}
        return whole | {f"sum.{name}": value.numpy()[None] for name, value in sums.items()}

    def _catch_up(self, number: int) -> None:
        """Take the decay of the steps before into the buffer, where there is one."""
        if not (self.parts.every and self.parts.rule.coupled):
            return
        if number < self.passed:
            self.parts, self.passed = Parts(self.job.study.trajectory, self.layout), 0
        for earlier in range(self.passed, number):
            self.parts.regularisation.advance(self.job.replay(earlier))
        self.passed = number

    def _step(
        self, number: int, sums: dict[str, Tensor], before: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """A step's row, and f after it where the next step begins there; adds to the sums."""
        job, step = self.job, self.job.replay(number)
        directions = self.parts.split(step)
        self.passed = number + 1
        start = self.decomposer.value(step.start) if before is None else before
        found = self.decomposer.step(step, directions, start)
        values = found.values.double() if "component" in job.keep else found.values.double().sum(1, keepdim=True)
        row = completeness(sums, found.after - start, found.residual, found.nodes)
        for name, value in zip(self.parts.names, values, strict=True):
            if "step" in job.keep:
                row |= {name: kept_outputs(value, job.keep), f"importance_{name}": value.abs().sum((-1, -2))}
            else:
                add(sums, name, value)
        return row, found.after if self.parts.every else None


def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to a sum, which may not have begun."""
    sums[name] = sums[name] + value if name in sums else value


def completeness(sums: dict[str, Tensor], change: Tensor, residual: Tensor, nodes: int) -> dict[str, Tensor]:
    """Add to the sums what tells how complete the decomposition is; returns the step's own numbers."""
    add(sums, "change", change.double())
    add(sums, "residual", residual.double())
    norms = {"change_norm": change.double().norm(), "residual_norm": residual.double().norm()}
    return norms | {"nodes": torch.tensor(float(nodes), dtype=torch.float64)}


def kept_outputs(values: Tensor, keep: frozenset[str]) -> Tensor:
    """Sum the last two axes, query and output, unless they are kept."""
    values = values if "output" in keep else values.sum(-1)
    return values if "query" in keep else values.sum(-2 if "output" in keep else -1)
