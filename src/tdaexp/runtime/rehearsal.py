"""A rehearsal: the program's own code on a device that does no work, to see what a run would take.

Every operation happens, with its shapes, storage and arithmetic counted, and no number is computed (`fake_device`).
Blocks are not written (`rehearsed_store`), and where work like other work is done again and again one piece of it
stands for all: what loops over such pieces says so (`sampled`). Outside a rehearsal these functions do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.runtime.fake_device import FakeDevice

T = TypeVar("T")
_current: Rehearsal | None = None


def current() -> Rehearsal | None:
    """The rehearsal that is going on."""
    return _current


def sampled(
    items: Sequence[T],
    size: Callable[[T], float],
    examples: Callable[[T], float] = lambda one: len(one),  # type: ignore[arg-type]
) -> Iterable[T]:
    """All items; in a rehearsal the largest of them, which stands for all in proportion to their `size`.

    Passes are counted in `examples`, so that their number is exact.
    """
    return items if _current is None or len(items) < 2 else _current.sample(items, size, examples)


def repeated(items: Sequence[T]) -> Iterable[T]:
    """All items; in a rehearsal the first of them, as each is as much work as the others."""
    return sampled(items, lambda _: 1.0, lambda _: 1.0)


def alike(key: Hashable, run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives; in a rehearsal work of the same `key` is done once, and then counted as it was then."""
    return run() if _current is None else _current.again(key, run)


def each_of(found: Sequence[tuple[int, T]], batches: Iterable[Sequence[int]]) -> Iterable[tuple[int, T]]:
    """What was found of some examples, by their numbers; in a rehearsal all in `batches` have the same as the first."""
    return found if _current is None else ((number, found[0][1]) for batch in batches for number in batch)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """What is done inside the block counts for nothing in a rehearsal: a look at one example."""
    before = None if _current is None else _current.taken()
    yield
    if _current is not None and before is not None:
        _current.put_back(before)


def arithmetic(flop: float) -> None:
    """Count in a rehearsal what no operation on tensors shows: arithmetic of numpy."""
    if _current is not None:
        _current.flop += flop


def padded(lengths: np.ndarray) -> Callable[[Sequence[int]], float]:
    """Size of a batch of examples of these lengths: positions, padding included."""
    return lambda members: len(members) * float(lengths[list(members)].max()) if len(members) else 0.0


@dataclass
class Spent:
    """What was done: passes in examples, FLOP, and bytes left on a disk."""

    forward: float = 0.0
    backward: float = 0.0
    flop: float = 0.0
    disk: float = 0.0

    def add(self, other: Spent, passes: float = 1.0, work: float = 1.0) -> None:
        """Add what was done elsewhere, `passes` times as many of them and `work` times as much of the rest."""
        for one in fields(self):
            times = passes if one.name in ("forward", "backward") else work
            setattr(self, one.name, getattr(self, one.name) + times * getattr(other, one.name))


@dataclass
class StageTaken:
    """What a stage took: `spent`, and peaks of bytes beside the weights on the `device` and on the `host`.

    `blocks` of work it was cut into.
    """

    spent: Spent = field(default_factory=Spent)
    device: float = 0.0
    host: float = 0.0
    blocks: int = 0


@dataclass(frozen=True)
class Piece:
    """What a piece of work takes: `spent`, bytes beyond those before it, and how its result looks."""

    spent: Spent
    device: int
    host: int
    result: tuple[torch.Size, torch.dtype, torch.device]


class Rehearsal(FakeDevice):
    """The mode in which code is rehearsed; `stages` has what was done, in order and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0.0
        self.stages: dict[str, StageTaken] = {}
        self.stores: dict[Any, Any] = {}
        self.pieces: dict[Hashable, Piece] = {}
        self.same_candidates = False

    def __enter__(self) -> Self:
        global _current
        _current = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _current
        super().__exit__(*error)
        _current = None

    def taken(self) -> Spent:
        """What was done since the last stage; the count begins anew."""
        found = Spent(self.forward, self.backward, self.flop)
        self.put_back(Spent())
        return found

    def put_back(self, spent: Spent) -> None:
        """Set what was done since the last stage."""
        self.forward, self.backward, self.flop = spent.forward, spent.backward, spent.flop

    def watch(self, model: nn.Module) -> None:
        """Count passes by a module that runs in each of them, and whose first output has a row for every example."""

        def arrived(gradient: Tensor) -> None:
            self.backward += len(gradient)

        def ran(_: nn.Module, __: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            self.forward += len(first)
            if first.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(first):
                first.register_hook(arrived)

        model.register_forward_hook(ran)

    def sample(self, items: Sequence[T], size: Callable[[T], float], examples: Callable[[T], float]) -> Iterator[T]:
        """The largest item, counted as often as all of them are large, in the stages too that end with it."""
        sizes = [size(one) for one in items]
        chosen = items[int(np.argmax(sizes))]
        passes, work = sum(map(examples, items)) / max(examples(chosen), 1), sum(sizes) / max(max(sizes), 1)
        before, outer = self.taken(), {name: one.spent for name, one in self.stages.items()}
        for one in self.stages.values():
            one.spent = Spent()
        yield chosen
        before.add(self.taken(), passes, work)
        self.put_back(before)
        for name, one in self.stages.items():
            inner, one.spent = one.spent, outer.get(name, Spent())
            one.spent.add(inner, passes, work)

    def again(self, key: Hashable, run: Callable[[], Tensor]) -> Tensor:
        """What `run` gives, or a tensor like it where a piece of this key was done; no stage ends within it."""
        device, host = self.device, self.host
        before, peaks, start = self.taken(), (device.peak, host.peak), (device.now, host.now)
        if key in self.pieces:
            known = self.pieces[key]
            shape, dtype, place = known.result
            found = torch.empty(shape, dtype=dtype, device=place)
        else:
            self.begin()
            found = run()
            taken = device.peak - start[0], host.peak - start[1]
            known = self.pieces[key] = Piece(self.taken(), *taken, (found.shape, found.dtype, found.device))
        device.peak = max(peaks[0], start[0] + known.device, device.now)
        host.peak = max(peaks[1], start[1] + known.host, host.now)
        before.add(known.spent)
        self.put_back(before)
        return found

    def begin(self) -> None:
        """Follow peaks of memory anew."""
        self.device.peak, self.host.peak = self.device.now, self.host.now

    def end(self, name: str) -> StageTaken:
        """Put down under a name what was done since the last stage, and the peaks since the last beginning."""
        stage = self.stages.setdefault(name, StageTaken())
        stage.spent.add(self.taken())
        stage.device, stage.host = max(stage.device, self.device.peak), max(stage.host, self.host.peak)
        return stage
