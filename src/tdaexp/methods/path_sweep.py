"""Runs a decomposition by training examples: backwards over a trajectory, each step on what the later ones left.

Beside the rows per step in a block store lies `sums.npz`: what is summed over steps so far, and the state of the
recursion. It is replaced as a whole after each block. Of several processes the first one does it alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.methods.path_run import NUMBERS, Arrays, PathJob, add, completeness
from tdaexp.methods.replay import Parts
from tdaexp.pathkernel.outputs import example_losses
from tdaexp.pathkernel.sweep import Sweep
from tdaexp.runtime import ranks
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)
STEPS_PER_BLOCK = 32
OneStep = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
"""(step, sums so far, which it changes) -> the step's own row, empty for a step that does not count."""


def sweep_run(job: PathJob, store: Path) -> Arrays:
    """Single training examples, backwards in time.

    Returns `kernel` [K, N, Q, O], `regularisation`, `whole` [K, Q, O]; `residual`, `change` [Q, O]; `residual_norm`,
    `change_norm`, `nodes` [S].
    """
    if ranks.current().world > 1:
        log.info("single training examples are decomposed by one process; the others wait")
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
        add(sums, "regularisation", found.regularisation.double())
        if number not in counted:
            return {}
        change = found.whole.sum(0) + found.residual
        add(sums, "whole", found.whole.double())
        return completeness(sums, change, found.residual, found.nodes)

    last = max(job.counted)
    order = [number for number in job.study.trajectory.steps if number <= last and (parts.every or number in counted)]
    return _run(job, store, order[::-1], dict(NUMBERS), one)


def _run(job: PathJob, store: Path, order: list[int], shapes: dict[str, tuple[int, ...]], one: OneStep) -> Arrays:
    """Take the steps in `order`; returns the rows of counted steps in the order of time, and the sums."""
    blocks = [slice(k, min(k + STEPS_PER_BLOCK, len(order))) for k in range(0, len(order), STEPS_PER_BLOCK)]
    rows = BlockStore(store / "rows", {n: ((len(order), *shape), "float64") for n, shape in shapes.items()}, blocks)
    with ranks.first_alone(), rows.pending() as missing:
        sums, done = _load(store / "sums.npz")
        if any(block < done for block in missing):
            log.warning("%s: damaged; the decomposition starts again", store)
            sums, done = {}, 0
        for number in track(
            range(done, len(blocks)), "decomposition, blocks of steps", len(blocks), done, stoppable=True
        ):
            found = [one(order[place], sums) for place in range(blocks[number].start, blocks[number].stop)]
            values = {
                name: np.stack([row[name].numpy() if row else np.full(shape, np.nan) for row in found])
                for name, shape in shapes.items()
            }
            rows.write(number, values)
            _save(store / "sums.npz", sums, number + 1)
        kept = np.argsort(order)[np.isin(np.sort(order), job.counted)]
        summed = {name: value.numpy() for name, value in sums.items() if name != "carry"}
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
