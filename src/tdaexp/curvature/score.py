"""Influence of candidate pairs: preconditioned query gradients dotted with training gradients, by component.

I(z, q) = ∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z), with m the measurement to be made larger: positive helps. Each query's gradient is
preconditioned once and held; every training batch is run past all held queries (`contraction` has the products).

Blocks of queries are a function of the pairs and of memory, kept in a plan, so that a killed run ends with the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.contraction import HeldLayer, Workspace, held_layer, layer_scores
from tdaexp.curvature.lambdas import form
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.sides import PairSide
from tdaexp.gradients.factors import LinearFactors
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.pairs import Pairs, pairs_of
from tdaexp.gradients.schedule import Block, halves, kept_plan, listed, plan_blocks, rows_of
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.shrink import Shrinking

Precondition = Callable[[str, Tensor], Tensor]
"""Layer name and query gradients [n, O, I] to what training gradients are dotted with, of the same shape."""


def pair_scores(
    train: PairSide,
    queries: PairSide,
    pairs: np.ndarray,
    precondition: Precondition,
    *,
    store: Path,
    query_rank: int | None = None,
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    pad_id: int = 0,
) -> np.ndarray:
    """Scores [Q, C, K] of candidate pairs by component (`train.layers.components`), NaN where there is none.

    `pairs` [Q, C] int indexes the training examples, -1 for none. `store` is a folder named after all that the result
    depends on. `query_rank` replaces each preconditioned query gradient by its best approximation of that rank.
    `cache_gb` (10^9 bytes) bounds the queries that are held at a time. Errors (UserError): an example without loss, a
    gradient that is not finite, sides with different layers.
    """
    pairs = np.asarray(pairs, dtype=np.int64)
    check_sides(train, queries, pairs)
    work = Scoring(train, queries, pairs, precondition, query_rank, pad_id)
    sizes = np.full(len(queries.ids), work.held_bytes(), dtype=float)
    wanted = plan_blocks(pairs, queries.lengths, train.lengths, sizes, tokens_per_batch, cache_gb * 1e9)
    plan = kept_plan(store.with_name(store.name + ".plan.json"), wanted)
    order = listed(plan)
    slices = rows_of(plan)
    kind = str(work.dtype).removeprefix("torch.")
    blocks = BlockStore(store, {"scores": ((*pairs.shape, len(train.layers.components)), kind)}, slices)
    compute = Shrinking(work.block, lambda block: halves(block, pairs), np.concatenate)
    with train.ready(), queries.ready(), blocks.pending() as missing:
        for number in blocks.each(missing, "influence"):
            blocks.write(number, {"scores": compute(plan[number])})
    return blocks.read()["scores"][np.argsort(order)]


def check_sides(train: PairSide, queries: PairSide, pairs: np.ndarray) -> None:
    """Refuse layers that do not match, pairs outside the training set, and examples without loss."""
    mine = [(layer.name, layer.outputs, layer.inputs) for layer in train.layers.layers]
    other = [(layer.name, layer.outputs, layer.inputs) for layer in queries.layers.layers]
    if mine != other:
        odd = sorted(set(mine) ^ set(other)) or mine
        raise UserError(f"the two models differ in layer '{odd[0][0]}'; name the components that both have and share")
    if pairs.ndim != 2 or len(pairs) != len(queries.ids):
        raise UserError(f"candidates of shape {pairs.shape} for {len(queries.ids)} queries; give one row per query")
    if pairs.size and (pairs.min() < -1 or pairs.max() >= len(train.ids)):
        raise UserError(f"a candidate's number is outside 0 … {len(train.ids) - 1}, the training examples")
    queries.check(range(len(queries.ids)), "query")
    train.check(np.unique(pairs[pairs >= 0]).tolist(), "training")


@dataclass
class Scoring:
    """Computes blocks of pairs."""

    train: PairSide
    queries: PairSide
    pairs: np.ndarray
    precondition: Precondition
    rank: int | None
    pad_id: int

    def __post_init__(self) -> None:
        self.dtype, self.device = self.train.dtype, self.train.device
        self.space = Workspace(self.dtype, self.device)

    def held_bytes(self) -> int:
        """Memory for one query."""
        layers, size = self.train.layers.layers, self.dtype.itemsize
        if self.rank is None:
            return sum(layer.size for layer in layers) * size
        return sum(min(layer.size, self.rank * (layer.outputs + layer.inputs)) for layer in layers) * size

    def block(self, block: Block) -> np.ndarray:
        """Scores of a block's queries, in the order in which the block lists them."""
        members = block.members
        later = Deferred()
        held = self.hold(block.queries, later)
        values = np.full((len(members), self.pairs.shape[1], len(self.train.layers.components)), np.nan)
        for batch in block.train:
            row = np.full(len(self.train.ids), -1)
            row[batch] = np.arange(len(batch))
            candidates = self.pairs[members]
            places = np.nonzero(np.where(candidates >= 0, row[candidates], -1) >= 0)
            there = row[candidates[places]]
            self._meet(batch, held, pairs_of(places[0], there), partial(values.__setitem__, places), later)
        later.flush()
        return values.astype(str(self.dtype).removeprefix("torch."))

    def hold(self, batches: list[list[int]], later: Deferred) -> dict[str, HeldLayer]:
        """Preconditioned gradients of a block's queries, by layer: once, each batch written to its place.

        `later` has the checks.
        """
        found: dict[str, HeldLayer] = {}
        count, start = sum(map(len, batches)), 0
        for members in batches:

            def take(layer: Layer, factors: LinearFactors, squares: Tensor, start: int = start) -> None:
                gradient = explicit(factors, self.dtype)
                squares[:] = gradient.flatten(1).square().sum(1)
                ready = held_layer(layer, self.precondition(layer.name, gradient).to(self.device), self.rank)
                if len(batches) == 1:
                    found[layer.name] = ready
                    return
                if layer.name not in found:
                    found[layer.name] = ready.room(count)
                found[layer.name].put(start, ready)

            run_layers(self.queries, members, self.pad_id, take, later)
            start += len(members)
        return found

    def _meet(
        self,
        members: list[int],
        held: dict[str, HeldLayer],
        pairs: Pairs,
        write: Callable[[np.ndarray], None],
        later: Deferred,
    ) -> None:
        """Run a training batch past the held queries: scores [P, K], for `write`."""
        values = torch.empty(len(pairs), len(self.train.layers.components), device=self.device, dtype=self.dtype)
        _, there = pairs.on(self.device)

        def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
            columns = self.train.layers.columns(layer)
            scores = layer_scores(layer, factors, held[layer.name], pairs, self.space)
            for column, one in zip(columns, scores.unbind(1), strict=True):
                values[:, column] = one
            check[:] = 0.0
            check.index_add_(0, there, scores.sum(1).to(check.dtype))

        run_layers(self.train, members, self.pad_id, take, later)
        later.add(write, values)


def run_layers(
    side: PairSide,
    members: list[int],
    pad_id: int,
    take: Callable[[Layer, LinearFactors, Tensor], None],
    later: Deferred,
) -> None:
    """One pass over some examples; `take` gets each layer's factors and fills in numbers [B] that must be finite.

    They are looked at when `later` is flushed.
    """
    names = side.layers.names
    checks = torch.full((len(names), len(members)), torch.nan, device=side.device, dtype=torch.float64)

    def consume(arrived: list[str], factors: list[LinearFactors]) -> None:
        for name, one in zip(arrived, factors, strict=True):
            place = names.index(name)
            take(side.layers.layers[place], one, checks[place])

    losses = side.capture(members, pad_id, consume)
    ids = [side.ids[index] for index in members]
    later.add(lambda checks, losses: require_finite(checks.T, ids, names, losses), checks, losses)


def explicit(factors: LinearFactors, dtype: torch.dtype) -> Tensor:
    """Gradients [B, O, I], the bias's column last."""
    return form(factors.inputs.to(dtype), factors.deltas.to(dtype), factors.bias)
