"""Costs of decompositions over training: recorded steps of a task, or checkpoints of a language model."""

from __future__ import annotations

import math

import numpy as np

from tdaexp.data.sizes import Sizes
from tdaexp.gradients.footprint import training_bytes
from tdaexp.methods.task_workload import TaskWorkload
from tdaexp.methods.workload import KEPT, RUNTIME_BYTES, STORE, Workload
from tdaexp.pathkernel.decompose import MEMORY
from tdaexp.runtime.costs import StageCost

STATES = 5  # of a simulated update, in float32: weights before and after, two moments, the batch's gradient


def path_costs(work: TaskWorkload, keep: frozenset[str], outputs: int, steps: int, nodes: int) -> list[StageCost]:
    """Decomposition of `steps` recorded updates (`methods.path_run`), with `nodes` each, and the answer."""
    parts, groups = (2 if work.fit.record == 1 else 3), len(work.components.names)
    kept = {"query": work.queries, "output": outputs, "component": groups, "step": steps, "train": work.train}
    table = 8.0 * math.prod(size for axis, size in kept.items() if axis in keep)
    ends = 8.0 * work.queries * outputs  # each of start, change, explained and residual
    flop, bytes_ = work.forward
    if "train" in keep:
        jacobian = 4.0 * work.queries * outputs * work.size
        passes = steps * (nodes * (1 + 2 * outputs) * work.queries + 3 * work.batch)
        arithmetic = passes * flop + steps * 2.0 * work.batch * work.queries * outputs * work.size
        full = 8.0 * groups ** ("component" in keep) * work.train * work.queries * outputs
        memory = 4 * jacobian + 2 * full + MEMORY
        disk, answer = full + jacobian, table
    else:
        each = min(groups * (1 + 2 * parts), 1 + 2 * outputs)  # forward mode or reverse mode, whichever is fewer
        passes = steps * work.queries * (nodes * each + 1)
        arithmetic = passes * flop
        forward_mode = each == groups * (1 + 2 * parts)
        held = work.queries * (bytes_ * (1 + 2 * parts) if forward_mode else work.recorded_bytes)
        step = "step" in keep
        rows = 8.0 * work.queries * outputs * groups ** ("component" in keep) * parts
        stored = table * parts if step else rows
        memory = held + (0 if forward_mode else 3.0 * MEMORY) + 3 * stored
        disk, answer = KEPT * stored + 4.0 * work.size, table * parts
    blocks = 2 * work.layout.rows * 4.0 * work.size * len(work.layout.states()) if work.layout else 0.0
    inputs = work.example.nbytes * (work.train + work.queries)
    return [
        StageCost(
            "decomposition",
            forward=passes,
            backward=0.0,
            flop=arithmetic,
            disk=disk + 2 * ends + 3 * STORE,
            device=8.0 * work.size + memory,
            host=blocks + inputs + RUNTIME_BYTES,
            note=f"{steps} steps, {nodes} nodes each; forward passes count derivatives as passes of the same size",
        ),
        StageCost("answer", disk=KEPT * (answer + 4 * ends) + 2 * STORE, host=3 * answer + inputs + RUNTIME_BYTES),
    ]


def checkpoint_costs(work: Workload, nodes: int) -> list[StageCost]:
    """One simulated update at each checkpoint: the gradient of its batch, then the queries' gradient at every node.

    The batch goes through a sequence at a time; weights, moments and gradient are float32 on the device.
    """
    count, sequences, tokens = (work.simulated[key] for key in ("checkpoints", "sequences", "tokens"))
    batch = Sizes(np.full(sequences, tokens), np.full(sequences, tokens - 1))
    update = StageCost(
        "simulated updates",
        forward=count * sequences,
        backward=count * sequences,
        flop=count * work.pass_flop(batch),
        disk=float(count) * work.weights,
        device=work.weights + STATES * 4.0 * work.every.total + training_bytes(work.model, 1, tokens, work.mode),
        host=work.weights + RUNTIME_BYTES,
        note=f"{count} checkpoints, {sequences} sequences of {tokens} tokens at each (model.simulated); disk is "
        "that of the checkpoints",
    )
    runs = count * nodes * len(work.queries)
    size = 8.0 * count * len(work.every) * len(work.queries)
    path = StageCost(
        "decomposition",
        forward=runs,
        backward=runs,
        flop=count * nodes * work.pass_flop(work.queries),
        disk=KEPT * 2 * size,
        device=work.weights + STATES * 4.0 * work.every.total + work.pass_bytes(work.every, work.queries),
        host=2 * size + RUNTIME_BYTES,
        note=f"{nodes} nodes at each checkpoint (method.quadrature.nodes)",
    )
    return [update, path]
