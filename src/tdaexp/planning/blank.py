"""Examples with nothing in them: what a plan's passes read, of however many examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from tdaexp.data.examples import Example
from tdaexp.data.sizes import BlankExamples, Sizes
from tdaexp.runtime.fingerprint import fingerprint


class Blank(BlankExamples):
    """As `sizes.examples(name)`, of those at some `places`; each is made when it is asked for, as there may be many."""

    def __init__(self, sizes: Sizes, name: str, places: np.ndarray | None = None) -> None:
        self.sizes, self.name = sizes, name
        self.places = np.arange(len(sizes)) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return one example, or the examples of a slice."""
        places = self.places[index]
        return Blank(self.sizes, self.name, places) if isinstance(index, slice) else self._one(int(places))

    def __iter__(self) -> Iterator[Example]:
        return map(self._one, self.places.tolist())

    def _one(self, place: int) -> Example:
        length, predicted = int(self.sizes.tokens[place]), int(self.sizes.predicted[place])
        mask = np.arange(length) >= length - predicted
        return Example(f"{self.name}{place}", np.zeros(length, dtype=np.int64), mask, "")

    def select(self, indices: Sequence[int] | np.ndarray) -> Blank:
        """The examples at `indices`, in that order."""
        return Blank(self.sizes, self.name, self.places[np.asarray(indices, dtype=np.int64)])

    @property
    def items(self) -> list[Example]:  # type: ignore[override]
        """All of them, in memory."""
        return list(self)

    @cached_property
    def ids(self) -> list[str]:
        """Ids in order."""
        return [f"{self.name}{place}" for place in self.places.tolist()]

    @property
    def lengths(self) -> np.ndarray:
        """Token counts [N]."""
        return self.sizes.tokens[self.places]

    @property
    def contrastive(self) -> bool:
        """No."""
        return False

    def fingerprint(self) -> str:
        """Of their names: it costs nothing."""
        return fingerprint(f"{self.name}{self.places[0]}" if len(self) else "", len(self))
