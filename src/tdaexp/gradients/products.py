"""Per-component dot products and squared norms of per-example gradients, for the pairs of a candidate list.

Both self-products are kept beside the dot product, so that the cosine of any subset of components is a matter of sums
(Select or Project, A.2). A block's queries are captured and held as factors; its candidates stream past them: as soon
as the backward pass has a component of a training batch, it is multiplied with the held queries' and dropped.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.dots import pair_dots, self_dots
from tdaexp.gradients.factors import Factors, VectorFactors, compact
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.memory import held_bytes
from tdaexp.gradients.pair_driver import GradientPairs, WritePairs, WriteQueries, meet_pairs
from tdaexp.gradients.pairs import Pairs, pairs_of
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.schedule import Block
from tdaexp.models.components import Component
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.rehearsal import sampled
from tdaexp.runtime.rows import Rows

log = logging.getLogger(__name__)


def component_products(
    train: Gradients,
    queries: Gradients,
    pairs: np.ndarray,
    *,
    store: Path,
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
) -> dict[str, Rows]:
    """Dot products of per-example loss gradients, by component, for Q queries and their C candidates each.

    `pairs` [Q, C] int indexes `train`, -1 for no candidate. Products are float32, or float64 for a float64 model.
    Returns `dot` [Q, C, K], `query_sq` [Q, K], `train_sq` [Q, C, K], NaN where there is no candidate. `store` is a
    folder named after all that the result depends on. `cache_gb` (10^9 bytes) bounds the queries' gradients that are
    held at a time: with less memory, training examples run more often.

    Errors (UserError): an example without loss, NaN or Inf in a gradient, a candidate outside the training set.
    """
    return meet_pairs(Products(train, queries, tokens_per_batch), pairs, store=store, cache_gb=cache_gb)


@dataclass
class Held:
    """A batch of queries with its factors in component order, and where its rows are in the block."""

    rows: slice
    factors: list[Factors]
    ballast: Tensor | None = None
    """In a rehearsal, what the batches take that this one stands for."""


@dataclass
class Products(GradientPairs[list[Held]]):
    """Holds queries as factors; counts passes, and how many components the last queries hold explicitly."""

    passes: Counter[str] = field(default_factory=Counter)
    explicit: int = 0

    arrays = {"dot": "pair", "train_sq": "pair", "query_sq": "query"}  # noqa: RUF012 (a constant of the class)
    doing = "gradient products"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = self.train.components.names
        self.width = len(self.names)
        self.column = {name: k for k, name in enumerate(self.names)}

    def held_bytes(self) -> np.ndarray:
        """Of the form in which each query's gradient is held."""
        side = self.queries
        if side.transform is not None:
            return np.full(len(side), side.components.sizes.sum() * side.dtype.itemsize, dtype=np.float64)
        reach = side.objective.reach(side.model, side.examples)
        return held_bytes(side.components, reach, next(side.model.parameters()).dtype)

    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> list[Held]:
        """Capture the queries, batch by batch: factors in component order."""
        held = []
        for rows in sampled(block.rows, self.held_size(block), lambda rows: rows.stop - rows.start):
            members = block.members[rows]
            found: dict[int, Factors] = {}

            def keep(columns: list[int], factors: list[Factors], found: dict[int, Factors] = found) -> None:
                found.update(zip(columns, factors, strict=True))

            self._run("query", self.queries, members, keep, later, partial(write, "query_sq", rows))
            held.append(Held(rows, [found[k] for k in range(self.width)]))
            self.explicit = sum(isinstance(one, VectorFactors) for one in held[-1].factors)
        return held if len(held) == len(block.rows) else self._repeated(held[0], block)

    def _repeated(self, held: Held, block: Block) -> list[Held]:
        """One batch in place of all."""
        size = self.held_size(block)
        taken = sum(one.numel() * one.element_size() for factors in held.factors for one in factors.tensors)
        more = taken * (sum(map(size, block.rows)) / size(held.rows) - 1)
        ballast = torch.empty(int(more), dtype=torch.uint8, device=self.train.device)
        return [Held(rows, held.factors, ballast) for rows in block.rows]

    def meet(self, batch: list[int], held: list[Held], pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """Run a batch of training examples past the held queries."""
        meetings, dots = self._meetings(held, pairs), self._blank(len(pairs))

        def multiply(columns: list[int], factors: list[Factors]) -> None:
            for one, rows, part in sampled(meetings, lambda meeting: len(meeting[2])):
                _fill(dots[rows], columns, pair_dots([one.factors[k] for k in columns], factors, part))

        def write_squares(squares: np.ndarray) -> None:
            write("train_sq", squares[pairs.right.numpy()])

        self._run("training", self.train, batch, multiply, later, write_squares)
        later.add(partial(write, "dot"), dots)

    def _meetings(self, held: list[Held], pairs: Pairs) -> list[tuple[Held, slice, Pairs]]:
        """The pairs of each held batch, which come one after the other: where they are, and as rows of that batch."""
        left, right, found = pairs.left.numpy(), pairs.right.numpy(), []
        for one in held:
            start, stop = np.searchsorted(left, [one.rows.start, one.rows.stop])
            if start < stop:
                rows = slice(int(start), int(stop))
                part = pairs_of(left[rows] - one.rows.start, right[rows])
                part.on(self.train.device)
                found.append((one, rows, part))
        return found

    def _run(
        self,
        what: str,
        side: Gradients,
        members: list[int],
        take: Callable[[list[int], list[Factors]], None],
        later: Deferred,
        write: Callable[[np.ndarray], None],
    ) -> None:
        """One pass: components go to `take` by column, squared norms [B, K] to `write` once they are found finite."""
        squares, ids = self._blank(len(members)), [side.ids[index] for index in members]

        def consume(components: list[Component], factors: list[Factors]) -> None:
            columns = [self.column[component.name] for component in components]
            mine = [compact(one) for one in factors]
            _fill(squares, columns, self_dots(mine))
            take(columns, mine)

        def check(squares: np.ndarray, losses: np.ndarray) -> None:
            require_finite(squares, ids, self.names, losses)
            write(squares)

        losses = side.capture(members, consume)
        self.passes[what] += len(members)
        later.add(check, squares, losses)

    def _blank(self, rows: int) -> Tensor:
        return torch.full((rows, self.width), torch.nan, device=self.train.device, dtype=self.train.dtype)

    def done(self) -> None:
        """Log how many passes were made, and in which form gradients were held."""
        passes = ", ".join(f"{count} {what}" for what, count in self.passes.items())
        log.info(
            "forward-backward passes: %s; gradients held: %d of %d components explicitly, the others as factors",
            passes,
            self.explicit,
            self.width,
        )


def _fill(table: Tensor, columns: list[int], values: Tensor) -> None:
    """Write values [n, k] into columns of a table: one by one, as a list of numbers would first be sent there."""
    for column, one in zip(columns, values.unbind(1), strict=True):
        table[:, column] = one
