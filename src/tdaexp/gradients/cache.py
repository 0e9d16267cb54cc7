"""A cache of captured batches that stays within a stated size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from tdaexp.gradients.factors import Factors, nbytes


class FactorCache:
    """Keeps the factors of the batches that were used last, up to `limit` bytes.

    A batch larger than the limit is handed out but not kept. `runs` counts how often a batch had to be run.
    """

    def __init__(self, run: Callable[[int], list[Factors]], limit: int) -> None:
        """`run(batch number)` makes a batch's factors; it must give the same bits each time."""
        self._run, self._limit = run, limit
        self._kept: OrderedDict[int, list[Factors]] = OrderedDict()
        self._bytes = 0
        self.runs = 0

    def get(self, batch: int) -> list[Factors]:
        """Factors of a batch, run if they are not at hand."""
        if batch in self._kept:
            self._kept.move_to_end(batch)
            return self._kept[batch]
        factors = self._run(batch)
        self.runs += 1
        self._kept[batch] = factors
        self._bytes += nbytes(factors)
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= nbytes(dropped)
        return factors

    def order(self, batches: list[int]) -> list[int]:
        """The same batches, those at hand first: a second sweep then starts with what the first one left."""
        return sorted(batches, key=lambda batch: batch not in self._kept)
