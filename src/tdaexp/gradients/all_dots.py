"""Dot products of every example of one batch with every one of another, from their factors.

As `dots`, for all n x B pairs: of linear components that read the same input either two Gram matrices over all
positions of both batches, n B T T' (I + O) multiply-adds, or explicit gradients, whichever takes fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdaexp.gradients.dots import gram_cost, linear_materialised, materialised_cost, pair_dots, shared_inputs
from tdaexp.gradients.factors import Factors, LinearFactors
from tdaexp.gradients.pairs import Pairs
from tdaexp.runtime.accumulation import accumulation_dtype, wide_bmm

GRAM_BYTES = 1 << 25
"""Memory for a Gram matrix."""


def all_dots(left: Sequence[Factors], right: Sequence[Factors]) -> Tensor:
    """Dot products [n, B, K] of two batches' gradients of the same K components; float32, or float64 of float64."""
    n, b = left[0].examples, right[0].examples
    pairs = Pairs(torch.arange(n, device="cpu").repeat_interleave(b), torch.arange(b, device="cpu").repeat(n))
    columns: list[Tensor] = [torch.empty(0, device="cpu")] * len(left)
    for group in shared_inputs(left):
        lefts = [one for k in group if isinstance(one := left[k], LinearFactors)]
        rights = [one for k in group if isinstance(one := right[k], LinearFactors)]
        if len(lefts) == len(rights) == len(group):
            values = _linear(lefts, rights, pairs)
        else:
            values = [pair_dots([left[k]], [right[k]], pairs).view(n, b) for k in group]
        for k, value in zip(group, values, strict=True):
            columns[k] = value
    return torch.stack(columns, dim=2)


def _linear(left: Sequence[LinearFactors], right: Sequence[LinearFactors], pairs: Pairs) -> list[Tensor]:
    """[n, B] of each of the components, which share their inputs."""
    n, b = left[0].examples, right[0].examples
    if gram_cost(left, right, pairs) > materialised_cost(left, right, pairs):
        return [linear_materialised(one, other, pairs).view(n, b) for one, other in zip(left, right, strict=True)]
    bytes_each = n * left[0].inputs.shape[1] * right[0].inputs.shape[1]
    bytes_each *= accumulation_dtype(right[0].deltas.dtype).itemsize
    step = max(1, GRAM_BYTES // max(bytes_each, 1))
    parts = [_grams(left, right, slice(start, start + step)) for start in range(0, b, step)]
    return [torch.cat(own, dim=1) for own in zip(*parts, strict=True)]


def _grams(left: Sequence[LinearFactors], right: Sequence[LinearFactors], rows: slice) -> list[Tensor]:
    """Σ_{t,t'} (δ_t·δ'_t')(a_t·a'_t') [n, rows] of each component."""
    shared = _gram(left[0].inputs, right[0].inputs[rows])
    found = []
    for one, other in zip(left, right, strict=True):
        inputs = shared + 1 if one.bias else shared
        gram = _gram(one.deltas, other.deltas[rows])
        sizes = one.examples, one.deltas.shape[1], -1, other.deltas.shape[1]
        found.append((gram * inputs).view(*sizes).sum((1, 3)))
    return found


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """All inner products [n T, B T'] over the last axis."""
    return wide_bmm(left.flatten(0, 1)[None], right.flatten(0, 1).T[None])[0]
