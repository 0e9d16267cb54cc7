"""The states of a training, made again from its start: checkpoints on the disk, and the steps between in memory.

    folder/      a row for the state before each segment of `length` steps, and one for the end; blocks with checksums

Going backwards asks for the steps from the last to the first. Those of one segment at a time are in memory, made again
from the checkpoint before them: a forward and backward pass of each step's batch, once for the checkpoints and once for
each time that somebody goes back over the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.pathkernel.adjoint import State, advance, clipped
from tdaexp.pathkernel.updates import AdamW
from tdaexp.paths.derivatives import Derivatives
from tdaexp.paths.walk import Walk
from tdaexp.runtime import ranks
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError

Arrays = dict[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Made:
    """A step as it was made: the parameters before it [D], its loss's gradient there [D], not clipped, and the state
    that it led to.
    """

    before: Tensor
    gradient: Tensor
    after: State


def segment_length(walk: Walk, memory_gb: float) -> int:
    """How many steps of a training the memory holds (10^9 bytes)."""
    return min(walk.steps, max(1, int(memory_gb * 1e9 / step_bytes(walk))))


def step_bytes(walk: Walk) -> int:
    """Memory that a step takes: its gradient, and the state that it led to."""
    vectors = 4 if isinstance(walk.rule, AdamW) else 3
    return vectors * walk.start.numel() * walk.start.element_size()


class States:
    """`at(step)` gives the steps of a walk; `end` the parameters after the last."""

    def __init__(self, walk: Walk, derivatives: Derivatives, folder: Path, length: int) -> None:
        self.walk, self.derivatives, self.folder, self.length = walk, derivatives, folder, length
        self._segment: list[Made] = []
        self._number: int | None = None
        self._kept = self._checkpoints()

    def at(self, step: int) -> Made:
        """A step from 0, made again with its segment where that is not in memory."""
        number = step // self.length
        if number != self._number:
            self._segment = []  # its memory is needed
            self._segment = list(self._made(self._checkpoint(number), self._span(number)))
            self._number = number
        return self._segment[step - number * self.length]

    @property
    def end(self) -> Tensor:
        """Parameters [D] after the last step."""
        return self._checkpoint(len(self._spans)).parameters

    def run(self, walk: Walk) -> Tensor:
        """Parameters [D] at the end of another training, of the same steps and from the same start."""
        state = State.at_start(walk.rule, walk.start)
        for one in self._made(state, range(walk.steps), walk):
            state = one.after
        return state.parameters

    @property
    def _spans(self) -> list[range]:
        count = self.walk.steps
        return [range(begin, min(begin + self.length, count)) for begin in range(0, count, self.length)]

    def _span(self, number: int) -> range:
        return self._spans[number]

    def _made(self, state: State, steps: range, walk: Walk | None = None) -> Iterator[Made]:
        """The steps in order, each from the state that the one before led to. Errors (UserError): not finite."""
        walk = self.walk if walk is None else walk
        for step in steps:
            ids, weights = walk.batch(step)
            gradient = self.derivatives.gradient(state.parameters, ids, weights)
            update = walk.update(step)
            after = advance(walk.rule, state, clipped(gradient, walk.clip), update)
            if not bool(torch.isfinite(after.parameters).all()):
                raise UserError(
                    f"training: the parameters are not finite after step {step}, gone over again; it diverged, lower "
                    "trainer.fit.lr"
                )
            yield Made(state.parameters, gradient, after)
            state = after

    def _checkpoints(self) -> BlockStore:
        """The states before each segment, and the last, all of them made where they are missing."""
        state = State.at_start(self.walk.rule, self.walk.start)
        rows = len(self._spans) + 1
        kind = str(self.walk.start.dtype).removeprefix("torch.")
        arrays: Arrays = {name: ((rows, self.walk.layout.size), kind) for name in state.tensors()}
        kept = BlockStore(self.folder, arrays, [slice(row, row + 1) for row in range(rows)], compressed=False)
        with ranks.first_alone(), kept.pending() as missing:
            reached: int | None = None
            for row in kept.each(missing, "the training again, checkpoints"):
                if row == 0:
                    state = State.at_start(self.walk.rule, self.walk.start)
                else:
                    state = state if reached == row - 1 else self._read(kept, row - 1)
                    for one in self._made(state, self._span(row - 1)):
                        state = one.after
                reached = row
                kept.write(row, {name: value.cpu().numpy()[None] for name, value in state.tensors().items()})
        return kept

    def _checkpoint(self, row: int) -> State:
        return self._read(self._kept, row)

    def _read(self, kept: BlockStore, row: int) -> State:
        found = kept.read_block(row)
        if found is None:
            raise UserError(f"{self.folder}: a checkpoint is damaged; run the same command again, it is made again")
        place = self.walk.start.device
        return State(**{name: torch.from_numpy(np.array(value[0])).to(place) for name, value in found.items()})
