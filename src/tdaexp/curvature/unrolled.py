"""A segment of training as one layer's gradients see it: what its updates add, and what is left of earlier ones.

Source: SOURCE (Bae et al. 2024, "Training data attribution via approximate unrolling"), and its form for optimisers
that scale the gradient. With a curvature G that stays the same and ηK, the sum of a segment's learning rates, K steps

    θ ← θ − η p ∘ (G θ + g) − η λ θ                 p = 1 for SGD, 1 / (√v̂ + ε) for AdamW

multiply what the start was moved by with S and add −r g, where with s = √p and M = s ∘ G ∘ s = Q diag(σ) Qᵀ

    S = s e^{−ηK (M + λI)} s⁻¹           r = s (1 − e^{−ηK (M + λI)}) (M + λI)⁻¹ s.

A query's gradient goes backwards through both: `carried` is Sᵀ, `moved` is r, which is symmetric. At σ + λ = 0 the
fraction is ηK. A parameter that never had a gradient (v̂ = 0) did not move: s and s⁻¹ are 0 there. Q and σ are EK-FAC's.
Cost: 2 O I (O + I) multiply-adds for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.curvature.precondition import LayerFactors


@dataclass(frozen=True, eq=False)
class Unrolled:
    """One layer over one segment: `factors` of the loss summed over an example's positions, of which there are
    `positions` on average; `rates` ηK; weight `decay` λ; `scale` s [O, I] (None: ones), whose M the factors are of.
    """

    factors: LayerFactors
    rates: float
    decay: float
    positions: float = 1.0
    scale: Tensor | None = None

    def moved(self, gradient: Tensor) -> Tensor:
        """R applied to gradients [..., O, I], as a new tensor."""
        scale = self._scale(gradient)
        return scale * self._rotated(scale * gradient, lambda x: self.rates * decayed_mean(x))

    def carried(self, gradient: Tensor) -> Tensor:
        """Sᵀ applied to gradients [..., O, I], as a new tensor."""
        scale = self._scale(gradient)
        inverse = torch.where(scale > 0, 1 / scale, 0)
        return inverse * self._rotated(scale * gradient, lambda x: torch.exp(-x))

    def _scale(self, like: Tensor) -> Tensor:
        return like.new_ones(()) if self.scale is None else self.scale.to(like)

    def _rotated(self, gradient: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Q f(ηK (σ + λ)) Qᵀ."""
        one = self.factors
        assert one.spectrum is not None and one.q_in is not None and one.q_out is not None  # of EK-FAC's factors
        values = function(self.rates * (one.spectrum.double() / self.positions + self.decay)).to(gradient)
        q_in, q_out = one.q_in.to(gradient), one.q_out.to(gradient)
        return q_out @ (values * (q_out.T @ gradient @ q_in)) @ q_in.T


def decayed_mean(x: Tensor) -> Tensor:
    """(1 − e^{−x}) / x for x ≥ 0, 1 at 0: the mean of e^{−u} for u from 0 to x."""
    safe = torch.where(x > 0, x, 1)
    return torch.where(x > 0, -torch.expm1(-safe) / safe, 1)


def adam_scale(second: Tensor, eps: float, eps_root: float = 0.0) -> Tensor:
    """Of each weight s = (√(v̂ + ε_r) + ε)^{−1/2} of AdamW's second moment v̂, 0 where v̂ is 0."""
    return torch.where(second > 0, ((second + eps_root).sqrt() + eps).rsqrt(), 0)
