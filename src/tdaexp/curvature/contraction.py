"""Products of held query gradients with the training gradients of a batch, for one layer.

Per layer and batch of n examples with
T positions, against Q queries, the cheaper of two exact forms is taken (multiply-adds):

    explicit   G = Σ_t δ_t a_tᵀ, then P·G                n O I (T + Q)
    low rank   Σ_r Σ_t (δ_t·l_r)(a_t·r_r)                n T Q r (O + I)      only with `query_rank` r
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.lambdas import form
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.precondition import low_rank
from tdaexp.gradients.factors import LinearFactors
from tdaexp.gradients.pairs import Pairs, pairs_of, products_of_rows
from tdaexp.runtime.accumulation import multiplied_as_they_are, wide_bmm
from tdaexp.runtime.deferred import send

CHUNK_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Explicit gradients of a training batch that are formed at a time."""


@dataclass(frozen=True, eq=False)
class HeldLayer:
    """Preconditioned gradients of n queries: `explicit` [n, O, I - 1] with `bias` [n, O] (without one [n, O, I] and
    None), or `left` [n, r, O] and `right` [n, r, I]. The bias is apart because widths like 257 slow a matrix product
    down.
    """

    explicit: Tensor | None = None
    bias: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    def room(self, queries: int) -> HeldLayer:
        """Room for so many queries in the same form, nothing in it yet."""
        return HeldLayer(*(None if one is None else one.new_empty(queries, *one.shape[1:]) for one in self._sides()))

    def put(self, start: int, part: HeldLayer) -> None:
        """Write the queries of `part` to the places from `start` on."""
        for whole, one in zip(self._sides(), part._sides(), strict=True):
            if whole is not None and one is not None:
                whole[start : start + len(one)] = one

    def _sides(self) -> tuple[Tensor | None, ...]:
        return self.explicit, self.bias, self.left, self.right


def layer_scores(layer: Layer, factors: LinearFactors, held: HeldLayer, pairs: Pairs, space: Workspace) -> Tensor:
    """Scores [P, members] of pairs of held queries (left) and the examples of a batch (right), for one layer."""
    inputs, deltas = factors.inputs, factors.deltas
    if held.left is not None and held.right is not None:
        return _low_rank_scores(layer, factors, held.left, held.right, pairs, space.dtype)
    assert held.explicit is not None
    width = inputs.shape[2]
    flat = held.explicit.flatten(1)
    step = space.examples(layer)
    values = torch.empty(len(pairs), len(layer.members), device=flat.device, dtype=space.dtype)
    biases = deltas.to(space.dtype).sum(1) if held.bias is not None else None
    right = pairs.right.numpy()
    for start in range(0, len(deltas), step):
        stop = min(start + step, len(deltas))
        inside = np.flatnonzero((right >= start) & (right < stop))
        if not len(inside):
            continue
        whole = len(inside) == len(pairs)
        part = pairs if whole and not start else pairs_of(pairs.left.numpy()[inside], right[inside] - start)
        places = slice(None) if whole else send(inside, values.device)
        gradient = space.form(inputs[start:stop], deltas[start:stop]).flatten(1)
        for column, (_, rows) in enumerate(layer.members):
            entries = slice(rows.start * width, rows.stop * width)
            found = products_of_rows(flat[:, entries], gradient[:, entries], part)
            if held.bias is not None and biases is not None:
                found = found + products_of_rows(held.bias[:, rows], biases[start:stop, rows], part)
            values[places, column] = found
    return values


class Workspace:
    """Memory for explicit gradients that is used again: fresh pages cost as much as the product that fills them.

    Its size is a constant, because results may depend on it in the last bits.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """Nothing is allocated before it is needed."""
        self.dtype, self.device = dtype, device
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def examples(self, layer: Layer) -> int:
        """How many gradients of a layer are formed at a time."""
        limit = CHUNK_BYTES.get(self.device.type, CHUNK_BYTES["cpu"])
        return max(1, limit // (self.dtype.itemsize * layer.size))

    def form(self, inputs: Tensor, deltas: Tensor) -> Tensor:
        """Weight gradients [B, O, I] without the bias's column, valid until the next call."""
        turned = deltas.transpose(1, 2)
        if multiplied_as_they_are(turned, inputs):
            return wide_bmm(turned, inputs)  # there memory is used again by itself
        shape = (len(deltas), deltas.shape[2], inputs.shape[2])
        entries = shape[0] * shape[1] * shape[2]
        if self._memory.numel() < entries:
            self._memory = torch.empty(entries, dtype=self.dtype, device=self.device)
        return wide_bmm(turned, inputs, out=self._memory[:entries].view(shape))


def _low_rank_scores(
    layer: Layer, factors: LinearFactors, left: Tensor, right: Tensor, pairs: Pairs, dtype: torch.dtype
) -> Tensor:
    """As `layer_scores`, of queries [n, r, O] and [n, r, I]: the sides of every outer product apart."""
    inputs, deltas = factors.extended_inputs().to(dtype), factors.deltas.to(dtype)
    rank = left.shape[1]
    values = []
    for part in pairs.dense:
        (queries, query_at), (examples, example_at) = part.lefts.on(left.device), part.rights.on(left.device)
        columns = len(queries) * rank
        outer, inner = left[queries].reshape(columns, -1), right[queries].reshape(columns, -1)
        a, delta = inputs[examples], deltas[examples]
        if low_rank_is_cheaper(layer, delta.shape[1], columns):
            through = a @ inner.T  # [n, T, Q r]
            tables = [(through * (delta[..., rows] @ outer[:, rows].T)).sum(1) for _, rows in layer.members]
        else:
            through = form(a, delta, False) @ inner.T  # [n, O, Q r]
            tables = [torch.einsum("noc,co->nc", through[:, rows], outer[:, rows]) for _, rows in layer.members]
        scores = torch.stack([table.view(len(examples), len(queries), rank).sum(2) for table in tables], dim=2)
        values.append(scores[example_at, query_at])
    return torch.cat(values)


def low_rank_is_cheaper(layer: Layer, positions: int, columns: int) -> bool:
    """Whether going through the factors, T c (O + I), is less than forming G first, T O I + c O (I + 1)."""
    direct = positions * columns * (layer.outputs + layer.inputs)
    return direct <= positions * layer.size + columns * (layer.size + layer.outputs)


def held_layer(layer: Layer, gradient: Tensor, rank: int | None) -> HeldLayer:
    """The form in which preconditioned gradients [n, O, I] are held: of low rank where that is smaller."""
    if rank is not None and rank * (layer.outputs + layer.inputs) < layer.size:
        left, right = low_rank(gradient, rank)
        return HeldLayer(left=left, right=right)
    if layer.bias:
        return HeldLayer(gradient[..., :-1].contiguous(), gradient[..., -1].contiguous())
    return HeldLayer(gradient)
