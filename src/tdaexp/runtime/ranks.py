"""The processes of one run, which all go the same way through the program and share out its blocks of work.

Process 0 is the one that writes, logs and reports. What the processes compute meets in the block stores alone. Only
what is named here is done together, so every process must call it in the same order; `lockstep` has the passes of a
model that is shared out.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tdaexp.runtime import stop
from tdaexp.runtime.files import locked

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
log = logging.getLogger(__name__)
POLL_S = 5e-5, 0.02  # between two looks, at first and at most
ENDED = f"another process of this run has ended; what is finished is kept, {stop.RESUME}"


@dataclass(frozen=True)
class Ranks:
    """Process number `rank` of `world` on `nodes` machines; `device` is the one that it was given."""

    rank: int = 0
    world: int = 1
    device: Any = None
    nodes: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and reports."""
        return self.rank == 0


ALONE = Ranks()
_current = ALONE


def current() -> Ranks:
    """Which process this is."""
    return _current


@contextlib.contextmanager
def acting_as(ranks: Ranks) -> Iterator[None]:
    """Be that process for the length of a block."""
    global _current
    before, _current = _current, ranks
    try:
        yield
    finally:
        _current = before


def barrier() -> None:
    """Wait until every process has come here.

    Errors: `Lost` when one of them ended, `Stopped` when the run is to end.
    """
    if _current.world == 1:
        return
    import torch

    together(torch.zeros(1))


def together(tensor: Tensor, leave: bool = True) -> Tensor:
    """Sum of a tensor over the processes, in place and with the same bits on each.

    Errors as for `barrier`, but no `Stopped` where the wait may not be left (`leave`).
    """
    if _current.world == 1:
        return tensor
    import torch.distributed as dist

    try:
        work: Any = dist.all_reduce(tensor, async_op=True)
        pause, most = POLL_S
        while not work.is_completed():  # in Python, so that signals are heard
            if leave:
                stop.check()
            time.sleep(pause)
            pause = min(2 * pause, most)
        work.wait()
    except RuntimeError as error:
        stop.check()
        raise stop.Lost(ENDED) from error
    return tensor


def from_first(value: T) -> T:
    """The value that process 0 has. Errors as for `barrier`."""
    return gathered(value)[0]


def gathered(value: T, leave: bool = True) -> list[T]:
    """The values of all processes. Errors as for `together`."""
    if _current.world == 1:
        return [value]
    import torch
    import torch.distributed as dist

    together(torch.zeros(1), leave)  # in which signals are heard, as they are not in the next line
    found: list[Any] = [None] * _current.world
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        stop.check()
        raise stop.Lost(ENDED) from error
    return found


@contextlib.contextmanager
def locked_for_all(path: Path) -> Iterator[None]:
    """As `files.locked`, but for all processes of this run: process 0 holds it until the last one leaves the block."""
    with contextlib.ExitStack() as held:
        barrier()  # before it some may have taken the lock for themselves
        if _current.first:
            held.enter_context(locked(path))
        barrier()
        yield
        barrier()


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Let process 0 do the block by itself, then the others, who find in the cache what it left there.

    For work that is not shared out: within the block each process is alone.
    """
    ranks = _current
    if not ranks.first:
        barrier()
    with acting_as(Ranks(device=ranks.device) if ranks.first else Ranks(ranks.rank, 1, ranks.device)):
        yield
    if ranks.first:
        barrier()


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Let process 0 do the block by itself, then the others, one at a time on each machine.

    For what takes much memory for a while. Within the block each process is alone, as in `first_alone`.
    """
    ranks = _current
    on_machine = max(1, ranks.world // ranks.nodes)
    turn = 0 if ranks.first else 1 + ranks.rank % on_machine
    for _ in range(turn):
        barrier()
    with acting_as(Ranks(ranks.rank, 1, ranks.device)):
        yield
    for _ in range(on_machine - turn):
        barrier()
