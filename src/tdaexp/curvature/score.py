"""Influence of candidate pairs: preconditioned query gradients dotted with training gradients, by component.

I(z, q) = −∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z), with m the measurement to be made larger: positive helps. Each query's gradient is
preconditioned once and held; every training batch is run past all held queries (`contraction` has the products).
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
from tdaexp.curvature.layers import Layer, Layers
from tdaexp.gradients.factors import Factors, LinearFactors
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.pair_driver import GradientPairs, WritePairs, WriteQueries, meet_pairs
from tdaexp.gradients.pairs import Pairs
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.schedule import Block
from tdaexp.models.components import Component
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.rehearsal import sampled
from tdaexp.runtime.rows import Rows

Precondition = Callable[[str, Tensor], Tensor]
"""Layer name and query gradients [n, O, I] to what training gradients are dotted with, of the same shape."""


@dataclass(frozen=True)
class LayerPairs:
    """The two sides of a score: gradients with respect to the same `layers` (`layers.map`), and P for the queries.

    `query_rank` replaces each preconditioned query gradient by its best approximation of that rank.
    """

    train: Gradients
    queries: Gradients
    layers: Layers
    precondition: Precondition
    query_rank: int | None = None

    def part(self, layers: Layers) -> LayerPairs:
        """Some of the layers; the sides' own maps of them are taken by name."""
        sides = [side.of(side.components.select(layers.names)) for side in (self.train, self.queries)]
        return LayerPairs(sides[0], sides[1], layers, self.precondition, self.query_rank)


def pair_scores(
    sides: LayerPairs, pairs: np.ndarray, *, store: Path, tokens_per_batch: int = 4096, cache_gb: float = 2.0
) -> Rows:
    """Scores [Q, C, K] of candidate pairs by component (`layers.components`), NaN where there is none.

    `pairs` [Q, C] int indexes the training examples, -1 for none. `store` is a folder named after all that the result
    depends on. `cache_gb` (10^9 bytes) bounds the queries that are held at a time. Errors (UserError): an example
    without loss, a gradient that is not finite, sides with different layers.
    """
    work = Scoring(sides.train, sides.queries, tokens_per_batch, sides)
    return meet_pairs(work, pairs, store=store, cache_gb=cache_gb)["scores"]


Held = dict[str, HeldLayer]
"""Preconditioned gradients of a block's queries, by layer."""


@dataclass
class Scoring(GradientPairs[Held]):
    """Holds preconditioned gradients by layer."""

    sides: LayerPairs

    arrays = {"scores": "pair"}  # noqa: RUF012 (a constant of the class)
    doing = "influence"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers, self.rank = self.sides.layers, self.sides.query_rank
        self.width, self.dtype = len(self.layers.components), self.train.dtype
        self.space = Workspace(self.dtype, self.train.device)

    def held_bytes(self) -> np.ndarray:
        """The same for each query."""
        return np.full(len(self.queries), held_layer_bytes(self.layers, self.rank, self.dtype), dtype=float)

    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> Held:
        """Preconditioned gradients of the queries, once, each batch written to its place; `later` has the checks."""
        found: Held = {}
        batches, count = block.queries, len(block.members)
        for rows in sampled(block.rows, self.held_size(block), lambda rows: rows.stop - rows.start):
            start, members = rows.start, block.members[rows]

            def take(layer: Layer, factors: LinearFactors, squares: Tensor, start: int = start) -> None:
                gradient = explicit(factors, self.dtype)
                squares[:] = gradient.flatten(1).square().sum(1)
                solved = self.sides.precondition(layer.name, gradient).to(self.train.device)
                ready = held_layer(layer, solved, self.rank)
                if len(batches) == 1:
                    found[layer.name] = ready
                    return
                if layer.name not in found:
                    found[layer.name] = ready.room(count)
                found[layer.name].put(start, ready)

            run_layers(self.queries, self.layers, members, take, later)
        return found

    def meet(self, batch: list[int], held: Held, pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """Run a training batch past the held queries: scores [P, K]."""
        values = torch.empty(len(pairs), self.width, device=self.train.device, dtype=self.dtype)
        _, there = pairs.on(self.train.device)

        def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
            columns = self.layers.columns(layer)
            scores = layer_scores(layer, factors, held[layer.name], pairs, self.space)
            for column, one in zip(columns, scores.unbind(1), strict=True):
                values[:, column] = one
            check[:] = 0.0
            check.index_add_(0, there, scores.sum(1).to(check.dtype))

        run_layers(self.train, self.layers, batch, take, later)
        later.add(partial(write, "scores"), values)


def held_layer_bytes(layers: Layers, rank: int | None, dtype: torch.dtype) -> int:
    """Memory for one query."""
    if rank is None:
        return sum(layer.size for layer in layers.layers) * dtype.itemsize
    return sum(min(layer.size, rank * (layer.outputs + layer.inputs)) for layer in layers.layers) * dtype.itemsize


def run_layers(
    side: Gradients,
    layers: Layers,
    members: list[int],
    take: Callable[[Layer, LinearFactors, Tensor], None],
    later: Deferred,
) -> None:
    """One pass over some examples; `take` gets each layer's factors and fills in numbers [B] that must be finite.

    They are looked at when `later` is flushed.
    """
    names = layers.names
    checks = torch.full((len(names), len(members)), torch.nan, device=side.device, dtype=torch.float64)

    def consume(arrived: list[Component], factors: list[Factors]) -> None:
        for component, one in zip(arrived, factors, strict=True):
            place = names.index(component.name)
            assert isinstance(one, LinearFactors)  # layers are made of nothing else
            take(layers.layers[place], one, checks[place])

    losses = side.capture(members, consume)
    ids = [side.ids[index] for index in members]
    later.add(lambda checks, losses: require_finite(checks.T, ids, names, losses), checks, losses)


def explicit(factors: LinearFactors, dtype: torch.dtype) -> Tensor:
    """Gradients [B, O, I], the bias's column last."""
    return form(factors.inputs.to(dtype), factors.deltas.to(dtype), factors.bias)
