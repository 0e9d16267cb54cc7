"""Candidates that are not chosen beforehand: each query's most helpful and most harmful training examples, as a method
that keeps an index of them (`tdaexp.index`) finds them among all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from tdaexp.data.candidates import Candidates
from tdaexp.data.nearest import NEEDED
from tdaexp.runtime.errors import UserError, unknown

EXACT = "exact"
PER_CENTROID = 39
"""Rows that a centroid is made of at least: with fewer faiss itself warns."""
READ_BY = {
    "lists": ("ivf",),
    "probes": ("ivf",),
    "code_bytes": ("pq",),
    "rescored": ("flat", "ivf", "pq"),
    "measured": ("flat", "ivf", "pq"),
}
"""Keys that not every search reads."""
SEARCHES = (EXACT, "flat", "ivf", "pq")
CODES = 256
"""Centroids of each part of a row, whose number is a byte (pq)."""


@dataclass
class Best:
    """How the candidates are found among all rows of an index.

    k: how many of the most helpful, and how many of the most harmful training examples each query gets.
    search: `exact`, all products; or by faiss, whose finds are scored again from the rows: `flat` (all rows as they
        are), `ivf` (in `lists`, of which `probes` are looked through; 8 bits an entry), `pq` (all, in `code_bytes`).
    lists: null = the square root of the number of rows. probes: null = an eighth of the lists.
    code_bytes: of a row; null = 64.
    rescored: so many times k are scored again on each side; null = 10.
    measured: so many of the questions are searched exactly, too, to tell what was missed; null = the first 20 that this
        search is asked, in however many runs, whose mean is remembered.
    """

    k: int = 100
    search: str = EXACT
    lists: int | None = None
    probes: int | None = None
    code_bytes: int | None = None
    rescored: int | None = None
    measured: int | None = None

    def __post_init__(self) -> None:
        """Refuse no example, a search that nobody knows or that needs what is not installed, and keys of another."""
        if self.k < 1:
            raise UserError(f"candidates.k={self.k}: needs at least 1 training example on each side of a query")
        if self.search not in SEARCHES:
            raise unknown("search", self.search, SEARCHES, "candidates.search")
        for key, searches in READ_BY.items():
            value, least = getattr(self, key), 0 if key == "measured" else 1
            if value is not None and self.search not in searches:
                raise UserError(
                    f"candidates.{key}={value}: is read by candidates.search={' or '.join(searches)}; leave it out"
                )
            if value is not None and value < least:
                raise UserError(f"candidates.{key}={value}: must be at least {least}, or null")
        if self.lists is not None and (self.probes or 0) > self.lists:
            raise UserError(f"candidates.probes={self.probes}: must be at most candidates.lists={self.lists}")
        if self.search != EXACT and find_spec("faiss") is None:
            raise UserError(
                f"candidates.search={self.search}: needs the package 'faiss'; {NEEDED}, or take search=exact"
            )

    def check_rows(self, count: int) -> None:
        """Refuse an index of so many rows that is too small to be searched so. Errors (UserError)."""
        centroids = {"ivf": self.lists or 1, "pq": CODES}.get(self.search, 0)
        if count < PER_CENTROID * centroids:
            fewer = (
                f"candidates.lists={count // PER_CENTROID} or fewer, or "
                if self.lists and count >= PER_CENTROID
                else ""
            )
            raise UserError(
                f"candidates.search={self.search}: {centroids} centroids are fitted to at least "
                f"{PER_CENTROID * centroids:,} rows, and there are {count:,}; take {fewer}candidates.search=exact"
            )

    def size(self, train: Sequence[Any]) -> int:
        """How many candidates a query gets: both sides, or all there are."""
        return min(2 * self.k, len(train))

    def select(self, queries: Sequence[Any], train: Sequence[Any]) -> Candidates:
        """No pair yet."""
        nothing = (len(queries), 0)
        return Candidates(np.zeros(nothing, dtype=np.int64), np.zeros(nothing))
