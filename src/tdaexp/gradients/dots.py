"""Dot products between examples' gradients of a component, without holding billion-entry gradients.

Two exact forms, chosen by counting multiply-adds (P pairs of n and m examples, T and T' positions each):

    Gram           Σ_{t,t'} (δ_t·δ'_t')(a_t·a'_t')      P T T' (I + O)
    materialised   G = Σ_t δ_t a_tᵀ, then G·G'          (n T + m T') I O + P I O

Components that read the same input share the a·a' Gram, so the choice is made for all of them together. The choice is a
function of shapes and pairs alone: the same batches give the same bits whenever they are multiplied.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.factors import (
    EmbeddingFactors,
    Factors,
    LinearFactors,
    TiedFactors,
    VectorFactors,
)
from tdaexp.gradients.pairs import Pairs, products_of_rows
from tdaexp.runtime.accumulation import wide_bmm
from tdaexp.runtime.rehearsal import alike, current

FORMED_BYTES = 1 << 27
"""Memory for the output rows of explicit gradients that are multiplied in one step; a constant like `CHUNK_BYTES`."""


def pair_dots(left: Sequence[Factors], right: Sequence[Factors], pairs: Pairs) -> Tensor:
    """Dot products [P, K] of pairs of examples, given two batches' factors of the same K components.

    Pass the same list twice for products within a batch. Returns float32, or float64 for float64 factors.
    """
    if current() is None:
        return _pair_dots(left, right, pairs)
    same = tuple(a is b for a, b in zip(left, right, strict=True))
    return alike((_form(left), _form(right), same, pairs.form), partial(_pair_dots, left, right, pairs))


def _form(factors: Sequence[Factors]) -> Hashable:
    """All that the work with these factors depends on."""
    tensors = [tuple((part.shape, part.dtype, part.device) for part in one.tensors) for one in factors]
    kinds = [(type(one), one.size) for one in factors]
    return tuple(tensors), tuple(kinds), tuple(map(tuple, shared_inputs(factors)))


def _pair_dots(left: Sequence[Factors], right: Sequence[Factors], pairs: Pairs) -> Tensor:
    columns: list[Tensor] = [torch.empty(0, device="cpu")] * len(left)
    for group in shared_inputs(left):
        lefts = [one for k in group if isinstance(one := left[k], LinearFactors)]
        rights = [one for k in group if isinstance(one := right[k], LinearFactors)]
        values = _linear_group(lefts, rights, pairs) if len(lefts) == len(rights) == len(group) else None
        for place, k in enumerate(group):
            columns[k] = _single(left[k], right[k], pairs) if values is None else values[:, place]
    return torch.stack(columns, dim=1)


def self_dots(factors: Sequence[Factors]) -> Tensor:
    """Squared gradient norms [B, K] of every example and component, in the dtype of `pair_dots`."""
    vectors = [one.gradient for one in factors if isinstance(one, VectorFactors)]
    if len(vectors) == len(factors):
        return torch.stack([torch.linalg.vector_norm(one, dim=1).square() for one in vectors], dim=1)
    rows = torch.arange(factors[0].examples)
    return pair_dots(factors, factors, Pairs(rows, rows))


def shared_inputs(factors: Sequence[Factors]) -> list[list[int]]:
    """Group component numbers: linear components with the same `inputs` tensor together, all others alone."""
    groups: dict[int, list[int]] = {}
    for k, one in enumerate(factors):
        key = id(one.inputs) if isinstance(one, LinearFactors) else -1 - k
        groups.setdefault(key, []).append(k)
    return list(groups.values())


def gram_cost(left: Sequence[LinearFactors], right: Sequence[LinearFactors], pairs: Pairs) -> int:
    """Multiply-adds of the Gram form for components with shared inputs."""
    widths = left[0].inputs.shape[2] + sum(one.deltas.shape[2] for one in left)
    return len(pairs) * left[0].inputs.shape[1] * right[0].inputs.shape[1] * widths


def materialised_cost(left: Sequence[LinearFactors], right: Sequence[LinearFactors], pairs: Pairs) -> int:
    """Multiply-adds of the materialised form for components with shared inputs."""
    entries = left[0].inputs.shape[2] * sum(one.deltas.shape[2] for one in left)
    formed = len(pairs.lefts.left) * left[0].inputs.shape[1]
    if left[0] is not right[0]:
        formed += len(pairs.rights.left) * right[0].inputs.shape[1]
    multiplied = sum(len(part.lefts.left) * len(part.rights.left) for part in pairs.dense)
    return entries * (formed + multiplied)


def _linear_group(left: Sequence[LinearFactors], right: Sequence[LinearFactors], pairs: Pairs) -> Tensor:
    if gram_cost(left, right, pairs) <= materialised_cost(left, right, pairs):
        return linear_gram(left, right, pairs)
    return torch.stack([linear_materialised(a, b, pairs) for a, b in zip(left, right, strict=True)], dim=1)


def linear_gram(left: Sequence[LinearFactors], right: Sequence[LinearFactors], pairs: Pairs) -> Tensor:
    """Gram form [P, n] for n linear components that share their inputs."""
    t, u = left[0].inputs.shape[1], right[0].inputs.shape[1]
    widest = max(left[0].inputs.shape[2], *(one.deltas.shape[2] for one in left))

    def products(chunk: Pairs) -> Tensor:
        shared = _gram(left[0].inputs, right[0].inputs, chunk)
        return torch.stack([_contract(shared, a, b, chunk) for a, b in zip(left, right, strict=True)], dim=1)

    return pairs.by_chunks(8 * ((t + u) * widest + 2 * t * u), left[0].deltas.device, products)


def _contract(shared: Tensor, left: LinearFactors, right: LinearFactors, pairs: Pairs) -> Tensor:
    """Sum of the δ Gram times the (bias-extended) input Gram `shared` [P, T, T']."""
    inputs = shared + 1 if left.bias else shared
    return _sum_of_products(_gram(left.deltas, right.deltas, pairs), inputs)


def linear_materialised(left: LinearFactors, right: LinearFactors, pairs: Pairs) -> Tensor:
    """Materialised form [P] for one linear component, formed and multiplied a few output rows at a time."""
    device = left.deltas.device
    same = left is right and np.array_equal(pairs.lefts.left.numpy(), pairs.rights.left.numpy())
    (lefts, _), (rights, _) = pairs.lefts.on(device), pairs.rights.on(device)
    places = Pairs(pairs.lefts.right, pairs.rights.right)
    outputs, width = left.deltas.shape[2], left.inputs.shape[2] + left.bias
    step = max(1, FORMED_BYTES // (8 * width * (len(lefts) + len(rights))))
    total: Tensor | float = 0.0
    for start in range(0, outputs, step):
        block = slice(start, start + step)
        g = _block_of_rows(left, lefts, block)
        h = g if same else _block_of_rows(right, rights, block)
        total = total + products_of_rows(g, h, places)
    return torch.as_tensor(total)


def _block_of_rows(factors: LinearFactors, examples: Tensor, outputs: slice) -> Tensor:
    """Explicit gradients [n, rows x width] of some examples and output rows."""
    chosen = LinearFactors(factors.inputs[examples], factors.deltas[examples, :, outputs], factors.bias)
    return chosen.materialise()


def _single(left: Factors, right: Factors, pairs: Pairs) -> Tensor:
    """Dot products [P] of one component that is not a plain linear layer."""
    if isinstance(left, EmbeddingFactors) and isinstance(right, EmbeddingFactors):
        return embedding_dots(left, right, pairs)
    if isinstance(left, TiedFactors) and isinstance(right, TiedFactors):
        return tied_dots(left, right, pairs)
    if isinstance(left, (VectorFactors, LinearFactors)) and isinstance(right, (VectorFactors, LinearFactors)):
        return products_of_rows(_explicit(left), _explicit(right), pairs)
    raise TypeError(f"{type(left).__name__} and {type(right).__name__} are factors of different components")


def _explicit(factors: VectorFactors | LinearFactors) -> Tensor:
    return factors.gradient if isinstance(factors, VectorFactors) else factors.materialise()


def embedding_dots(left: EmbeddingFactors, right: EmbeddingFactors, pairs: Pairs) -> Tensor:
    """Σ over the positions that hold the same token of δ_t·δ'_t' [P]; P T T' O multiply-adds."""
    t, u = left.ids.shape[1], right.ids.shape[1]

    def products(chunk: Pairs) -> Tensor:
        lefts, rights = chunk.on(left.ids.device)
        match = left.ids[lefts][:, :, None] == right.ids[rights][:, None, :]
        gram = _gram(left.deltas, right.deltas, chunk)
        return _sum_of_products(gram, match.to(gram.dtype))

    return pairs.by_chunks(8 * ((t + u) * left.deltas.shape[2] + 3 * t * u), left.ids.device, products)


def tied_dots(left: TiedFactors, right: TiedFactors, pairs: Pairs) -> Tensor:
    """(E + H)·(E' + H') [P]: embedding with embedding, head with head, and the two cross terms."""
    swapped = Pairs(pairs.right, pairs.left)
    return (
        embedding_dots(left.embedding, right.embedding, pairs)
        + _linear_group([left.head], [right.head], pairs)[:, 0]
        + cross_dots(left.embedding, right.head, pairs)
        + cross_dots(right.embedding, left.head, swapped)
    )


def cross_dots(embedding: EmbeddingFactors, head: LinearFactors, pairs: Pairs) -> Tensor:
    """E·H' = Σ_{t,l} δ'_l[token_t] (δ_t·a'_l) [P], for `pairs.left` in `embedding` and `pairs.right` in `head`."""
    t, l = embedding.ids.shape[1], head.inputs.shape[1]
    places = torch.arange(l, device=head.inputs.device)[None, None, :]

    def products(chunk: Pairs) -> Tensor:
        lefts, rights = chunk.on(embedding.ids.device)
        tokens = embedding.ids[lefts][:, :, None]
        outputs = head.deltas[rights[:, None, None], places, tokens]
        gram = _gram(embedding.deltas, head.inputs, chunk)
        return _sum_of_products(gram, outputs.to(gram.dtype))

    return pairs.by_chunks(8 * ((t + l) * head.inputs.shape[2] + 3 * t * l), embedding.ids.device, products)


def _gram(left: Tensor, right: Tensor, pairs: Pairs) -> Tensor:
    """All inner products over the last axis [P, T, T'] of the paired examples, in float32 at least."""
    lefts, rights = pairs.on(left.device)
    return wide_bmm(left[lefts], right[rights].transpose(1, 2))


def _sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """Σ x y over all axes but the first."""
    return (x * y).flatten(1).sum(1)
