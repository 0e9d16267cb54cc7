"""Dot products of captured gradients with explicit vectors, component by component.

For a query that has been multiplied by an inverse curvature there is nothing left but an explicit vector v [size] over
the components (layout in `vectors`). The training examples that it meets stream past it as factors: for a linear
component Σ_t δ_tᵀ V a_t, formed as <Σ_t δ_t a_tᵀ, V>, which costs T I O once per training example and I O per pair,
where the contraction would cost T I O per pair. Queries are held in blocks of bounded memory, as in `products`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.gradients.capture import Loss, capture, cross_entropy, frozen
from tdaexp.gradients.factors import EmbeddingFactors, Factors, TiedFactors, accumulation_dtype
from tdaexp.gradients.finite import check_losses, require_finite
from tdaexp.gradients.pairs import Pairs, pairs_of, products_of_rows
from tdaexp.gradients.schedule import Block, halves, kept_plan, listed, plan_blocks, rows_of
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred, send
from tdaexp.runtime.shrink import Shrinking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    model: PreTrainedModel,
    components: ComponentMap,
    train: Examples,
    pairs: np.ndarray,
    vectors: Vectors,
    *,
    store: Path,
    reduction: str = "sum",
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    pad_id: int = 0,
) -> np.ndarray:
    """Dot products [Q, C, K] of training examples' loss gradients with the queries' vectors, by component.

    `pairs` [Q, C] int indexes `train`, -1 for no candidate (NaN in the result). `vectors` is asked for the queries of a
    block at a time, which together take at most `cache_gb` (10^9 bytes). `store` is a folder named after all that the
    result depends on; finished blocks are not computed again, and a killed run goes on with the same bits.

    Errors (UserError): an example without loss, NaN or Inf in a gradient.
    """
    check_losses(Examples([train[index] for index in np.unique(pairs[pairs >= 0])]), "training")
    work = _Work(model, components, train, pairs, vectors, reduction, pad_id)
    sizes = np.full(len(pairs), work.space.size * work.dtype.itemsize, dtype=np.float64)
    # How queries are batched does not matter here: each is a vector already.
    wanted = plan_blocks(pairs, np.ones(len(pairs)), train.lengths, sizes, tokens_per_batch, cache_gb * 1e9)
    plan = kept_plan(store.with_name(store.name + ".plan.json"), [block for block in wanted if block.train])
    kind = str(work.dtype).removeprefix("torch.")
    result = np.full((*pairs.shape, len(components)), np.nan, kind)
    if not plan:
        return result
    order = listed(plan)
    shape = (len(order), pairs.shape[1], len(components))
    kept = BlockStore(store, {"influence": (shape, kind)}, rows_of(plan))
    compute = Shrinking(work.block, lambda block: halves(block, pairs), np.concatenate)
    with frozen(model), kept.pending() as missing:
        for number in kept.each(missing, "influence of training examples"):
            kept.write(number, {"influence": compute(plan[number])})
    result[order] = kept.read()["influence"]
    return result


class _Work:
    """Computes blocks of `vector_products`."""

    def __init__(
        self,
        model: PreTrainedModel,
        components: ComponentMap,
        train: Examples,
        pairs: np.ndarray,
        vectors: Vectors,
        reduction: str,
        pad_id: int,
    ) -> None:
        self.model, self.components, self.train, self.pairs, self.vectors = model, components, train, pairs, vectors
        self.reduction, self.pad_id = reduction, pad_id
        self.space = VectorSpace(model, components)
        self.columns = dict(zip(components.names, enumerate(self.space.slices), strict=True))
        self.device, self.dtype = next(model.parameters()).device, accumulation_dtype(model.dtype)

    def block(self, block: Block) -> np.ndarray:
        """Values [n, C, K] of a block's queries, in the order in which it lists them."""
        queries = block.members
        vectors = self.vectors(queries).to(self.device, self.dtype)
        mine = self.pairs[queries]
        kind = str(self.dtype).removeprefix("torch.")
        values = np.full((*mine.shape, len(self.components)), np.nan, kind)
        later = Deferred()
        for members in block.train:
            places = np.nonzero(np.isin(mine, members))
            row = {index: place for place, index in enumerate(members)}
            there = np.array([row[int(index)] for index in mine[places]])
            self._batch(members, vectors, pairs_of(places[0], there), partial(values.__setitem__, places), later)
        later.flush()
        return values

    def _batch(
        self,
        members: list[int],
        vectors: Tensor,
        pairs: Pairs,
        write: Callable[[np.ndarray], None],
        later: Deferred,
    ) -> None:
        """Dot products [P, K] with a batch of training examples, for `write`: one forward and backward pass."""
        chosen = [self.train[index] for index in members]
        dots = torch.full((len(pairs), len(self.components)), torch.nan, device=self.device, dtype=self.dtype)
        pairs.on(self.device)

        def consume(arrived: list[Component], factors: list[Factors]) -> None:
            for component, one in zip(arrived, factors, strict=True):
                column, place = self.columns[component.name]
                dots[:, column] = against(one, vectors[:, place], pairs)

        def take(dots: np.ndarray, losses: np.ndarray) -> None:
            met = pairs.right.numpy()
            require_finite(dots, [chosen[index].id for index in met], self.components.names, losses[met])
            write(dots)

        losses = capture(self.model, self.components, collate(chosen, self.pad_id), consume, reduction=self.reduction)
        later.add(take, dots, losses)


def gradient_vectors(
    model: PreTrainedModel,
    components: ComponentMap,
    examples: Examples,
    *,
    loss: Loss = cross_entropy,
    reduction: str = "sum",
    tokens_per_batch: int = 4096,
    pad_id: int = 0,
) -> Tensor:
    """Explicit loss gradients [N, size] of a few examples over all components: memory N x size.

    Errors (UserError): an example without loss, NaN or Inf in a gradient.
    """
    check_losses(examples, "query")
    space = VectorSpace(model, components)
    places = dict(zip(components.names, space.slices, strict=True))
    columns = {name: column for column, name in enumerate(components.names)}
    device = next(model.parameters()).device
    result = torch.empty(len(examples), space.size, dtype=accumulation_dtype(model.dtype), device=device)
    later = Deferred()
    order = np.argsort(examples.lengths, kind="stable").tolist()
    for members in token_budget_batches(examples.lengths, order, tokens_per_batch):
        chosen = [examples[index] for index in members]
        rows, largest = send(np.array(members), device), result.new_empty(len(members), len(components))

        def consume(
            arrived: list[Component], factors: list[Factors], rows: Tensor = rows, largest: Tensor = largest
        ) -> None:
            for component, one in zip(arrived, factors, strict=True):
                gradient = one.materialise()
                result[rows, places[component.name]] = gradient
                largest[:, columns[component.name]] = gradient.abs().amax(1)

        with frozen(model):
            losses = capture(model, components, collate(chosen, pad_id), consume, loss=loss, reduction=reduction)
        ids = [example.id for example in chosen]
        later.add(partial(_check, ids, components.names), largest, losses)
    later.flush()
    return result


def _check(ids: list[str], names: list[str], largest: np.ndarray, losses: np.ndarray) -> None:
    require_finite(largest, ids, names, losses)
