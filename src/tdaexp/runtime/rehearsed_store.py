"""A block store of a rehearsal: it writes nothing, remembers which blocks were done, and reads as ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.fake_device import blank
from tdaexp.runtime.rehearsal import Rehearsal, current
from tdaexp.runtime.rows import Rows

KEPT = 0.93
"""Of their size is what float32 numbers take after lossless compression."""
REPEATED = 0.5
"""Of their size is what the squared norms of candidates take (`train_sq`): they stand at each of their queries."""
TILED = 0.1
"""The same where all queries have the same candidates."""
WRITTEN = 2
"""How often a block's values are in main memory: as they are, and on their way to the disk."""
STORE = 3e4
"""Bytes of a store beside its numbers."""


class BlankArray:
    """An array of a store: its shape and type, and ones."""

    def __init__(self, shape: tuple[int, ...], kind: str) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(kind)

    @property
    def nbytes(self) -> float:
        """Bytes of its numbers."""
        return float(np.prod(self.shape, dtype=float)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        found: np.ndarray = blank(self.shape, self.dtype)[key]
        return found

    def some(self, places: np.ndarray) -> np.ndarray:
        """The rows at some places [n]."""
        return blank((len(places), *self.shape[1:]), self.dtype)


class RehearsedStore(BlockStore):
    """As `BlockStore`, without a disk."""

    def __init__(
        self,
        path: Path,
        arrays: dict[str, tuple[tuple[int, ...], str]],
        blocks: list[slice],
        compressed: bool = True,
        rows: int | None = None,
    ) -> None:
        """Remember what would be there."""
        self.path, self.blocks, self.compressed = path, blocks, compressed
        self.rehearsal = _going_on()
        self.group: dict[str, BlankArray] = {name: BlankArray(*one) for name, one in arrays.items()}
        self.ready: set[int] = self.rehearsal.stores.setdefault(path, (self.group, set()))[1]
        self.name, self.largest = path.parent.name, 0.0

    @contextlib.contextmanager
    def pending(self, among: Collection[int] | None = None, beside: bool = False) -> Iterator[list[int]]:
        """Blocks that no one has asked for before; what is done for them is a stage of the store's name."""
        wanted = [n for n in range(len(self.blocks)) if n not in self.ready and (among is None or n in among)]
        first = not self.ready
        self.rehearsal.begin()
        yield wanted
        self.ready.update(wanted)
        if not wanted:
            return
        stage = self.rehearsal.end(self.name)
        stage.host = max(stage.host, WRITTEN * self.largest)
        if first:
            stage.spent.disk += self.size()
            stage.blocks += len(self.blocks)

    def each(
        self,
        numbers: list[int],
        description: str,
        size: Callable[[int], float] | None = None,
        examples: Callable[[int], float] | None = None,
    ) -> Iterator[int]:
        """The largest block, which stands for all."""
        self.name = description
        size = size or (lambda number: float(self.blocks[number].stop - self.blocks[number].start))
        if numbers:
            yield from self.rehearsal.sample(numbers, size, examples or size)

    def write(self, block: int, values: dict[str, np.ndarray]) -> None:
        """Nothing is written."""
        self.largest = max(self.largest, sum(float(one.nbytes) for one in values.values()))

    @classmethod
    def known(cls, path: Path) -> Any:
        """The arrays of a store that was opened before."""
        return _going_on().stores[path][0]

    def missing(self) -> list[int]:
        """None, once they were asked for."""
        return [n for n in range(len(self.blocks)) if n not in self.ready]

    def read_block(self, block: int) -> dict[str, np.ndarray] | None:
        """Ones."""
        return {name: array[self.blocks[block]] for name, array in self.group.items()}

    def read(self) -> dict[str, np.ndarray]:
        """Ones; the real ones are in main memory, one of them twice while it is put in order."""
        stage = self.rehearsal.stages.get(self.name)
        if stage is not None:
            sizes = [array.nbytes for array in self.group.values()]
            stage.host = max(stage.host, sum(sizes) + max(sizes))
        return {name: array[:] for name, array in self.group.items()}

    def rows(self) -> dict[str, Rows]:
        """Ones."""
        return {name: Rows(array.shape, array.dtype, array.some) for name, array in self.group.items()}

    def size(self) -> float:
        """Bytes on disk."""
        return STORE + sum(self._packing(name) * array.nbytes for name, array in self.group.items())

    def _packing(self, name: str) -> float:
        if not self.compressed:
            return 1.0
        if name != "train_sq":
            return KEPT
        return TILED if self.rehearsal.same_candidates else REPEATED


def _going_on() -> Rehearsal:
    found = current()
    assert found is not None
    return found


@contextlib.contextmanager
def rehearsing(rehearsal: Rehearsal) -> Iterator[None]:
    """Rehearse what is done inside the block; no store is written."""
    BlockStore.stand_in = RehearsedStore
    try:
        with rehearsal:
            yield
    finally:
        BlockStore.stand_in = None
