"""Runs a decomposition over a trajectory, block by block of steps, so that a killed run goes on where it stopped.

Beside the rows per step in a block store lies `sums.npz`: what is summed over steps so far, and the state of the
recursions. It is replaced as a whole after each block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.methods.replay import Parts, step_of
from tdaexp.methods.task_study import TaskStudy
from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.parameters import Function, Layout, Step
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.sweep import Sweep
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)
STEPS_PER_BLOCK = 32
Arrays = dict[str, np.ndarray]
OneStep = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
"""(step, sums so far, which it changes) -> the step's own row, empty for a step that does not count."""
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
    layout, parts = job.layout, Parts(job.study.trajectory, job.layout)
    decomposer = Decomposer(job.function, layout, job.queries, job.quadrature, mode=job.mode)
    before: list[Tensor | None] = [None]

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        if "average" in sums:
            parts.average = sums["average"]
        step = job.replay(number)
        directions = parts.split(step)  # also where it does not count: the decay's average goes on
        if parts.average is not None:
            sums["average"] = parts.average
        if number not in counted:
            before[0] = None
            return {}
        start = decomposer.value(step.start) if before[0] is None else before[0]
        found = decomposer.step(step, directions, start)
        before[0] = found.after if parts.every else None
        values = found.values.double() if "component" in job.keep else found.values.double().sum(1, keepdim=True)
        row = _row(sums, found.after - start, found.residual, found.nodes)
        for name, value in zip(parts.names, values, strict=True):
            if "step" in job.keep:
                row |= {name: kept_outputs(value, job.keep), f"importance_{name}": value.abs().sum((-1, -2))}
            else:
                _add(sums, name, value)
        return row

    counted = set(job.counted)
    last = max(job.counted)
    order = [number for number in job.study.trajectory.steps if number <= last and (parts.every or number in counted)]
    shapes = dict(NUMBERS)
    if "step" in job.keep:
        group = len(layout.components) if "component" in job.keep else 1
        width = decomposer.value(job.replay(order[0]).start).shape
        tail = tuple(n for n, axis in zip(width, ("query", "output"), strict=True) if axis in job.keep)
        for name in parts.names:
            shapes |= {name: (group, *tail), f"importance_{name}": (group,)}
    return _run(job, store, order, shapes, one)


def sweep_run(job: PathJob, store: Path) -> Arrays:
    """Single training examples, backwards in time.

    Returns `kernel` [K, N, Q, O], `regularisation`, `whole` [K, Q, O]; `residual`, `change` [Q, O]; `residual_norm`,
    `change_norm`, `nodes` [S].
    """
    parts = Parts(job.study.trajectory, job.layout)
    sweep = Sweep(
        job.function, example_losses(job.study.module), job.layout, parts.rule, job.queries, job.quadrature,
        components="component" in job.keep,
    )  # fmt: skip
    counted = set(job.counted)

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        sweep.carry = sums.get("carry") if parts.every else None  # without the steps between there is nothing to carry
        step = job.replay(number)
        found = sweep.step(step, job.examples(step.ids), number in counted)
        if parts.every and sweep.carry is not None:
            sums["carry"] = sweep.carry
        if "kernel" not in sums:
            shape = (len(found.train), len(job.study.train), *found.residual.shape)
            sums["kernel"] = torch.zeros(shape, dtype=torch.float64)
        sums["kernel"].index_add_(1, step.ids, found.train.double())
        _add(sums, "regularisation", found.regularisation.double())
        if number not in counted:
            return {}
        change = found.whole.sum(0) + found.residual
        _add(sums, "whole", found.whole.double())
        return _row(sums, change, found.residual, found.nodes)

    last = max(job.counted)
    order = [number for number in job.study.trajectory.steps if number <= last and (parts.every or number in counted)]
    return _run(job, store, order[::-1], dict(NUMBERS), one)


def _run(job: PathJob, store: Path, order: list[int], shapes: dict[str, tuple[int, ...]], one: OneStep) -> Arrays:
    """Take the steps in `order`; returns the rows of counted steps in the order of time, and the sums."""
    blocks = [slice(k, min(k + STEPS_PER_BLOCK, len(order))) for k in range(0, len(order), STEPS_PER_BLOCK)]
    rows = BlockStore(store / "rows", {n: ((len(order), *shape), "float64") for n, shape in shapes.items()}, blocks)
    with rows.pending() as missing:
        sums, done = _load(store / "sums.npz")
        if any(block < done for block in missing):
            log.warning("%s: damaged; the decomposition starts again", store)
            sums, done = {}, 0
        for number in track(range(done, len(blocks)), "decomposition, blocks of steps", len(blocks), done):
            found = [one(order[place], sums) for place in range(blocks[number].start, blocks[number].stop)]
            values = {
                name: np.stack([row[name].numpy() if row else np.full(shape, np.nan) for row in found])
                for name, shape in shapes.items()
            }
            rows.write(number, values)
            _save(store / "sums.npz", sums, number + 1)
        kept = np.argsort(order)[np.isin(np.sort(order), job.counted)]
        summed = {name: value.numpy() for name, value in sums.items() if name not in ("average", "carry")}
        return {name: value[kept] for name, value in rows.read().items()} | summed


def _load(path: Path) -> tuple[dict[str, Tensor], int]:
    """The sums and how many blocks they cover."""
    if not path.exists():
        return {}, 0
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name != "done"}, int(file["done"])


def _save(path: Path, sums: dict[str, Tensor], done: int) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in sums.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, done=np.int64(done), **arrays)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _row(sums: dict[str, Tensor], change: Tensor, residual: Tensor, nodes: int) -> dict[str, Tensor]:
    """Add to the sums what tells how complete the decomposition is; returns the step's own numbers."""
    _add(sums, "change", change.double())
    _add(sums, "residual", residual.double())
    norms = {"change_norm": change.double().norm(), "residual_norm": residual.double().norm()}
    return norms | {"nodes": torch.tensor(float(nodes), dtype=torch.float64)}


def kept_outputs(values: Tensor, keep: frozenset[str]) -> Tensor:
    """Sum the last two axes, query and output, unless they are kept."""
    values = values if "output" in keep else values.sum(-1)
    return values if "query" in keep else values.sum(-2 if "output" in keep else -1)
