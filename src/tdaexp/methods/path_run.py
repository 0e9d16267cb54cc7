"""Decompositions over a trajectory: by parts of the updates forwards in time, by training example backwards."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.methods.path_blocks import Arrays, add, get_state, put_state, run_steps
from tdaexp.methods.path_job import PathJob, kept_outputs
from tdaexp.methods.replay import Parts
from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.pathkernel.sweep import Sweep

NUMBERS: dict[str, tuple[int, ...]] = {"change_norm": (), "residual_norm": (), "nodes": ()}


def parts_of(job: PathJob) -> Parts:
    """What the job's updates are made of."""
    losses = example_losses(job.study.module)
    return Parts(job.study.trajectory, job.layout, job.partition, losses, job.examples)


def forward_shapes(job: PathJob, parts: Parts, width: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parts' values: of one step where steps are kept, else of the sums; `width` is (Q, O)."""
    tail = tuple(n for n, axis in zip(width, ("query", "output"), strict=True) if axis in job.keep)
    components = len(job.layout.components)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, count in parts.sizes.items():
        if name == "replay":
            continue
        shapes[name] = (count, components, *tail)
        if "step" in job.keep:
            shapes[f"importance_{name}"] = (count, components)
    return shapes


def forward_run(job: PathJob, store: Path) -> Arrays:
    """Parts of the updates, in the order of time.

    Returns each part [S?, P, K, Q?, O?], P its directions and K = 1 unless components are kept, and with steps
    `importance_PART` [S, P, K], its sum of absolute values over queries and outputs; `residual`, `change` and, with a
    partition, `replay` [Q, O]; `residual_norm`, `change_norm`, `nodes` [S].
    """
    layout, parts, counted = job.layout, parts_of(job), set(job.counted)
    decomposer = Decomposer(job.function, layout, job.queries, job.quadrature, mode=job.mode)
    before: list[Tensor | None] = [None]

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        parts.restore(get_state(sums))
        step = job.replay(number)
        directions = parts.split(step)  # also where it does not count: the averages go on
        put_state(sums, parts.state())
        if number not in counted:
            before[0] = None
            return {}
        start = decomposer.value(step.start) if before[0] is None else before[0]
        found = decomposer.step(step, directions, start)
        before[0] = found.after if parts.every else None
        row = _row(sums, found.after - start, found.residual, found.nodes)
        for (name, count), values in zip(parts.sizes.items(), _split(found.values, parts), strict=True):
            if name == "replay":
                add(sums, name, values.double().sum((0, 1)))
                continue
            kept = torch.stack([kept_outputs(values[place].double(), job.keep) for place in range(count)])
            if "step" in job.keep:
                row |= {name: kept, f"importance_{name}": values.double().abs().sum((-1, -2))}
            else:
                add(sums, name, kept)
        return row

    first, last = min(job.counted), max(job.counted)
    begin = 0 if parts.rule.coupled or job.partition is not None else first
    order = [k for k in job.study.trajectory.steps if (begin <= k <= last if parts.every else k in counted)]
    shapes = dict(NUMBERS)
    if "step" in job.keep:
        shapes |= forward_shapes(job, parts, tuple(decomposer.value(job.replay(order[0]).start).shape))  # type: ignore[arg-type]
    return run_steps(store, order, job.counted, shapes, one, "decomposition")


def _split(values: Tensor, parts: Parts) -> list[Tensor]:
    return list(values.split(list(parts.sizes.values())))


def sweep_run(job: PathJob, store: Path) -> Arrays:
    """Single training examples, backwards in time, queries in groups.

    Returns `kernel` [K, N, Q, O] of the single examples, `regularisation`, `whole` [K, Q, O], where Q = 1 and O = 1
    for axes that are summed; `residual`, `change` [Q, O] of all queries and outputs; `residual_norm`, `change_norm`,
    `nodes` [S].
    """
    seen = _completeness(job, store / "complete")
    nodes = {step: int(count) for step, count in zip(job.counted, seen["nodes"], strict=True)}
    groups = job.groups(seen["change"].shape[1])
    found = [
        _sweep_group(group, nodes, store / f"group-{number}", f"group {number + 1} of {len(groups)}")
        for number, group in enumerate(groups)
    ]
    return {name: np.concatenate([one[name] for one in found], -2) for name in found[0]} | seen


def _completeness(job: PathJob, store: Path) -> Arrays:
    """How many nodes the steps get, and what they leave of every query's and output's change."""
    names = tuple(job.layout.names)
    layout = Layout.of(dict(job.study.module.named_parameters()), {"all": names})
    decomposer = Decomposer(job.function, layout, job.queries, job.quadrature, mode=job.mode)

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        step = job.replay(number)
        before = decomposer.value(step.start)
        found = decomposer.step(step, {"update": layout.flat(step.end) - layout.flat(step.start)}, before)
        return _row(sums, found.after - before, found.residual, found.nodes)

    return run_steps(store, job.counted, job.counted, dict(NUMBERS), one, "completeness")


def _sweep_group(job: PathJob, nodes: dict[int, int], store: Path, title: str) -> Arrays:
    parts, count = parts_of(job), len(job.study.train) if job.single is None else job.single
    sweep = Sweep(
        job.summed, example_losses(job.study.module), job.layout, parts.rule, job.queries, job.quadrature,
        components="component" in job.keep, sum_queries="query" not in job.keep,
    )  # fmt: skip

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        sweep.carry = get_state(sums).get("carry") if parts.every else None  # nothing to carry over steps between
        step = _with_first(job.replay(number), count)
        found = sweep.step(step, job.examples(step.ids), number in nodes, nodes.get(number))
        if parts.every and sweep.carry is not None:
            put_state(sums, {"carry": sweep.carry})
        if "kernel" not in sums:
            sums["kernel"] = torch.zeros((len(found.train), count, *found.train.shape[2:]), dtype=torch.float64)
        sums["kernel"].index_add_(1, step.ids, found.train.double())
        add(sums, "regularisation", found.regularisation.double())
        if number in nodes:
            add(sums, "whole", found.whole.double())
        return {"examples": torch.tensor(float(len(step.ids)), dtype=torch.float64)}

    first, last = min(nodes), max(nodes)
    reach = _reach(parts.rule.coefficients(last).decay, job.study.dtype) if parts.every else 0
    steps = [k for k in job.study.trajectory.steps if first - reach <= k <= last and (parts.every or k in nodes)]
    found = run_steps(store, steps[::-1], [], {"examples": ()}, one, f"sweep, {title}")
    return {name: found[name] for name in ("kernel", "regularisation", "whole")}


def _with_first(step: Step, count: int) -> Step:
    """The step with those of its batch that are among the first `count` training examples."""
    mine = step.ids < count
    if not mine.any():  # one that counts nothing stands for an empty batch
        return dataclasses.replace(step, ids=step.ids.new_zeros(1), weights=step.weights.new_zeros(1))
    return dataclasses.replace(step, ids=step.ids[mine], weights=step.weights[mine])


def _reach(decay: float, dtype: torch.dtype) -> int:
    """Updates after which a gradient's weight in the running average is below the rounding of the largest one."""
    return math.ceil(math.log(torch.finfo(dtype).eps) / math.log(decay)) if decay else 0


def _row(sums: dict[str, Tensor], change: Tensor, residual: Tensor, nodes: int) -> dict[str, Tensor]:
    """Add to the sums what tells how complete the decomposition is; returns the step's own numbers."""
    add(sums, "change", change.double())
    add(sums, "residual", residual.double())
    norms = {"change_norm": change.double().norm(), "residual_norm": residual.double().norm()}
    return norms | {"nodes": torch.tensor(float(nodes), dtype=torch.float64)}
