"""Runs a decomposition by training examples: backwards over a trajectory, each step on what the later ones left.

Of several processes the first one does it alone; how complete the steps are is found before, in blocks that are shared
out.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.pathkernel.decompose import Decomposer, looked_at
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.pathkernel.reverse import example_gradients
from tdaexp.pathkernel.sweep import Sweep
from tdaexp.paths.blocks import Arrays, add, get_state, put_state, run_blocks, run_steps
from tdaexp.paths.decomposition import PathJob
from tdaexp.paths.entry_error import entry_norms
from tdaexp.paths.forward import NUMBERS, completeness, parts_of
from tdaexp.runtime import ranks

log = logging.getLogger(__name__)
EXAMPLES = 8  # of a step's batch, by whose own influences its nodes are steered


def sweep_run(job: PathJob, store: Path) -> Arrays:
    """Single training examples, backwards in time, queries in groups.

    Returns `kernel` [K, N, Q, O] of the single examples, `regularisation`, `whole` [K, Q, O], where Q = 1 and O = 1
    for axes that are summed; `entry_norm` and `error_norm` [groups, 1], of the examples' entries and what they are off
    by; `residual`, `change` [Q, O] of all queries and outputs; `residual_norm`, `change_norm`, `nodes` [S].
    """
    seen = _completeness(job, store / "complete")
    nodes = {step: int(count) for step, count in zip(job.counted, seen["nodes"], strict=True)}
    if ranks.current().world > 1:
        log.info("single training examples are decomposed by one process; the others wait")
    groups = job.groups(seen["change"].shape[1])
    found = [
        _sweep_group(group, nodes, store / f"group-{number}", f"group {number + 1} of {len(groups)}")
        for number, group in enumerate(groups)
    ]
    return {name: np.concatenate([one[name] for one in found], -2) for name in found[0]} | seen


def _completeness(job: PathJob, store: Path) -> Arrays:
    """How many nodes the steps get, and what they leave of every query's and output's change."""
    layout = Layout.of(dict(job.problem.model.named_parameters()), {"all": tuple(job.layout.names)})
    decomposer = Decomposer(job.function, layout, job.queries, job.quadrature, mode=job.mode)

    parts, losses = parts_of(job), example_losses(job.problem.model)

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        step = job.replay(number)
        before, count = decomposer.value(step.start), job.quadrature.nodes
        if job.quadrature.tolerance is not None:
            few = job.examples(step.ids[:EXAMPLES])
            directions = parts.rule.scale(step, layout) * example_gradients(losses, step.start, layout, few)
            count = decomposer.node_count(step, before, decomposer.value(step.end), directions)
        update = {"update": layout.flat(step.end) - layout.flat(step.start)}
        found = decomposer.step(step, update, before, count)
        return completeness(sums, found.after - before, found.residual, found.nodes)

    width = tuple(decomposer.value(job.replay(job.counted[0]).start).shape)
    sums = dict.fromkeys(("change", "residual"), width)
    return run_blocks(store, job.counted, NUMBERS, sums, lambda first: None, one, "completeness")


def _sweep_group(job: PathJob, nodes: dict[int, int], store: Path, title: str) -> Arrays:
    """What a sweep leaves of some queries, with the norms of entries and of what they are off by."""
    found = _swept(job, nodes, store, title)
    errors, entries = (torch.from_numpy(found[name]) for name in ("errors", "kernel"))
    checked = entry_norms(errors, entries, job, looked_at(len(job.problem.queries)))
    norms = {name: np.array([[float(value)]]) for name, value in checked.items()}
    return {name: found[name] for name in ("kernel", "regularisation", "whole")} | norms


def _swept(job: PathJob, nodes: dict[int, int], store: Path, title: str) -> Arrays:
    parts, count = parts_of(job), len(job.problem.train) if job.single is None else job.single
    sweep = Sweep(
        job.summed, example_losses(job.problem.model), job.layout, parts.rule, job.queries, job.quadrature,
        components="component" in job.keep, sum_queries="query" not in job.keep, check=True,
    )  # fmt: skip

    def one(number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        sweep.carry = get_state(sums).get("carry") if parts.every else None  # nothing to carry over steps between
        step = _with_first(job.replay(number), count)
        found = sweep.step(step, job.examples(step.ids), number in nodes, nodes.get(number))
        if parts.every and sweep.carry is not None:
            put_state(sums, {"carry": sweep.carry})
        for name, values in (("kernel", found.train), ("errors", found.errors)):
            if name not in sums:
                sums[name] = values.new_zeros(len(values), count, *values.shape[2:], dtype=torch.float64)
            sums[name].index_add_(1, step.ids.to(values.device), values.double())
        add(sums, "regularisation", found.regularisation.double())
        if number in nodes:
            add(sums, "whole", found.whole.double())
        return {"examples": torch.tensor(float(len(step.ids)), dtype=torch.float64, device="cpu")}

    first, last = min(nodes), max(nodes)
    reach = _reach(parts.rule.coefficients(last).decay, job.problem.compute.dtype) if parts.every else 0
    steps = [k for k in job.trajectory.steps if first - reach <= k <= last and (parts.every or k in nodes)]
    return run_steps(store, steps[::-1], {"examples": ()}, one, f"sweep, {title}", job.problem.compute.device)


def _with_first(step: Step, count: int) -> Step:
    """The step with those of its batch that are among the first `count` training examples."""
    mine = step.ids < count
    if not mine.any():  # one that counts nothing stands for an empty batch
        return dataclasses.replace(step, ids=step.ids.new_zeros(1), weights=step.weights.new_zeros(1))
    return dataclasses.replace(step, ids=step.ids[mine], weights=step.weights[mine])


def _reach(decay: float, dtype: torch.dtype) -> int:
    """Updates after which a gradient's weight in the running average is below the rounding of the largest one."""
    return math.ceil(math.log(torch.finfo(dtype).eps) / math.log(decay)) if decay else 0
