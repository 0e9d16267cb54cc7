"""Arrays that are computed block by block and survive a kill."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import zarr

from tdaexp.runtime import lockstep, ranks, stop
from tdaexp.runtime.async_writer import Behind
from tdaexp.runtime.block_files import NOT_ITS, NOTES, checksum, create, layout, some_rows
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path, locked, writing
from tdaexp.runtime.progress import track
from tdaexp.runtime.rows import Rows

log = logging.getLogger(__name__)


class BlockStore:
    """Arrays on disk that are computed block by block along their first axis, and that survive a kill.

    A block counts only once all its arrays are written and its flag is set, so a run that was killed goes on at the
    block where it stopped. Each block has a checksum, because zarr reads a chunk that was lost as NaN: a damaged block
    is computed again. The folder's name is expected to carry the fingerprint of all that the content depends on.

    A block's seconds are its own: those of stores that were filled meanwhile count there, and waiting counts nowhere.
    `spent` sums over all stores what this process put into blocks, or waited for others that filled them.

    The processes of a run share the blocks out: each computes and writes its own, then all of them read the whole.
    """

    spent: ClassVar[float] = 0.0
    stand_in: ClassVar[type[BlockStore] | None] = None
    """What is made in its place, in a rehearsal."""

    def __new__(cls, *_: Any, **__: Any) -> BlockStore:
        """A store, or its `stand_in`."""
        return super().__new__(cls.stand_in or cls)

    def __init__(
        self,
        path: Path,
        arrays: dict[str, tuple[tuple[int, ...], str]],
        blocks: list[slice],
        compressed: bool = True,
        rows: int | None = None,
    ) -> None:
        """Open or create the store; `arrays` maps names to (shape, dtype), `blocks` cut the first axis.

        `compressed` tells whether lossless compression is worth its time; a file holds `rows` rows of an array, by
        default those of the smallest block. Blocks that share rows write different arrays.
        """
        self.path, self.blocks = path, blocks
        with contextlib.nullcontext() if path.exists() else locked(path):
            if not path.exists():
                with atomic_path(path) as temporary:
                    create(temporary, arrays, blocks, compressed, rows)
        try:
            group = cast(Any, zarr.open_group(path, mode="r+"))
            self.group: dict[str, Any] = dict(group.arrays())  # each is opened once
            stored = {name: self.group[name].shape for name in arrays}
            self.done = self.group["done"]
            if group.attrs.get("layout") != layout(path):
                raise ValueError("the checksum of its layout is wrong")
        except Exception as error:
            said = " ".join(str(error).split())  # it may quote what a changed byte made of a line
            raise UserError(f"{path}: damaged cache ({said}); delete this folder and run again") from error
        self._start = _own_time()
        self._done = 0
        self._behind: Behind | None = None
        self._last: int | None = None
        expected = {name: shape for name, (shape, _) in arrays.items()}
        if stored != expected or self.done.shape != (len(blocks),):
            raise UserError(f"{path}: cache of another run; delete this folder and run again")

    @contextlib.contextmanager
    def pending(self, among: Collection[int] | None = None, beside: bool = False) -> Iterator[list[int]]:
        """Numbers of the blocks that this process has to compute (`among` some, or all); other runs wait.

        `beside`: a block is written while the next one is computed. Its arrays must then be left as they are, and take
        memory for so long.

        Two jobs of a sweep may want the same store: the second one finds it filled. Where a run has several processes,
        each gets its share of what is missing, and the context ends when all of them are ready.
        """
        me, asked = ranks.current(), time.monotonic()
        with ranks.locked_for_all(self.path):
            BlockStore.spent += time.monotonic() - asked
            missing = ranks.from_first(self.missing() if me.first else [])
            self._done = len(self.blocks) - len(missing)
            wanted = [number for number in missing if among is None or number in among]
            if 0 < len(wanted) < me.world:
                log.info(
                    "%s: %d blocks for %d processes, the others wait", self.path.parent.name, len(wanted), me.world
                )
            self._start = _own_time()
            try:
                with self._beside() if beside else contextlib.nullcontext():
                    yield wanted[me.rank :: me.world]
            except stop.Stopped:
                lockstep.serve()  # the others' blocks at hand
                raise
            ready = time.monotonic()
            lockstep.serve()
        BlockStore.spent += time.monotonic() - ready

    def each(
        self,
        numbers: list[int],
        description: str,
        size: Callable[[int], float] | None = None,
        examples: Callable[[int], float] | None = None,
    ) -> Iterator[int]:
        """Go through blocks that are `pending`, with progress; after any of them the run may be asked to end.

        How much work is in a block (`size`) and in how many `examples` matters in a rehearsal alone: by default, rows.
        """
        world = ranks.current().world
        return track(numbers, description, len(self.blocks), self._done, each=world, stoppable=True)

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not done or not intact, in order."""
        done, damaged = self.flags(), []
        for block in np.flatnonzero(done != 0):
            if done[block] < 0 or not self._intact(int(block)):
                damaged.append(int(block))
        if damaged:
            log.warning("%s: %d blocks are damaged and will be computed again", self.path, len(damaged))
            with writing(self.path):
                for number in damaged:
                    self.done[number] = False
        return sorted([*np.flatnonzero(done == 0).tolist(), *damaged])

    @classmethod
    def known(cls, path: Path) -> Any:
        """The arrays of a store of this kind."""
        return zarr.open_group(path, mode="r")

    def flags(self) -> np.ndarray:
        """Which blocks are done [B]: 1, or 0, or -1 where that cannot be read."""
        found = np.zeros(len(self.blocks), dtype=np.int8)
        try:
            found[:] = self.done[:]
        except Exception:  # whatever a codec makes of a damaged chunk
            for number in range(len(found)):
                try:
                    found[number] = self.done[number]
                except Exception:
                    found[number] = -1
        return found

    def _intact(self, block: int) -> bool:
        """Whether a block reads as it was written."""
        try:
            written = zip(self._arrays().values(), self.group["checksum"][block], strict=True)
            return all(checksum(array[self.blocks[block]]) == known for array, known in written if known != NOT_ITS)
        except Exception:  # whatever a codec makes of a truncated chunk
            return False

    def _arrays(self) -> dict[str, Any]:
        return {name: array for name, array in sorted(self.group.items()) if name not in NOTES}

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Blocks are written by a thread inside the context; at its end all are written, or the error is raised."""
        self._last = None
        with Behind() as self._behind:
            try:
                yield
            finally:
                behind, self._behind = self._behind, None
        if behind is not None and self._last is not None:  # the wait for the last block is a part of its time
            self.group["seconds"][self._last] += self._own_seconds()

    def write(self, block: int, values: dict[str, np.ndarray]) -> None:
        """Store one block of every array, then mark it done. What fails `beside` is raised with the next block."""
        values = {name: np.asarray(value, dtype=self.group[name].dtype) for name, value in values.items()}
        if self._behind is None:
            self._write(block, values)
            self._finish(block, self._own_seconds())
            return

        def write() -> None:
            self._write(block, values)
            self._finish(block, seconds)

        self._behind.wait()
        seconds, self._last = self._own_seconds(), block
        self._behind.begin(write)

    def _own_seconds(self) -> float:
        """Seconds since the last block, which count as spent from here on."""
        seconds = _own_time() - self._start
        BlockStore.spent += seconds
        self._start = _own_time()
        return seconds

    def _write(self, block: int, values: dict[str, np.ndarray]) -> None:
        with self._alone_in(block), writing(self.path):
            for name, value in values.items():
                try:
                    self.group[name][self.blocks[block]] = value
                except (ValueError, RuntimeError) as error:  # a damaged chunk that the block shares with others
                    raise UserError(
                        f"{self.path}: damaged cache ({error}); delete this folder and run again"
                    ) from error
            sums = [checksum(values[name]) if name in values else NOT_ITS for name in self._arrays()]
            self.group["checksum"][block] = np.array(sums, dtype=np.uint64)

    def _finish(self, block: int, seconds: float) -> None:
        with writing(self.path):
            self.group["seconds"][block] = seconds
            self.done[block] = True

    def _alone_in(self, block: int) -> contextlib.AbstractContextManager[None]:
        """A lock against other processes, where the block shares a file with its neighbour."""
        if ranks.current().world == 1 or not len(self.blocks):
            return contextlib.nullcontext()
        span = self.blocks[block]
        for array in self._arrays().values():
            rows = array.chunks[0]
            if span.start % rows or (span.stop % rows and span.stop < array.shape[0]):
                return locked(self.path.with_name(f"{self.path.name}.write"))
        return contextlib.nullcontext()

    def read_block(self, block: int) -> dict[str, np.ndarray] | None:
        """Return one block of every array; None where it is not done or does not read as it was written."""
        try:
            values = {name: np.asarray(array[self.blocks[block]]) for name, array in self._arrays().items()}
            known = self.group["checksum"][block]
            written = zip(values.values(), known, strict=True)
            intact = all(checksum(value) == total for value, total in written if total != NOT_ITS)
            return values if intact and self.done[block] else None
        except Exception:  # whatever a codec makes of a truncated chunk
            return None

    def read(self) -> dict[str, np.ndarray]:
        """Return all arrays; an incomplete store is a programming error, so ask `missing` first."""
        return {name: array[:] for name, array in self._complete().items()}

    def rows(self) -> dict[str, Rows]:
        """All arrays as `read` gives them, whose rows are read when they are asked for."""
        return {
            name: Rows(array.shape, array.dtype, partial(some_rows, array)) for name, array in self._complete().items()
        }

    def _complete(self) -> dict[str, Any]:
        if not self.done[:].all():
            raise RuntimeError(f"{self.path}: {int((~self.done[:]).sum())} blocks are missing")
        return self._arrays()


def opened(path: Path) -> Any:
    """The arrays by name of a store that is complete, to be read in parts."""
    return (BlockStore.stand_in or BlockStore).known(path)


def _own_time() -> float:
    """A clock that stands still while time goes into stores."""
    return time.monotonic() - BlockStore.spent
