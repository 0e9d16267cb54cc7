"""Dot products of captured gradients with explicit vectors, component by component.

For a query that has been multiplied by an inverse curvature there is nothing left but an explicit vector v [size] over
the components (layout in `vectors`). The training examples that it meets stream past it as factors: for a linear
component Σ_t δ_tᵀ V a_t, formed as <Σ_t δ_t a_tᵀ, V>, which costs T I O once per training example and I O per pair,
where the contraction would cost T I O per pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.factors import EmbeddingFactors, Factors, TiedFactors
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.pair_driver import PairWork, WritePairs, WriteQueries, meet_pairs
from tdaexp.gradients.pairs import Pairs, pairs_of, products_of_rows
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.schedule import Block, plan_blocks
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import Component
from tdaexp.runtime.deferred import Deferred, send
from tdaexp.runtime.rows import Rows

Vectors = Callable[[list[int]], Tensor]
"""Numbers of queries to their vectors [n, size] over all components."""

CHUNK_BYTES = 1 << 28
"""Memory for explicit gradients of training examples."""


def against(factors: Factors, vectors: Tensor, pairs: Pairs) -> Tensor:
    """Dot products [P] of one component's gradients with explicit vectors [n, size].

    `pairs.left` are rows of `vectors`, `pairs.right` examples of `factors`.
    """
    if isinstance(factors, TiedFactors):
        return against(factors.embedding, vectors, pairs) + against(factors.head, vectors, pairs)
    if isinstance(factors, EmbeddingFactors):
        return _embedding(factors, vectors, pairs)
    step = max(1, CHUNK_BYTES // (factors.size * vectors.element_size()))
    if step >= factors.examples:
        return products_of_rows(vectors, factors.materialise().to(vectors.dtype), pairs)
    result, right = vectors.new_zeros(len(pairs)), pairs.right.numpy()
    for start in range(0, factors.examples, step):
        mine = np.flatnonzero((right >= start) & (right < start + step))
        if len(mine):
            gradients = factors.materialise(slice(start, start + step)).to(vectors.dtype)
            part = pairs_of(pairs.left.numpy()[mine], right[mine] - start)
            result[send(mine, result.device)] = products_of_rows(vectors, gradients, part)
    return result


def _embedding(factors: EmbeddingFactors, vectors: Tensor, pairs: Pairs) -> Tensor:
    """Σ_t δ_t · V[token_t]: only the rows of the tokens that occur are read."""
    rows = vectors.view(len(vectors), factors.vocabulary, -1)
    sides = zip(pairs.left.numpy(), pairs.right.numpy(), strict=True)
    values = [rows[int(query)][factors.ids[int(example)]] for query, example in sides]
    return (torch.stack(values) * factors.deltas[pairs.on(vectors.device)[1]].to(vectors.dtype)).flatten(1).sum(1)


def vector_products(
    train: Gradients,
    pairs: np.ndarray,
    vectors: Vectors,
    *,
    store: Path,
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
) -> Rows:
    """Dot products [Q, C, K] of training examples' loss gradients with the queries' vectors, by component.

    `pairs` [Q, C] int indexes `train`, -1 for no candidate (NaN in the result). `vectors` is asked for the queries of a
    block at a time, which together take at most `cache_gb` (10^9 bytes). `store` is a folder named after all that the
    result depends on. Errors (UserError): an example without loss, NaN or Inf in a gradient.
    """
    work = VectorPairs(train, vectors, tokens_per_batch)
    return meet_pairs(work, pairs, store=store, cache_gb=cache_gb)["influence"]


@dataclass
class VectorPairs(PairWork[Tensor]):
    """Holds the queries' vectors [n, size] on the model's device."""

    train: Gradients
    vectors: Vectors
    tokens_per_batch: int

    arrays = {"influence": "pair"}  # noqa: RUF012 (a constant of the class)
    doing = "influence of training examples"

    def __post_init__(self) -> None:
        self.names, self.kind = self.train.components.names, self.train.kind
        self.width = len(self.names)
        self.space = VectorSpace(self.train.model, self.train.components)
        self.columns = dict(zip(self.names, enumerate(self.space.slices), strict=True))

    def plan(self, pairs: np.ndarray, memory: float) -> list[Block]:
        """How queries are batched does not matter here: each is a vector already."""
        self.train.check(np.unique(pairs[pairs >= 0]).tolist(), "training")
        sizes = np.full(len(pairs), self.space.size * self.train.dtype.itemsize, dtype=np.float64)
        return plan_blocks(pairs, np.ones(len(pairs)), self.train.lengths, sizes, self.tokens_per_batch, memory)

    def ready(self):  # type: ignore[no-untyped-def]
        """The model is frozen."""
        return self.train.ready()

    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> Tensor:
        """Vectors of a block that has any candidate."""
        if not block.train:
            return torch.empty(0, device="cpu")
        return self.vectors(block.members).to(self.train.device, self.train.dtype)

    def meet(self, batch: list[int], held: Tensor, pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """One forward and backward pass: dot products [P, K]."""
        ids = [self.train.ids[index] for index in batch]
        shape = (len(pairs), self.width)
        dots = torch.full(shape, torch.nan, device=self.train.device, dtype=self.train.dtype)
        pairs.on(self.train.device)

        def consume(arrived: list[Component], factors: list[Factors]) -> None:
            for component, one in zip(arrived, factors, strict=True):
                column, place = self.columns[component.name]
                dots[:, column] = against(one, held[:, place], pairs)

        def take(dots: np.ndarray, losses: np.ndarray) -> None:
            met = pairs.right.numpy()
            require_finite(dots, [ids[index] for index in met], self.names, losses[met])
            write("influence", dots)

        later.add(take, dots, self.train.capture(batch, consume))


def gradient_vectors(gradients: Gradients, members: list[int], tokens_per_batch: int = 4096) -> Tensor:
    """Explicit loss gradients [n, size] of a few examples over all components: memory n x size.

    Errors (UserError): an example without loss, NaN or Inf in a gradient.
    """
    gradients.check(members, "query")
    space, names = VectorSpace(gradients.model, gradients.components), gradients.components.names
    places = dict(zip(names, space.slices, strict=True))
    columns = {name: column for column, name in enumerate(names)}
    result = torch.empty(len(members), space.size, dtype=gradients.dtype, device=gradients.device)
    later, row = Deferred(), {member: place for place, member in enumerate(members)}
    for batch in gradients.batches(tokens_per_batch, members):
        rows = send(np.array([row[member] for member in batch]), gradients.device)
        largest = result.new_empty(len(batch), len(names))

        def consume(
            arrived: list[Component], factors: list[Factors], rows: Tensor = rows, largest: Tensor = largest
        ) -> None:
            for component, one in zip(arrived, factors, strict=True):
                gradient = one.materialise()
                result[rows, places[component.name]] = gradient
                largest[:, columns[component.name]] = gradient.abs().amax(1)

        with gradients.ready():
            losses = gradients.capture(batch, consume)
        later.add(partial(_check, [gradients.ids[member] for member in batch], names), largest, losses)
    later.flush()
    return result


def _check(ids: list[str], names: list[str], largest: np.ndarray, losses: np.ndarray) -> None:
    require_finite(largest, ids, names, losses)
