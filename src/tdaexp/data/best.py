"""Candidates that are not chosen beforehand: each query's most helpful and most harmful training examples, as a method
that keeps an index of them (`tdaexp.index`) finds them among all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdaexp.data.candidates import Candidates
from tdaexp.runtime.errors import UserError


@dataclass
class Best:
    """k: how many of the most helpful, and how many of the most harmful training examples each query gets."""

    k: int = 100

    def __post_init__(self) -> None:
        """Refuse none."""
        if self.k < 1:
            raise UserError(f"candidates.k={self.k}: needs at least 1 training example on each side of a query")

    def size(self, train: Sequence[Any]) -> int:
        """How many candidates a query gets: both sides, or all there are."""
        return min(2 * self.k, len(train))

    def select(self, queries: Sequence[Any], train: Sequence[Any]) -> Candidates:
        """No pair yet."""
        nothing = (len(queries), 0)
        return Candidates(np.zeros(nothing, dtype=np.int64), np.zeros(nothing))
