"""Runs a decomposition over a trajectory forwards, in blocks of steps that do not depend on each other.

Each block is a pure function of the recorded steps, so that processes share them out and a killed run goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from tdaexp.pathkernel.decompose import Contributions, Decomposer
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.parameters import Step
from tdaexp.paths.blocks import Arrays, Shapes, add, run_blocks
from tdaexp.paths.decomposition import PathJob, kept_outputs
from tdaexp.paths.entry_error import entry_norms
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
    partition, `replay` [Q, O]; `residual_norm`, `change_norm`, `nodes` [S]; `entry_norm` and `error_norm` of the
    kernel's entries and what they are off by, [S] with steps, else numbers.
    """
    walk = _Walk(job)
    width = tuple(walk.decomposer.value(job.replay(job.counted[0]).start).shape)
    rows, sums = dict(NUMBERS), dict.fromkeys(("change", "residual"), width)
    (rows if "step" in job.keep else sums).update(forward_shapes(job, walk.parts, width))  # type: ignore[arg-type]
    places = walk.decomposer.places
    if "step" in job.keep:
        rows |= NORMS
    else:
        asked = dataclasses.replace(job, keep=job.keep | {"query"})
        sums["errors"] = forward_shapes(asked, walk.parts, (len(places), width[1]))["kernel"]
    if "replay" in walk.parts.sizes:
        sums["replay"] = width
    found = run_blocks(store / "forward", job.counted, rows, sums, walk.begin, walk.step, "decomposition")
    if "step" not in job.keep:
        errors, entries = (torch.from_numpy(found[name]) for name in ("errors", "kernel"))
        found |= {name: value.numpy() for name, value in entry_norms(errors, entries, job, places).items()}
    return found


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

    def _checked(self, step: Step, kernel: Tensor, found: Contributions, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the step's entries of the kernel are off by, where steps are kept; else added to the sums."""
        job, places, values = self.job, self.decomposer.places, found.values[: len(kernel)]
        _, off = self.decomposer.entries(step, kernel, found.nodes, values[:, :, places])
        errors = torch.stack([kept_outputs(one.double(), job.keep | {"query"}) for one in off])
        if "step" not in job.keep:
            add(sums, "errors", errors)
            return {}
        entries = torch.stack([kept_outputs(one.double(), job.keep) for one in values])
        return entry_norms(errors, entries, job, places)

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
