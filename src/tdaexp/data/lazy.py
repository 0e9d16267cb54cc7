"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")
AT_ONCE = 1024
"""Items that are in memory while others are made or looked through."""


class Lazy(Sequence[T]):
    """A sequence that makes its items, `one` by its number or `some` that lie evenly, and keeps none of them."""

    @abstractmethod
    def one(self, row: int) -> T:
        """The item of a number from 0."""

    def some(self, rows: range) -> list[T]:
        """The items of some numbers."""
        return [self.one(row) for row in rows]

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: int | slice) -> T | list[T]:
        """An item; those of a slice."""
        rows = range(len(self))
        return self.some(rows[row]) if isinstance(row, slice) else self.one(rows[row])

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]
