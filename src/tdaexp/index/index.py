"""The index of a corpus: cut into blocks of documents in the corpus' order, each built by whoever comes first.

What a row is made of is told by whoever asks (`Making`): sketched gradients of some components. A killed build goes on
at the batch where it stopped; a block that was finished is never computed again, for whatever corpus, share of tasks or
question. Rows are read a few at a time, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.features import Features, component_features
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.sketch import Sketch
from tdaexp.index.blocks import Block
from tdaexp.index.shares import Share
from tdaexp.index.storage import packed, row_bytes, unpacked
from tdaexp.problem import Problem
from tdaexp.runtime import ranks, seal
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.code import Work
from tdaexp.runtime.fake_device import blank
from tdaexp.runtime.files import remove
from tdaexp.runtime.rehearsal import current, sampled
from tdaexp.runtime.rehearsed_store import RehearsedStore

log = logging.getLogger(__name__)
DOCUMENTS = 1024
"""Of a block, or fewer where rows are long."""
BLOCK_BYTES = 1 << 28
"""Of a block's rows as they are computed, at most, where that is not one document."""
PIECE_BYTES = 1 << 25
"""Of rows that are in memory at a time."""
COMPUTING = "{}-passes"


@dataclass(frozen=True, eq=False)
class Making:
    """What makes a row: gradients of the examples, a sketch for each component, and how the row is kept (`storage`).

    `settings` are plain data that decide rows beside the sketches' dimensions and the reduction: kind and seed of the
    sketches, what they rest on, a loss that is not the model's own. `by` is code that decides rows and is not reached
    from here. Nothing of it may depend on a query.
    """

    gradients: Gradients
    sketches: Mapping[str, Sketch]
    settings: Sequence[Any]
    storage: str | None = None
    by: Sequence[Work] = field(default=())

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Which entries of a row belong to a component."""
        names = self.gradients.components.names
        stops = np.cumsum([self.sketches[name].dim for name in names]).tolist()
        return {name: slice(stop - self.sketches[name].dim, stop) for name, stop in zip(names, stops, strict=True)}

    @property
    def width(self) -> int:
        """Entries of a row."""
        return sum(sketch.dim for sketch in self.sketches.values())


class Index:
    """Rows of N examples, in their order, on disk; read as `gradients.features.Features` are."""

    def __init__(self, problem: Problem, making: Making) -> None:
        """Look for the blocks of the training examples. Errors (UserError): fewer than the search can do with."""
        if problem.wanted is not None:
            problem.wanted.best.check_rows(len(making.gradients))
        self.problem, self.making, self.columns = problem, making, making.columns
        self.dtype = np.dtype(making.gradients.kind)
        self.row_bytes = making.width * self.dtype.itemsize
        count = len(making.gradients)
        self.place = np.arange(count)
        step = max(1, min(DOCUMENTS, BLOCK_BYTES // self.row_bytes))
        cuts = [(start, min(start + step, count)) for start in range(0, count, step)]
        self.blocks = [Block(partial(self._path, range(*cut)), *cut) for cut in cuts]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all rows on disk."""
        making = self.making
        return len(self.place) * row_bytes(making.width, len(self.columns), making.storage, self.dtype.itemsize)

    def missing(self, share: Share | None = None) -> list[int]:
        """Numbers of the blocks (of a task's share) that are not there; a damaged one is said, and is missing."""
        among = range(len(self.blocks)) if share is None else share.of_blocks(len(self.blocks))
        if current() is not None:
            return list(among)
        return ranks.from_first([n for n in among if not self.blocks[n].there()] if ranks.current().first else [])

    def build(self, share: Share | None = None, *, told: bool = True) -> int:
        """Compute the blocks that are missing, or those of a task's share; returns how many these were.

        `told`: say so where none is missing. Errors (UserError): an example without loss, NaN or Inf in a gradient.
        """
        wanted = self.missing(share)
        for block in (self.blocks[number] for number in wanted if current() is None):
            self.making.gradients.check(range(block.start, block.stop), "training")
        rows = sum(len(self.blocks[number]) for number in wanted)
        if wanted:
            log.info(
                "index: %d of %d blocks are to be built, %s of %s training examples; all of them take %.3g GB",
                len(wanted), len(self.blocks), f"{rows:,}", f"{len(self.place):,}", self.stored_bytes / 1e9,
            )  # fmt: skip
        elif share is None and told:
            log.info(
                "index: all %d blocks are there, %s training examples; no pass over them",
                len(self.blocks), f"{len(self.place):,}",
            )  # fmt: skip
        some = sampled(wanted, lambda n: float(len(self.blocks[n])), lambda n: float(len(self.blocks[n])))
        for done, number in enumerate(some):
            if done:
                log.info("index: %d of %d blocks built", done, len(wanted))
            self._build(self.blocks[number])
        return len(wanted)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows [n, D] as they are read back, of some examples."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if current() is not None:
            return blank((len(wanted), self.making.width), self.dtype)
        found = np.empty((len(wanted), self.making.width), dtype=self.dtype)
        starts = np.array([block.start for block in self.blocks])
        of = np.searchsorted(starts, wanted, side="right") - 1
        for number in np.unique(of):
            mine = np.flatnonzero(of == number)
            block = self.blocks[number]
            found[mine] = self._unpacked(*block.read(wanted[mine] - block.start)).numpy()
        return found

    def pieces(self, most: int) -> list[tuple[Block, slice]]:
        """All rows in order, at most so many at a time: some of a block's."""
        step = max(1, min(most, PIECE_BYTES // self.row_bytes))
        return [
            (block, slice(start, min(start + step, len(block))))
            for block in self.blocks
            for start in range(0, len(block), step)
        ]

    def pieces_of(self, numbers: np.ndarray, most: int) -> list[tuple[Block, np.ndarray]]:
        """Some rows, by rising number, at most so many at a time: places of a block."""
        step = max(1, min(most, PIECE_BYTES // self.row_bytes))
        cuts = np.searchsorted(numbers, [block.start for block in self.blocks[1:]])
        own = zip(self.blocks, np.split(numbers, cuts), strict=True)
        return [
            (block, mine[start : start + step] - block.start)
            for block, mine in own
            for start in range(0, len(mine), step)
        ]

    def read(self, block: Block, some: slice | np.ndarray, device: torch.device) -> Tensor:
        """Rows [n, D] of a piece, on a device."""
        kept, scale = block.read(some)
        return self._unpacked(kept.to(device), None if scale is None else scale.to(device))

    def _unpacked(self, kept: Tensor, scale: Tensor | None) -> Tensor:
        return unpacked(kept, scale, list(self.columns.values()))

    def _path(self, members: range, name: str = "{}") -> Path:
        """Where the rows of some examples lie: named after the model, what makes a row, and these examples."""
        making = self.making
        dims = {name: making.sketches[name].dim for name in making.gradients.components.names}
        decide = [dims, making.gradients.reduction, making.storage, *making.settings]
        by: list[Work] = [component_features, packed, *making.by]
        return self.problem.examples_store("index", self._examples(members), *decide, by=by, name=name)

    def _examples(self, members: range) -> Any:
        return self.making.gradients.examples.select(np.arange(members.start, members.stop))

    def _build(self, block: Block) -> None:
        members = range(block.start, block.stop)
        with ranks.locked_for_all(block.path):
            # Another run may have built it since.
            if ranks.from_first(ranks.current().first and block.path.exists() and seal.damage(block.path) is None):
                return
            before, store = time.monotonic(), self._path(members, COMPUTING)
            part = replace(self.making.gradients, examples=self._examples(members))
            tokens, rehearsal = self.problem.compute.tokens_per_batch, current()
            known = rehearsal is not None and store in rehearsal.stores
            found = component_features(part, self.making.sketches, store=store, tokens_per_batch=tokens)
            if rehearsal is not None:
                if not known:
                    self._rehearsed(found, len(block))
            elif ranks.current().first:
                self._keep(block, found, part.ids, time.monotonic() - before)
                remove(store)
                for asked in (self.problem.stores, self.problem.overhead):  # the block has its time
                    asked.discard(store)

    def _keep(self, block: Block, found: Features, ids: list[str], seconds: float) -> None:
        """Put a block's rows in order, as they are to be kept."""
        before, step = time.monotonic(), max(1, PIECE_BYTES // self.row_bytes)
        parts = [
            packed(
                torch.from_numpy(found.rows(found.place[start : start + step])),
                list(self.columns.values()),
                self.making.storage,
            )
            for start in range(0, len(block), step)
        ]
        scale = None if parts[0][1] is None else torch.cat([one for _, one in parts if one is not None])
        block.write(torch.cat([rows for rows, _ in parts]), scale, ids, seconds)
        BlockStore.spent += time.monotonic() - before

    def _rehearsed(self, found: Features, rows: int) -> None:
        """A block leaves on the disk what it is packed to, not what it was computed as."""
        rehearsal, store = current(), found.store
        if rehearsal is not None and isinstance(store, RehearsedStore):
            rehearsal.stages[store.name].spent.disk += rows * self.stored_bytes / len(self.place) - store.size()
