"""Search by faiss: which rows of an index may be the extremes of a query, to be scored again (`search.among`).

What faiss makes of the rows lies beside the blocks, in a sealed folder that appears whole:

    KEY-ivf/rows.faiss           as faiss writes it
    KEY-ivf/seconds.json         how long making it took
    KEY-ivf/recall-KEY.json      what a search with some settings has missed (`recall`)

KEY is a fingerprint of the names of all blocks, of what queries meet in their rows' place, and of the keys that decide
what is written: an index with further blocks has another one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.best import CODES, PER_CENTROID, Best
from tdaexp.index.index import Index
from tdaexp.index.meeting import Meeting
from tdaexp.runtime.block_files import SECONDS
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.cache import entry
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import mended_folder, write_json
from tdaexp.runtime.progress import doing, track
from tdaexp.runtime.quiet import quiet

log = logging.getLogger(__name__)
FILE = "rows.faiss"
CODE_BYTES, RESCORED, SHARE = 64, 10, 8
"""Where keys say nothing: bytes of a row, times k that are scored again, of how many lists one is looked through."""
USUAL = 64
"""Rows that a centroid is fitted to."""
ROUNDS = 10
"""Of fitting centroids, as faiss takes for ivf; for pq it would take 25."""


@dataclass(frozen=True, eq=False)
class Approximate:
    """The rows of an index, as queries meet them, kept by faiss as the keys of `best` say; `cache_gb` (10^9 bytes)
    bounds the rows that its centroids are fitted to.
    """

    index: Index
    meeting: Meeting
    best: Best
    cache_gb: float

    @cached_property
    def lists(self) -> int:
        """Of ivf. Errors (UserError): rows that they can be fitted to take more than the stated memory."""
        rows = min(len(self.index.place), self._room)
        asked = self.best.lists or max(1, min(math.isqrt(len(self.index.place)), rows // PER_CENTROID))
        self._check_room(asked)
        return asked

    @property
    def probes(self) -> int:
        """Lists that are looked through for a query."""
        return self.best.probes or math.ceil(self.lists / SHARE)

    @property
    def rescored(self) -> int:
        """Rows that are scored again, on each side of a query."""
        return min(len(self.index.place), (self.best.rescored or RESCORED) * self.best.k)

    @property
    def kind(self) -> str:
        """What is kept, in words of `faiss.index_factory`; np: no codes for Hamming distances, which take minutes."""
        if self.best.search == "ivf":
            return f"IVF{self.lists},SQ8"
        return "Flat" if self.best.search == "flat" else f"PQ{self._parts}np"

    @property
    def width(self) -> int:
        """Entries of a row as faiss has it: with zeros at its end, where it is cut into parts."""
        given = self.index.making.width
        return math.ceil(given / self._parts) * self._parts if self.best.search == "pq" else given

    @property
    def size(self) -> int:
        """Bytes of what is kept, about."""
        of_row = {"flat": 4 * self.width, "ivf": self.width + 8, "pq": self._parts}[self.best.search]
        return len(self.index.place) * of_row

    @property
    def path(self) -> Path:
        """The folder."""
        import faiss

        meeting, problem = self.meeting, self.index.problem
        met = [None if meeting.norms is None else meeting.norms.__name__, *meeting.settings, meeting.own]
        names = [block.path.name for block in self.index.blocks]
        name = f"{{}}-{self.best.search}"
        path = entry(problem.cache, "index", names, met, self.kind, faiss.__version__, by=[Approximate], name=name)
        for known in (problem.stores, problem.overhead):
            known.add(path)
        return path

    def opened(self) -> Any:
        """What faiss has of the rows; made where it is not there, or damaged."""
        with quiet("faiss.loader"):  # it tells which instructions it tries
            import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        found: Any = faiss.read_index(str(mended_folder(self.path, self._make) / FILE), faiss.IO_FLAG_MMAP)
        if self.best.search == "ivf":
            found.nprobe = self.probes
        return found

    def finds(self, opened: Any, queries: Tensor) -> list[np.ndarray]:
        """For each query [Q, D] numbers of rows [n], rising, that may be among its extremes."""
        asked = self._padded(queries)
        _, best = opened.search(asked, self.rescored)
        _, worst = opened.search(-asked, self.rescored)
        both = np.concatenate([best, worst], axis=1)  # -1: the lists had no more
        return [np.unique(row[row >= 0]) for row in both]

    def _make(self, folder: Path) -> None:
        """Fit what is to be fitted to a sample, and hand over all rows."""
        import faiss

        begun, count = time.monotonic(), len(self.index.place)
        log.info("index: %s by faiss of %s rows is made, %.3g GB", self.kind, f"{count:,}", self.size / 1e9)
        made: Any = faiss.index_factory(self.width, self.kind, faiss.METRIC_INNER_PRODUCT)
        if self.best.search == "pq":
            made.pq.cp.niter = ROUNDS
        if not made.is_trained:
            doing("fitting faiss's centroids to a sample of rows")
            made.train(self._sample())
        for rows in self._vectors():
            made.add(rows)
        faiss.write_index(made, str(folder / FILE))
        seconds = time.monotonic() - begun
        write_json(folder / SECONDS, seconds)
        BlockStore.spent += seconds

    def _sample(self) -> np.ndarray:
        """Rows at random, the same each time."""
        count, centroids = len(self.index.place), CODES if self.best.search == "pq" else self.lists
        self._check_room(centroids)
        wanted = min(count, self._room, USUAL * max(centroids, CODES))
        numbers = np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))
        rows = torch.from_numpy(self.index.rows(numbers))
        return self._padded(self.meeting.vectors(self.meeting.changed(rows), torch.from_numpy(numbers)))

    def _vectors(self) -> Iterator[np.ndarray]:
        """All rows in order, a piece at a time."""
        pieces = self.index.pieces(len(self.index.place))
        for block, some in track(pieces, "rows for faiss", len(pieces), stoppable=True):
            numbers = torch.arange(block.start + some.start, block.start + some.stop)
            rows = self.meeting.changed(self.index.read(block, some, torch.device("cpu")))
            yield self._padded(self.meeting.vectors(rows, numbers))

    def _padded(self, rows: Tensor) -> np.ndarray:
        more = self.width - rows.shape[1]
        whole = torch.nn.functional.pad(rows, (0, more)) if more else rows
        found: np.ndarray = whole.float().cpu().numpy()
        return np.ascontiguousarray(found)

    @property
    def _parts(self) -> int:
        return min(self.best.code_bytes or CODE_BYTES, self.index.making.width)

    @property
    def _room(self) -> int:
        """Rows that the stated memory holds."""
        return max(1, int(self.cache_gb * 1e9 // (4 * self.index.making.width)))

    def _check_room(self, centroids: int) -> None:
        if PER_CENTROID * centroids > self._room:
            needed = 4e-9 * PER_CENTROID * centroids * self.index.making.width
            raise UserError(
                f"candidates.search={self.best.search}: {centroids} centroids are fitted to "
                f"{PER_CENTROID * centroids:,} rows, {needed:.3g} GB; raise trainer.cache_gb={self.cache_gb:g}"
                + (", or take fewer candidates.lists" if self.best.search == "ivf" else "")
            )
