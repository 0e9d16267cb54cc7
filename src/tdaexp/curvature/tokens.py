"""Which tokens a pair's influence comes from.

I(z, q) = Σ_layers Σ_t δ_tᵀ P a_t, where P is the layer's preconditioned gradient of the other side: a sum over the
positions t of either example (Grosse et al. 2023, section 3.4). A share belongs to the position whose activation and
output gradient it comes from; through attention, later and earlier tokens have a part in both. Cost: one pass over each
example and T O I multiply-adds per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.layers import Layer
from tdaexp.curvature.score import Precondition, Side, explicit, run_layers
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.factors import LinearFactors, accumulation_dtype


@dataclass(frozen=True)
class TokenInfluence:
    """`train` [T] and `query` [T'] float64: shares of the pair's score by token; each sums to the score."""

    train: np.ndarray
    query: np.ndarray


def token_shares(preconditioned: Tensor, factors: LinearFactors) -> Tensor:
    """Shares δ_tᵀ P a_t [B, T] of one layer, P [O, I] with the bias's column last, for B examples."""
    inputs = factors.extended_inputs().to(preconditioned.dtype)
    return ((inputs @ preconditioned.T) * factors.deltas.to(preconditioned.dtype)).sum(2)


def token_influence(
    train: Side, queries: Side, example: int, query: int, precondition: Precondition, pad_id: int = 0
) -> TokenInfluence:
    """Shares of the influence of one training example on one query, by the tokens of each.

    `precondition` must be symmetric, as one damped inverse is: for the training tokens it is applied to the query's
    gradient, for the query's tokens to the training example's. Errors (UserError): as `pair_scores`.
    """
    sides = (train, example), (queries, query)
    shares = []
    for (own, index), (other, against) in (sides, sides[::-1]):
        with frozen(own.model), frozen(other.model):
            shares.append(_shares(own, index, _gradients(other, against, precondition, pad_id), pad_id))
    return TokenInfluence(*shares)


def _gradients(side: Side, index: int, precondition: Precondition, pad_id: int) -> dict[str, Tensor]:
    """Preconditioned gradients [O, I] of one example by layer."""
    found: dict[str, Tensor] = {}

    def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
        gradient = explicit(factors, accumulation_dtype(side.model.dtype))
        check[:] = gradient.flatten(1).sum(1)
        found[layer.name] = precondition(layer.name, gradient)[0]

    run_layers(side, [index], pad_id, take)
    return found


def _shares(side: Side, index: int, gradients: dict[str, Tensor], pad_id: int) -> np.ndarray:
    """Sum of the layers' shares [T]."""
    example = side.examples[index]
    predicting = np.flatnonzero(example.loss_mask[1:])
    total = np.zeros(example.length)

    def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
        shares = token_shares(gradients[layer.name], factors)[0].to(torch.float64).cpu().numpy()
        check[:] = float(shares.sum())
        total[predicting if layer.at_loss else np.arange(len(shares))] += shares

    run_layers(side, [index], pad_id, take)
    return total
