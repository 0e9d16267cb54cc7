"""Pairs of examples from two batches, cut so that their temporaries stay small, and dot products of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime.deferred import send
from tdaexp.runtime.rehearsal import alike

CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Memory for one step's temporaries of pairs: what a processor keeps near, what keeps a GPU busy. Constants, because
results may depend on them in the last bits."""

DENSE = 64
"""All n x m products are taken where they are at most so many times the pairs: arithmetic beats gathering."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of examples: `left` [P] and `right` [P] int64 are rows of the two batches. On the host; see `on`."""

    left: Tensor
    right: Tensor
    _sent: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.left)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both sides on a device, sent there once."""
        if device not in self._sent:
            self._sent[device] = send(self.left, device), send(self.right, device)
        return self._sent[device]

    @cached_property
    def lefts(self) -> Pairs:
        """Distinct left rows [n] as `left`, and each pair's place among them [P] as `right`."""
        return _distinct(self.left)

    @cached_property
    def rights(self) -> Pairs:
        """Distinct right rows [m] as `left`, and each pair's place among them [P] as `right`."""
        return _distinct(self.right)

    @property
    def dense(self) -> list[Pairs]:
        """The pairs cut so that taking all n x m products of a part wastes at most a factor of `DENSE`."""
        if len(self.lefts.left) * len(self.rights.left) <= DENSE * len(self):
            return [self]
        return self._parts

    @cached_property
    def form(self) -> tuple[int, ...]:
        """All that the work with these pairs depends on: how many there are, and the rows of each side in each part."""
        return len(self), *(len(side.left) for part in [self, *self.dense] for side in (part.lefts, part.rights))

    @cached_property
    def _parts(self) -> list[Pairs]:
        return list(self.split(DENSE))

    def split(self, size: int) -> Iterator[Pairs]:
        """Consecutive pairs, at most `size` at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            sent = {device: (left[part], right[part]) for device, (left, right) in self._sent.items()}
            yield Pairs(self.left[part], self.right[part], sent)

    def by_chunks(self, bytes_per_pair: int, device: torch.device, run: Callable[[Pairs], Tensor]) -> Tensor:
        """What `run` gives of consecutive pairs, as many at a time as have temporaries on a device in `CHUNK_BYTES`."""
        limit = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
        work = object()  # chunks of this call that are as long are alike
        chunks = self.split(max(1, limit // max(bytes_per_pair, 1)))
        return torch.cat([alike((work, len(chunk)), partial(run, chunk)) for chunk in chunks])


def _distinct(rows: Tensor) -> Pairs:
    found, places = np.unique(rows.numpy(), return_inverse=True)
    return Pairs(torch.from_numpy(found), torch.from_numpy(places))


def pairs_of(left: np.ndarray, right: np.ndarray) -> Pairs:
    """The pairs of two arrays of rows [P]."""
    return Pairs(torch.from_numpy(left), torch.from_numpy(right))


def products_of_rows(g: Tensor, h: Tensor, pairs: Pairs) -> Tensor:
    """Dot products [P] of rows of g [n, D] and h [m, D]."""
    if len(g) * len(h) <= DENSE * len(pairs):
        return (g @ h.T)[pairs.on(g.device)]
    values = []
    for part in pairs.dense:
        (lefts, left_at), (rights, right_at) = part.lefts.on(g.device), part.rights.on(g.device)
        values.append((g[lefts] @ h[rights].T)[left_at, right_at])
    return torch.cat(values)
