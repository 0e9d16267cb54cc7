"""A batch's per-example gradients of one component, kept as the small factors that they are made of.

One class per kind of layer. B examples, T positions (right-padded), O outputs, I inputs, V vocabulary, L
positions that carry loss. Padding has δ = 0, so it adds nothing. Factors keep the model's dtype; products
and explicit gradients are formed in float32, or in float64 for a float64 model.

Layout of a materialised gradient: weight entries as [outputs, inputs] row by row, each row followed by its
bias where there is one (as an extra input that is always 1); an embedding as [vocabulary, width]; norms in
parameter order, weight before bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.runtime.accumulation import accumulation_dtype, wide_bmm

ALL = slice(None)


@dataclass(frozen=True, eq=False)
class LinearFactors:
    """G_i = Σ_t δ_t a_tᵀ: `inputs` a [B, T, I], `deltas` δ [B, T, O]; a bias is an extra input of ones.

    Components that read the same tensor (q, k and v; gate and up) share one `inputs` object.
    """

    inputs: Tensor
    deltas: Tensor
    bias: bool

    @property
    def examples(self) -> int:
        """Number of examples B."""
        return len(self.deltas)

    @property
    def size(self) -> int:
        """Entries of one gradient."""
        return self.deltas.shape[2] * (self.inputs.shape[2] + self.bias)

    @property
    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return [self.inputs, self.deltas]

    def materialise(self, rows: slice = ALL) -> Tensor:
        """Explicit gradients [n, size] of the examples in a slice."""
        return wide_bmm(self.deltas[rows].transpose(1, 2), self.extended_inputs()[rows]).flatten(1)

    def extended_inputs(self) -> Tensor:
        """Inputs with the bias's constant input behind them: [B, T, I] or [B, T, I + 1]."""
        if not self.bias:
            return self.inputs
        return torch.cat([self.inputs, torch.ones_like(self.inputs[..., :1])], dim=2)


@dataclass(frozen=True, eq=False)
class EmbeddingFactors:
    """Sparse rows: row v of G_i is Σ δ_t over the positions that hold token v.

    `ids` [B, T] int64, `deltas` [B, T, O], `vocabulary` V.
    """

    ids: Tensor
    deltas: Tensor
    vocabulary: int

    @property
    def examples(self) -> int:
        """Number of examples B."""
        return len(self.deltas)

    @property
    def size(self) -> int:
        """Entries of one gradient."""
        return self.vocabulary * self.deltas.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return [self.ids, self.deltas]

    def materialise(self, rows: slice = ALL) -> Tensor:
        """Explicit gradients [n, size] of the examples in a slice."""
        ids, delta = self.ids[rows], self.deltas[rows]
        gradient = delta.new_zeros((len(ids), self.vocabulary, delta.shape[2]), dtype=accumulation_dtype(delta.dtype))
        example = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
        # Unlike index_add_, an accumulating index_put_ adds in a fixed order on CUDA.
        return gradient.index_put_((example, ids), delta.to(gradient.dtype), accumulate=True).flatten(1)


@dataclass(frozen=True, eq=False)
class TiedFactors:
    """One matrix that is both embedding and head: G_i is the sum of the two gradients.

    The head's outputs are the vocabulary, so both gradients have the layout [V, width].
    """

    embedding: EmbeddingFactors
    head: LinearFactors

    @property
    def examples(self) -> int:
        """Number of examples B."""
        return self.embedding.examples

    @property
    def size(self) -> int:
        """Entries of one gradient."""
        return self.embedding.size

    @property
    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return [*self.embedding.tensors, *self.head.tensors]

    def materialise(self, rows: slice = ALL) -> Tensor:
        """Explicit gradients [n, size] of the examples in a slice."""
        return self.embedding.materialise(rows).add_(self.head.materialise(rows))


@dataclass(frozen=True, eq=False)
class VectorFactors:
    """Explicit gradients [B, size], already summed over positions."""

    gradient: Tensor

    @property
    def examples(self) -> int:
        """Number of examples B."""
        return len(self.gradient)

    @property
    def size(self) -> int:
        """Entries of one gradient."""
        return self.gradient.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return [self.gradient]

    def materialise(self, rows: slice = ALL) -> Tensor:
        """Explicit gradients [n, size] of the examples in a slice."""
        return self.gradient[rows]


Factors = LinearFactors | EmbeddingFactors | TiedFactors | VectorFactors


def compact(factors: Factors) -> Factors:
    """Turn a linear component's factors into the gradient itself where `explicit_is_cheaper`."""
    if not isinstance(factors, LinearFactors):
        return factors
    outputs, inputs = factors.deltas.shape[2], factors.inputs.shape[2]
    if not explicit_is_cheaper(factors.inputs.shape[1], outputs, inputs):
        return factors
    return VectorFactors(factors.materialise())


def explicit_is_cheaper(positions: int, outputs: int, inputs: int) -> bool:
    """Whether G is at most twice as large as its factors: I O <= 2 T (I + O).

    A product then costs I O multiply-adds instead of T T' (I + O), and forming G once, T I O, is no more
    than the two Gram products (with itself and with one other example) that it stands in for.
    """
    return inputs * outputs <= 2 * positions * (inputs + outputs)
