"""Pairs of examples from two batches, cut so that their temporaries stay small, and dot products of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 27
"""Memory for the temporaries of one step; a constant, because results may depend on it in the last bits."""

DENSE = 64
"""All n x m products are taken where they are at most so many times the pairs: arithmetic beats gathering."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of examples: `left` [P] and `right` [P] int64 are rows of the two batches."""

    left: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.left)

    @cached_property
    def lefts(self) -> tuple[Tensor, Tensor]:
        """Distinct left rows [n], and each pair's place among them [P]."""
        return torch.unique(self.left, return_inverse=True)

    @cached_property
    def rights(self) -> tuple[Tensor, Tensor]:
        """Distinct right rows [m], and each pair's place among them [P]."""
        return torch.unique(self.right, return_inverse=True)

    @cached_property
    def dense(self) -> list[Pairs]:
        """The pairs cut so that taking all n x m products of a part wastes at most a factor of `DENSE`."""
        if len(self.lefts[0]) * len(self.rights[0]) <= DENSE * len(self):
            return [self]
        return list(self.split(DENSE))

    def split(self, size: int) -> Iterator[Pairs]:
        """Consecutive pairs, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield Pairs(self.left[start : start + size], self.right[start : start + size])

    def chunks(self, bytes_per_pair: int) -> Iterator[Pairs]:
        """Consecutive pairs whose temporaries fit in `CHUNK_BYTES`."""
        return self.split(max(1, CHUNK_BYTES // max(bytes_per_pair, 1)))


def products_of_rows(g: Tensor, h: Tensor, pairs: Pairs) -> Tensor:
    """Dot products [P] of rows of g [n, D] and h [m, D]."""
    if len(g) * len(h) <= DENSE * len(pairs):
        return (g @ h.T)[pairs.left, pairs.right]
    values = []
    for part in pairs.dense:
        (lefts, left_at), (rights, right_at) = part.lefts, part.rights
        values.append((g[lefts] @ h[rights].T)[left_at, right_at])
    return torch.cat(values)
