"""The products of one block: its queries are captured and held, and its candidates stream past them.

As soon as the backward pass has a component of a training batch, it is multiplied with the held queries' and
dropped: no training example's factors are ever held as a whole.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.examples import Examples, collate
from tdaexp.gradients.assembly import Consumer
from tdaexp.gradients.capture import capture
from tdaexp.gradients.dots import pair_dots, self_dots
from tdaexp.gradients.factors import Factors, VectorFactors, accumulation_dtype, compact
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.pairs import pairs_of
from tdaexp.gradients.schedule import Block
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.deferred import Deferred

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Held:
    """A batch of queries with its factors in component order, and where its rows are in the block."""

    members: list[int]
    first: int
    factors: list[Factors]


@dataclass
class BlockWork:
    """Computes blocks; counts passes, and how many components the last queries hold explicitly."""

    model: PreTrainedModel
    components: ComponentMap
    train: Examples
    queries: Examples
    pairs: np.ndarray
    reduction: str
    pad_id: int
    passes: Counter[str] = field(default_factory=Counter)
    explicit: int = 0

    def __post_init__(self) -> None:
        self.column = {name: k for k, name in enumerate(self.components.names)}
        self.device = next(self.model.parameters()).device
        self.dtype = accumulation_dtype(self.model.dtype)

    def block(self, block: Block) -> dict[str, np.ndarray]:
        """The values of a block's queries, in the order in which the block lists them."""
        rows, candidates = len(block.members), self.pairs.shape[1]
        kind, width = str(self.dtype).removeprefix("torch."), len(self.components)
        values = {name: np.full((rows, candidates, width), np.nan, kind) for name in ("dot", "train_sq")}
        values["query_sq"] = np.full((rows, width), np.nan, kind)
        held: list[Held] = []
        later = Deferred()
        for members in block.queries:
            first = held[-1].first + len(held[-1].members) if held else 0
            rows_of_batch = values["query_sq"][first : first + len(members)]
            held.append(Held(members, first, self._hold(members, rows_of_batch, later)))
        for members in block.train:
            self._stream(members, held, values, later)
        later.flush()
        return values

    def _hold(self, members: list[int], query_sq: np.ndarray, later: Deferred) -> list[Factors]:
        """Capture a batch of queries: factors in component order; squared norms go to `query_sq` [B, K]."""
        found: dict[int, Factors] = {}
        squares = self._blank(len(members))

        def consume(components: list[Component], factors: list[Factors]) -> None:
            columns = [self.column[component.name] for component in components]
            mine = [compact(one) for one in factors]
            _fill(squares, columns, self_dots(mine))
            found.update(zip(columns, mine, strict=True))

        def write(squares: np.ndarray, losses: np.ndarray) -> None:
            require_finite(squares, ids, self.components.names, losses)
            query_sq[:] = squares

        ids, losses = self._pass("query", self.queries, members, consume)
        later.add(write, squares, losses)
        self.explicit = sum(isinstance(one, VectorFactors) for one in found.values())
        return [found[k] for k in range(len(self.components))]

    def _stream(self, members: list[int], held: list[Held], values: dict[str, np.ndarray], later: Deferred) -> None:
        """Run a batch of training examples past the held queries; write down the products of its pairs."""
        row = np.full(len(self.train), -1)
        row[members] = np.arange(len(members))
        meetings = []
        for batch in held:
            candidates = self.pairs[batch.members]
            places = np.nonzero(np.where(candidates >= 0, row[candidates], -1) >= 0)
            if len(places[0]):
                there = row[candidates[places]]
                pairs = pairs_of(places[0], there)
                pairs.on(self.device)
                meetings.append((batch, places, there, pairs, self._blank(len(there))))
        squares = self._blank(len(members))

        def consume(components: list[Component], factors: list[Factors]) -> None:
            columns = [self.column[component.name] for component in components]
            mine = [compact(one) for one in factors]
            _fill(squares, columns, self_dots(mine))
            for batch, _, _, pairs, dots in meetings:
                _fill(dots, columns, pair_dots([batch.factors[k] for k in columns], mine, pairs))

        def write(squares: np.ndarray, losses: np.ndarray, *dots: np.ndarray) -> None:
            require_finite(squares, ids, self.components.names, losses)
            for (batch, (rows, columns), there, _, _), own in zip(meetings, dots, strict=True):
                values["dot"][batch.first + rows, columns] = own
                values["train_sq"][batch.first + rows, columns] = squares[there]

        ids, losses = self._pass("training", self.train, members, consume)
        later.add(write, squares, losses, *(dots for *_, dots in meetings))

    def _blank(self, rows: int) -> Tensor:
        return torch.full((rows, len(self.components)), torch.nan, device=self.device, dtype=self.dtype)

    def _pass(self, what: str, examples: Examples, members: list[int], consume: Consumer) -> tuple[list[str], Tensor]:
        """One forward-backward pass: ids and losses of its examples."""
        chosen = [examples[index] for index in members]
        batch = collate(chosen, self.pad_id)
        losses = capture(self.model, self.components, batch, consume, reduction=self.reduction)
        self.passes[what] += len(members)
        return [example.id for example in chosen], losses

    def summary(self) -> str:
        """One line: how many passes were made, and in which form gradients were held."""
        passes = ", ".join(f"{count} {what}" for what, count in self.passes.items())
        return (
            f"forward-backward passes: {passes}; gradients held: {self.explicit} of {len(self.components)} "
            "components explicitly, the others as factors"
        )


def _fill(table: Tensor, columns: list[int], values: Tensor) -> None:
    """Write values [n, k] into columns of a table: one by one, as a list of numbers would first be sent there."""
    for column, one in zip(columns, values.unbind(1), strict=True):
        table[:, column] = one
