"""Which tokens a pair's influence comes from.

I(z, q) = Σ_layers ⟨P(g_q), g_z⟩ with g = Σ_t δ_t a_tᵀ is linear in either gradient, so it is a sum of shares over the
positions of either example (Grosse et al. 2023, section 3.4):

    training position t     ⟨P(g_q), δ_t a_tᵀ⟩ = δ_tᵀ P(g_q) a_t
    query position t'       ⟨P(δ_t' a_t'ᵀ), g_z⟩ = δ_t'ᵀ P*(g_z) a_t'

P is the damped inverse, or the product of two stages' inverses (Bao et al. 2025, equation 12). P* is its adjoint: one
symmetric inverse is its own, of a product it is the inverses in reverse order. A share belongs to the position whose
activation and output gradient it comes from; through attention, later and earlier tokens have a part in both. Cost: one
pass over each query and one over the training example of each pair, and per pair one application of P* and T O I
multiply-adds per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.contraction import held_layer
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.score import LayerPairs, Precondition, explicit, run_layers
from tdaexp.gradients.factors import LinearFactors
from tdaexp.gradients.pair_driver import check_pairs
from tdaexp.gradients.passes import Gradients
from tdaexp.models.forward import runs_whole
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred, send
from tdaexp.runtime.rehearsal import repeated

QUERIES_AT_ONCE = 8
"""Queries whose shares are saved together."""


@dataclass(frozen=True)
class TokenInfluence:
    """`train` [T] and `query` [T'] float64: shares of the pair's score by token; each sums to the score."""

    train: np.ndarray
    query: np.ndarray

    def fill(self, train: np.ndarray, query: np.ndarray) -> None:
        """Write the numbers."""
        self.train[:], self.query[:] = train, query


@dataclass(frozen=True)
class HeldQuery:
    """One layer of a query: its `factors`, its preconditioned gradient `solved` [O, I], and where that is of low rank
    the orthonormal `rows` [r, I] that its rows were projected on.
    """

    factors: LinearFactors
    solved: Tensor
    rows: Tensor | None


@dataclass(frozen=True)
class TokenScoring:
    """Shares of the pairs of two sides of texts. `adjoint` is P*, for one damped inverse the same function as P.

    `query_rank` of the scores: the projection that it makes is a part of P, so that shares still add up.
    """

    sides: LayerPairs
    adjoint: Precondition

    @property
    def train(self) -> Gradients:
        """The side of the training examples."""
        return self.sides.train

    @property
    def queries(self) -> Gradients:
        """The side of the queries."""
        return self.sides.queries

    def of_query(self, query: int, examples: Sequence[int]) -> list[TokenInfluence]:
        """Shares of the influence of some training examples on one query. Errors (UserError): as `pair_scores`."""
        with self.train.ready(), self.queries.ready():
            later = Deferred()
            held = self._hold(query, later)
            found = [self._meet(example, query, held, later) for example in examples]
            later.flush()
            return found

    def _hold(self, query: int, later: Deferred) -> dict[str, HeldQuery]:
        """The query by layer."""
        found: dict[str, HeldQuery] = {}

        def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
            gradient = explicit(factors, self.queries.dtype)
            check[:] = gradient.flatten(1).square().sum(1)
            solved = self.sides.precondition(layer.name, gradient)
            right = held_layer(layer, solved, self.sides.query_rank).right
            rows = None if right is None else right[0]
            found[layer.name] = HeldQuery(factors, _projected(solved[0], rows), rows)

        run_layers(self.queries, self.sides.layers, [query], take, later)
        return found

    def _meet(self, example: int, query: int, held: dict[str, HeldQuery], later: Deferred) -> TokenInfluence:
        """Run one training example past the held query; the shares are there once `later` is flushed."""
        sides, device = (self.train.examples[example], self.queries.examples[query]), self.train.device
        predicting = [send(np.flatnonzero(one.loss_mask[1:]), device) for one in sides]
        shortcut = [not runs_whole(side.model) for side in (self.train, self.queries)]
        totals = [torch.zeros(one.length, dtype=torch.float64, device=device) for one in sides]

        def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
            one = held[layer.name]
            gradient = explicit(factors, one.solved.dtype)[0]
            back = self.adjoint(layer.name, _projected(gradient, one.rows)[None])[0]
            met = token_shares(one.solved, factors)[0], token_shares(back, one.factors)[0]
            check[:] = sum(shares.to(check).sum() for shares in met)
            for total, shares, places, few in zip(totals, met, predicting, shortcut, strict=True):
                total[places if layer.at_loss and few else slice(len(shares))] += shares.to(total)

        run_layers(self.train, self.sides.layers, [example], take, later)
        found = TokenInfluence(*(np.empty(one.length) for one in sides))
        later.add(found.fill, *totals)
        return found


def token_shares(preconditioned: Tensor, factors: LinearFactors) -> Tensor:
    """Shares δ_tᵀ P a_t [B, T] of one layer, P [O, I] with the bias's column last, for B examples."""
    inputs = factors.extended_inputs().to(preconditioned.dtype)
    return ((inputs @ preconditioned.T) * factors.deltas.to(preconditioned.dtype)).sum(2)


def pair_tokens(scoring: TokenScoring, pairs: np.ndarray, *, store: Path) -> tuple[np.ndarray, np.ndarray]:
    """Shares of candidate pairs by training position [Q, C, T] and by query position [Q, C, T'], float64.

    `pairs` [Q, C] int indexes the training examples, -1 for none. T and T' are the longest lengths among the pairs;
    behind an example's own length, and where there is no pair, is NaN. `store` is a folder named after all that the
    result depends on. Errors (UserError): as `pair_scores`.
    """
    check_pairs(pairs, scoring.train, scoring.queries)
    count, train_lengths = len(pairs), scoring.train.examples.lengths
    widths = train_lengths[pairs[pairs >= 0]].max(initial=0), scoring.queries.examples.lengths.max(initial=0)
    shapes = [(*pairs.shape, int(width)) for width in widths]
    slices = [slice(start, min(start + QUERIES_AT_ONCE, count)) for start in range(0, count, QUERIES_AT_ONCE)]
    arrays = {name: (shape, "float64") for name, shape in zip(("train", "query"), shapes, strict=True)}
    blocks = BlockStore(store, arrays, slices, rows=min(QUERIES_AT_ONCE, count))
    with blocks.pending() as missing:
        for number in blocks.each(missing, "tokens"):
            members = range(count)[slices[number]]
            values = [np.full((len(members), *shape[1:]), np.nan) for shape in shapes]
            for row, query in repeated(list(enumerate(members))):
                (places,) = np.nonzero(pairs[query] >= 0)
                for place, found in zip(places, scoring.of_query(query, pairs[query, places].tolist()), strict=True):
                    values[0][row, place, : len(found.train)] = found.train
                    values[1][row, place, : len(found.query)] = found.query
            blocks.write(number, {"train": values[0], "query": values[1]})
    stored = blocks.read()
    return stored["train"], stored["query"]


def _projected(gradient: Tensor, rows: Tensor | None) -> Tensor:
    """A gradient [O, I] with its rows projected on orthonormal `rows` [r, I], or as it is."""
    return gradient if rows is None else (gradient @ rows.T) @ rows
