"""Runs a decomposition over a trajectory forwards, in blocks of steps that do not depend on each other.

Each block is a pure function of the recorded steps, so that processes share them out and a killed run goes on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tdaexp.pathkernel.decompose import Contributions, Decomposer
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.parameters import Step
from tdaexp.paths.blocks import Arrays, Shapes, add, run_blocks
from tdaexp.paths.decomposition import PathJob, kept_outputs
from tdaexp.paths.replay import Parts

NUMBERS: Shapes = {"change_norm": (), "residual_norm": (), "nodes": ()}
NORMS: Shapes = {"entry_norm": (), "error_norm": ()}


def parts_of(job: PathJob) -> Parts:
    """What the job's updates are made of."""
    losses = example_losses(job.problem.model)
    return Parts(job.trajectory, job.layout, job.partition, losses, job.examples)


def forward_shapes(job: PathJob, parts: Parts, width: tuple[int, int]) -> Shapes:
    """Shapes of the parts' values: of one step where steps are kept, else of the sums; `width` is (Q, O)."""
    tail = tuple(n for n, axis in zip(width, ("query", "output"), strict=True) if axis in job.keep)
    components = len(job.layout.components)
    shapes: Shapes = {}
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
    partition, `replay` [Q, O]; `residual_norm`, `change_norm`, `nodes` [S]. Of the kernel's entries of a few queries:
    their norm and that of their errors in each step, `entry_norm` and `error_norm` [S]; without steps `entries` and
    `errors` [P, K, q?, O?], summed over steps.
    """
    walk = _Walk(job)
    width = tuple(walk.decomposer.value(job.replay(job.counted[0]).start).shape)
    rows, sums = {**NUMBERS, **NORMS}, dict.fromkeys(("change", "residual"), width)
    (rows if "step" in job.keep else sums).update(forward_shapes(job, walk.parts, width))  # type: ignore[arg-type]
    if "step" not in job.keep:
        shape = forward_shapes(job, walk.parts, (len(walk.decomposer.places), width[1]))["kernel"]
        sums |= dict.fromkeys(("entries", "errors"), shape)
    if "replay" in walk.parts.sizes:
        sums["replay"] = width
    return run_blocks(store / "forward", job.counted, rows, sums, walk.begin, walk.step, "decomposition")


class _Walk:
    """Goes through recorded steps; what running averages have taken in of earlier ones is caught up with."""

    def __init__(self, job: PathJob) -> None:
        self.job, self.parts = job, parts_of(job)
        self.decomposer = Decomposer(job.function, job.layout, job.queries, job.quadrature, mode=job.mode)
        self.averages = self.parts.every and (self.parts.rule.coupled or job.partition is not None)
        self.passed = 0  # recorded steps that the averages have taken in
        self.before: tuple[int, Tensor] | None = None  # a step and f at its start, where the step before has it

    def begin(self, first: int) -> None:
        """Forget f of the steps before, whose last bits may differ from those of a pass of its own."""
        self.before = None

    def step(self, number: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """A step's row; adds to the sums."""
        self._catch_up(number)
        job, step = self.job, self.job.replay(number)
        directions = self.parts.split(step)
        self.passed = number + 1
        known = self.before is not None and self.before[0] == number
        start = self.before[1] if known and self.before else self.decomposer.value(step.start)
        found = self.decomposer.step(step, directions, start)
        self.before = (number + 1, found.after) if self.parts.every else None
        row = completeness(sums, found.after - start, found.residual, found.nodes)
        parts = found.values.split(list(self.parts.sizes.values()))
        for name, values in zip(self.parts.sizes, parts, strict=True):
            if name == "replay":
                add(sums, name, values.double().sum((0, 1)))
                continue
            kept = torch.stack([kept_outputs(value.double(), job.keep) for value in values])
            if "step" in job.keep:
                row |= {name: kept, f"importance_{name}": values.double().abs().sum((-1, -2))}
            else:
                add(sums, name, kept)
        kernel = torch.stack(list(directions.values())[: self.parts.sizes["kernel"]])
        return row | self._checked(step, kernel, found, sums)

    def _checked(
        self, step: Step, kernel: Tensor, found: Contributions, sums: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Norms of a few queries' entries of the kernel, as they are kept, and of their errors; adds both to the sums."""
        values = found.values[: len(kernel)][:, :, self.decomposer.places]
        pair = self.decomposer.entries(step, kernel, found.nodes, values)
        entries, errors = (torch.stack([kept_outputs(one.double(), self.job.keep) for one in each]) for each in pair)
        if "step" not in self.job.keep:
            add(sums, "entries", entries)
            add(sums, "errors", errors)
        return {"entry_norm": entries.norm(), "error_norm": errors.norm()}

    def _catch_up(self, number: int) -> None:
        """Take the steps before into the running averages, where there are any."""
        if not self.averages:
            return
        if number < self.passed:
            self.parts, self.passed = parts_of(self.job), 0
        for earlier in range(self.passed, number):
            self.parts.advance(self.job.replay(earlier))


def completeness(sums: dict[str, Tensor], change: Tensor, residual: Tensor, nodes: int) -> dict[str, Tensor]:
    """Add to the sums what tells how complete the decomposition is; returns the step's own numbers."""
    add(sums, "change", change.double())
    add(sums, "residual", residual.double())
    norms = {"change_norm": change.double().norm(), "residual_norm": residual.double().norm()}
    return norms | {"nodes": torch.tensor(float(nodes), dtype=torch.float64, device="cpu")}
