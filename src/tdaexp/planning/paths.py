"""Costs of decompositions over training: recorded steps of a task, or checkpoints of a language model."""

from __future__ import annotations

import math

from tdaexp.methods.explaind import ACTIVATION, Explaind
from tdaexp.pathkernel.decompose import INPUTS, MEMORY, looked_at
from tdaexp.pathkernel.quadrature import AUTO, Quadrature, finer
from tdaexp.paths.blocks import STEPS_PER_BLOCK
from tdaexp.paths.checkpoint_walk import ONE_IN
from tdaexp.paths.decomposition import SWEEP_MEMORY
from tdaexp.paths.partition import Partition
from tdaexp.paths.steps import planned_steps
from tdaexp.planning.rehearsed import RUNTIME_BYTES
from tdaexp.planning.task_work import TaskWork
from tdaexp.planning.text_work import TextWork
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.rehearsed_store import KEPT, STORE

ON_HOST = 4  # copies of a model's weights in main memory: before and after the update, the gradient, one on the way


def of_recording(method: Explaind, work: TaskWork) -> list[StageCost]:
    """Decomposition of recorded updates (`paths.forward`, `paths.reverse`), and the answer."""
    keep, nodes, fine = frozenset(method.keep), method.quadrature.nodes, _finer(method.quadrature)
    steps = planned_steps(work.layout, method.steps, method.subsample)
    plural = method.output in ("logits", "log_probabilities") or method.output.startswith(ACTIVATION)
    outputs = work.classes if plural else 1
    if "train" in keep:
        single = work.train if method.single is None else method.single
        found = _by_example(work, keep, outputs, steps, nodes, fine, single)
    else:
        parts = 0 if method.partition is None else len(Partition.of(method.partition, work.examples))
        found = _by_update(work, keep, outputs, steps, nodes, fine, parts, method.mode)
    passes, arithmetic, memory, disk, answer = found
    ends = 8.0 * work.queries * outputs  # each of start, change, explained and residual
    blocks = 2 * work.layout.rows * 4.0 * work.size * len(work.layout.states()) if work.layout else 0.0
    return [
        StageCost(
            "decomposition",
            forward=passes,
            flop=arithmetic,
            disk=disk + math.ceil(steps / STEPS_PER_BLOCK) * 2 * ends + 3 * STORE,
            device=8.0 * work.size + memory,
            host=blocks + work.inputs + RUNTIME_BYTES,
            note=f"{steps} steps, {nodes} nodes each; forward passes count derivatives as passes of the same size",
        ),
        StageCost("answer", disk=KEPT * (answer + 4 * ends) + 2 * STORE, host=3 * answer + work.inputs + RUNTIME_BYTES),
    ]


Numbers = tuple[float, float, float, float, float]
"""Forward passes, FLOP, and bytes on the device, in the cache and in the answer."""


def _finer(quadrature: Quadrature) -> int:
    """Nodes by which a few queries' entries are checked; of the rule `auto` as of gauss, which needs more."""
    rule = "gauss" if quadrature.rule == AUTO else quadrature.rule
    return finer(rule, quadrature.nodes).nodes


def _by_update(
    work: TaskWork, keep: frozenset[str], outputs: int, steps: int, nodes: int, fine: int, parts: int, mode: str
) -> Numbers:
    """Forwards in time: the queries' derivatives along the directions that an update is split into."""
    told = (parts or 1) + (1 if work.fit.record == 1 else 2)
    directions = told + (parts > 0)  # what the replayed gradients differ by
    components = len(work.components.names) if "component" in keep else 1
    forward, reverse = components * (1 + 2 * directions), 1 + 2 * outputs
    by_direction = mode == "forward" or (mode == "auto" and forward <= reverse)
    passes = steps * work.queries * (nodes * (forward if by_direction else reverse) + 1.0)
    own = components * (1 + 2 * (parts or 1)) if by_direction else reverse  # the kernel's directions alone
    passes += steps * len(looked_at(work.queries)) * (fine * own + 1.0)
    passes += 3.0 * steps * work.batch * (parts > 0)
    memory = min(work.queries, max(1, INPUTS // work.example.numel())) * work.forward.bytes
    if by_direction:
        memory *= 1 + 2 * directions
    else:  # as many queries at a time as their gradients fit, which are there twice: by parameter, and flat
        row = 4.0 * outputs * work.size
        memory = max(memory, min(work.queries, max(1, MEMORY // row)) * (work.training.bytes + 2 * row))
    tail = math.prod(n for n, axis in ((work.queries, "query"), (outputs, "output")) if axis in keep)
    step = 8.0 * told * components * tail
    stored = steps * (step + 8.0 * told * components) if "step" in keep else step
    repeated = 1 if "step" in keep else math.ceil(steps / STEPS_PER_BLOCK)  # each block has its sum
    return passes, passes * work.forward.flop, memory + 3 * stored, KEPT * repeated * stored + 4.0 * work.size, stored


def _by_example(
    work: TaskWork, keep: frozenset[str], outputs: int, steps: int, nodes: int, fine: int, single: int
) -> Numbers:
    """Backwards in time: the queries' Jacobian against each step's gradients, a group of queries at a time."""
    rows, columns = (n if axis in keep else 1 for n, axis in ((work.queries, "query"), (outputs, "output")))
    components = len(work.components.names) if "component" in keep else 1
    together = min(rows, max(1, SWEEP_MEMORY // (8 * columns * work.size)))
    groups = math.ceil(rows / together)
    first = steps * work.queries * (2 + 3.0 * nodes)  # how complete the steps are
    few = groups * len(looked_at(math.ceil(work.queries / groups)))  # whose entries are checked
    asked = nodes * work.queries + (fine if "query" in keep else fine + nodes) * few
    passes = first + steps * ((1 + 2.0 * columns) * asked + 3.0 * groups * work.batch)
    arithmetic = passes * work.forward.flop + steps * 2.0 * work.batch * (rows + few) * columns * work.size
    carry, values = 4.0 * (rows + few) * columns * work.size, 8.0 * components * rows * columns * (single + 2)
    checked = 8.0 * components * few * columns * single
    memory = (4 * carry + 2 * (values + checked)) * together / rows + MEMORY
    return passes, arithmetic, memory, (values + checked + carry) * (1 + 1 / groups), values


def of_checkpoints(method: Explaind, work: TextWork) -> list[StageCost]:
    """One simulated update at each checkpoint: the gradient of its batch, then the queries' gradient at every node.

    Weights, their gradient and one piece's activations are on the device, in pieces of at most `tokens_per_batch`. With
    the axis train the batch's gradients by group are taken again (for one group of queries).
    """
    nodes, count, again = method.quadrature.nodes, work.checkpoints, 2 if "train" in method.keep else 1
    share, batch = count * work.batch / len(work.train), count * work.batch * again
    pieces = max(1, work.tokens_per_batch // int(max(work.train.tokens.max(), work.queries.tokens.max())))
    learnt, asked = work.training(work.train, pieces), work.training(work.queries, pieces)
    weights = 4.0 * work.every.total
    device, host = weights + max(learnt.bytes, asked.bytes), ON_HOST * weights + RUNTIME_BYTES
    update = StageCost(
        "simulated updates",
        forward=batch,
        backward=batch,
        flop=share * again * learnt.flop,
        disk=count * weights,
        device=device,
        host=host,
        note=f"{count} checkpoints, a batch of {work.batch:,} examples at each (trainer.fit.batch_size); disk is that "
        "of the checkpoints, without their optimiser's state",
    )
    queries = float(count * len(work.queries))
    looked, fine = float(max(1, count // ONE_IN) * len(work.queries)), _finer(method.quadrature)
    size = 8.0 * count * len(work.every) * 6  # three parts and their absolute values, of each group of queries
    path = StageCost(
        "decomposition",
        forward=(nodes + 2) * queries + (fine + 2) * looked,
        backward=nodes * queries + fine * looked,
        flop=((nodes + 2 / 3) * count + (fine + 2 / 3) * max(1, count // ONE_IN)) * asked.flop,  # forward: a third
        disk=KEPT * size + 2 * STORE,
        device=device,
        host=host,
        note=f"{nodes} nodes at each checkpoint (method.quadrature.nodes)",
    )
    return [update, path]
