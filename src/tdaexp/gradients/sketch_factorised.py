"""Projection by a Kronecker product, P = P_out (x) P_in, of a gradient that stays in its factors.

The sides are given (`TwoSidedSketch`, e.g. the leading eigenvectors of a curvature) or drawn (`FactorisedSketch`).

A linear map's per-example gradient is G = sum_t delta_t a_t^T, so that P vec(G) = vec(P_out G P_in^T) =
vec(sum_t (P_out delta_t)(P_in a_t)^T): two thin products, O(T (d_in k_in + d_out k_out)) per example, where
forming G alone costs O(T d_in d_out).

The price of drawn sides is spread. For independent entries of variance one and a rank-one G, the squared norm has a
relative variance of about 2/k_out + 2/k_in, where an unstructured sketch of the same size has 2/(k_out
k_in). It falls towards the latter as the energy of G spreads over more directions. A side that is not
reduced (k = d, as for the second side of a plain vector) stays as it is and adds no spread.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdaexp.gradients.sketch import Sketch, working_dtype


class TwoSidedSketch(Sketch):
    """vec(P_out G P_in^T) of a gradient matrix [d_out, d_in], times `scale`.

    `p_out` [d_out, k_out] and `p_in` [d_in, k_in] are the transposed sides, before scaling: batches multiply from the
    left, and an embedding gathers whole rows.
    """

    def __init__(self, p_out: Tensor, p_in: Tensor, scale: float = 1.0):
        self.k_out, self.k_in = p_out.shape[1], p_in.shape[1]
        super().__init__((len(p_out), len(p_in)), self.k_out * self.k_in)
        self.p_out, self.p_in, self.scale = p_out, p_in, scale

    def of_rows(self, rows: slice) -> TwoSidedSketch:
        """The part of the sketch that some rows of the gradient have: the parts of all rows add up to the sketch."""
        return TwoSidedSketch(self.p_out[rows], self.p_in, self.scale)

    def project_factors(self, a: Tensor, delta: Tensor) -> Tensor:
        """Project sum_t delta_t a_t^T, given a [batch, T, d_in] and delta [batch, T, d_out], to [batch, dim].

        A bias is one more input that is always one: append it to `a` and count it in the sketch's d_in.
        """
        p_out, p_in = self._matrices(a, delta)
        return self._contract(delta.to(p_out.dtype) @ p_out, a.to(p_in.dtype) @ p_in)

    def project_rows(self, ids: Tensor, delta: Tensor) -> Tensor:
        """Project an embedding's gradient, row ids[t] of which gathers delta_t, to [batch, dim].

        ids [batch, T] are whole numbers below d_out (the vocabulary), delta is [batch, T, d_in].
        """
        p_out, p_in = self._matrices(delta)
        return self._contract(p_out[ids], delta.to(p_in.dtype) @ p_in)

    def _project(self, gradient: Tensor) -> Tensor:
        p_out, p_in = self._matrices(gradient)
        matrix = gradient.to(p_in.dtype).reshape(-1, *self.shape)
        return (p_out.T @ (matrix @ p_in)).flatten(1) * self.scale

    def _contract(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum left [batch, T, k_out] outer right [batch, T, k_in] over T, scaled: [batch, dim]."""
        return (left.transpose(1, 2) @ right).flatten(1) * self.scale

    def _matrices(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return P_out^T and P_in^T on the inputs' device and in their working type."""
        device, dtype = inputs[0].device, working_dtype(*inputs)
        self.p_out, self.p_in = self.p_out.to(device, dtype), self.p_in.to(device, dtype)
        return self.p_out, self.p_in


class FactorisedSketch(TwoSidedSketch):
    """A random Kronecker sketch of a gradient matrix [d_out, d_in] with k_out x k_in <= `dim` dimensions.

    `dim` on the built object is the product that was reached. Entries are "rademacher" (+1, -1) or "normal".
    """

    def __init__(self, shape: tuple[int, int], dim: int, seed: int, distribution: str = "rademacher"):
        sides = factor_dimensions(dim, *shape)
        generator = torch.Generator().manual_seed(seed)
        drawn = [_entries(d, k, distribution, generator) for d, k in zip(shape, sides, strict=True)]
        # Random entries have variance one until here; a side that is not reduced needs no scale.
        reduced = [k for k, d in zip(sides, shape, strict=True) if k < d]
        super().__init__(drawn[0], drawn[1], 1 / math.sqrt(math.prod(reduced)))


def factor_dimensions(dim: int, d_out: int, d_in: int) -> tuple[int, int]:
    """Split `dim` into near-square (k_out, k_in), k_out <= d_out, k_in <= d_in and k_out k_in <= dim.

    Near-square is what minimises the spread 1/k_out + 1/k_in for a given product. Unless a side limits it,
    the product is above dim - sqrt(dim).
    """
    k_out = min(math.isqrt(dim), d_out)
    k_in = min(dim // k_out, d_in)
    if k_in == d_in:
        k_out = min(dim // d_in, d_out)
    return k_out, k_in


def _entries(rows: int, columns: int, distribution: str, generator: torch.Generator) -> Tensor:
    """Draw one side's matrix, transposed, [d, k]: signs or normal, or the identity for k = d."""
    if rows == columns:
        return torch.eye(rows, device="cpu")
    if distribution == "normal":
        return torch.randn(rows, columns, generator=generator, device="cpu")
    return torch.randint(0, 2, (rows, columns), generator=generator, device="cpu").float() * 2 - 1
