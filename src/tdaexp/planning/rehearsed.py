"""A method's costs by running the method itself on a problem that has sizes alone."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tdaexp.history import Course, Moment, OptimizerState
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.fake_device import DEVICE
from tdaexp.runtime.rehearsal import Rehearsal, StageTaken, aside
from tdaexp.runtime.rehearsed_store import KEPT, STORE, TILED

M = TypeVar("M", bound=nn.Module)
RUNTIME_BYTES = 0.1e9
"""Batches, allocator and libraries beside the tensors that are counted."""
PAIR_BYTES = 520.0
"""Of main memory for each pair beside its numbers: ids, and the tables that the report is made of."""


def on_device(model: M) -> M:
    """Let a model of fake tensors be on the rehearsal's device."""
    for one in [*model.parameters(), *model.buffers()]:
        if isinstance(one, FakeTensor):
            one.fake_device = DEVICE
    return model


def without_numbers(model: nn.Module, rehearsal: Rehearsal) -> nn.Module:
    """A copy of a module with real parameters for a rehearsal."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for module in copied.modules():
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = nn.Parameter(rehearsal.fake.from_tensor(one.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = rehearsal.fake.from_tensor(buffer)
    return on_device(copied)


@dataclass(frozen=True)
class Pass:
    """FLOP of a pass, and the most `bytes` of tensors that it makes."""

    flop: float
    bytes: float


def pass_of(rehearsal: Rehearsal, run: Callable[[], object]) -> Pass:
    """What a pass takes, which counts for no stage."""
    with aside():
        rehearsal.begin()
        before = rehearsal.device.now
        run()
        return Pass(rehearsal.flop, rehearsal.device.peak - before)


@dataclass(frozen=True)
class RehearsedHistory:
    """So many `kept` moments of a training, each of which has the same `model`."""

    model: nn.Module
    kept: int

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        """The named steps, or all that are kept, at most `count`."""
        numbers = steps or range(max(1, min(count, self.kept)))
        return [Moment(step, 1.0, f"moment {step}", lambda: self.model, self._state) for step in numbers]

    def course(self) -> Course:
        """One step for each moment."""
        parameters = dict.fromkeys(dict(self.model.named_parameters()), 0.0)
        return Course(np.ones(self.kept), "adamw", 0.0, parameters)

    def _state(self) -> OptimizerState:
        def like(name: str) -> Tensor:
            return torch.zeros(self.model.get_parameter(name).shape, dtype=torch.float32, device="cpu")

        return OptimizerState(1, (0.9, 0.999), 1e-8, like, like)


def rehearse(
    method: Method, problem: Problem, rehearsal: Rehearsal, weights: float, inputs: float = 0.0
) -> list[StageCost]:
    """Stages of `method.attribute(problem)`, the answer last; the problem's model is on `DEVICE`.

    `weights`: bytes of the parameters of all models that are loaded; `inputs`: bytes of examples in main memory.
    """
    rehearsal.same_candidates = tiled(problem.pairs)
    with tempfile.TemporaryDirectory() as cache, unheard(), ranks.acting_as(ranks.ALONE):
        asked, problem = method.rehearsed, replace(problem, cache=Path(cache))
        problem = problem if problem.wanted is None else asked.found(problem)
        found = asked.attribute(problem)
    if rehearsal.flop or rehearsal.forward:
        rehearsal.end("scores")
    host = inputs + RUNTIME_BYTES
    stages = [_cost(name, one, weights, host) for name, one in rehearsal.stages.items()]
    return [*stages, _answer(found, problem, weights, host)]


@contextmanager
def unheard() -> Iterator[None]:
    """What a method tells as it goes is not told of a rehearsal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _cost(name: str, taken: StageTaken, weights: float, host: float) -> StageCost:
    spent, blocks = taken.spent, taken.blocks
    note = f"{blocks} blocks, the tensors of one take at most {taken.device / 1e9:.3g} GB" if blocks > 1 else ""
    sums = spent.forward, spent.backward, spent.flop, spent.disk
    return StageCost(name, *sums, weights + taken.device, host + taken.host, note)


def _answer(found: xr.Dataset, problem: Problem, weights: float, host: float) -> StageCost:
    """What writing the answer takes: the run's own influence store."""
    sizes = {name: one.nbytes for name, one in found.data_vars.items() if one.dtype.kind == "f"}
    sizes.pop("bm25", None)
    packing = {"train_sq": TILED if tiled(problem.pairs) else KEPT}
    disk = sum(packing.get(str(name), KEPT) * size for name, size in sizes.items()) + 2 * STORE
    return StageCost(
        "answer", disk=disk, device=weights, host=2 * sum(sizes.values()) + PAIR_BYTES * problem.pairs.size + host
    )


def tiled(pairs: np.ndarray) -> bool:
    """Whether all queries have the same candidates."""
    return bool((pairs == pairs[0]).all())
