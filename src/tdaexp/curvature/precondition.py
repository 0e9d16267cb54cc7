"""The damped inverse of one layer's curvature, applied to gradients.

Source: Bao et al. 2025, equation 7: (G + λI)⁻¹ V ≈ Q_S [(Q_Sᵀ V Q_A) ⊘ (Λ + λ)] Q_Aᵀ. Cost: 2 O I (O + I) multiply-adds
per gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.runtime.deferred import send


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """Curvature of one layer: eigenvectors `q_out` [O, O] and `q_in` [I, I] (None = identity), eigenvalues `spectrum`
    [O, I] (None = the identity matrix, which is neither damped nor inverted).

    `squares`: the spectrum is made of squared gradients, not of products of the factors' eigenvalues. Where there is no
    curvature rounding then leaves its square.
    """

    name: str
    q_out: Tensor | None
    q_in: Tensor | None
    spectrum: Tensor | None
    squares: bool = True

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
        """(G + λI)⁻¹ applied to gradients [..., O, I]; a new tensor of the same shape, the factors stay as they are.

        Errors (UserError): see `Damping.of`.
        """
        if self.spectrum is None:
            return gradient
        device, dtype = gradient.device, gradient.dtype
        damped = (self.spectrum + damping.of(self.spectrum, self.name, self.rounding)).to(device, dtype)
        if self.q_in is None or self.q_out is None:
            return gradient / damped
        q_in, q_out = self.q_in.to(device, dtype), self.q_out.to(device, dtype)
        return q_out @ ((q_out.T @ gradient @ q_in) / damped) @ q_in.T

    @property
    def rounding(self) -> float:
        """The largest share of the top eigenvalue that a direction without curvature can have by rounding."""
        assert self.spectrum is not None
        eps: float = torch.finfo(self.spectrum.dtype).eps
        return (eps * max(self.spectrum.shape)) ** (2 if self.squares else 1)

    def to(self, device: torch.device) -> LayerFactors:
        """The same on a device."""
        q_out, q_in, spectrum = (
            None if one is None else send(one, device) for one in (self.q_out, self.q_in, self.spectrum)
        )
        return replace(self, q_out=q_out, q_in=q_in, spectrum=spectrum)

    @property
    def bytes(self) -> int:
        """Memory that the factors take."""
        held = [one for one in (self.q_out, self.q_in, self.spectrum) if one is not None]
        return sum(one.numel() * one.element_size() for one in held)


def low_rank(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best approximation of rank r of matrices [n, O, I]: Σ_r left_r right_rᵀ, with [n, r, O] and [n, r, I], the latter
    orthonormal.

    By eigenvectors of the smaller of the two products of a matrix with itself, in float64, which squares what
    rounding leaves: singular values of batches of matrices take a GPU minutes.
    """
    flat = gradient.shape[1] < gradient.shape[2]
    wide = (gradient if flat else gradient.transpose(1, 2)).double()
    rank = min(rank, wide.shape[1])
    vectors = torch.linalg.eigh(wide @ wide.transpose(1, 2)).eigenvectors[..., -rank:]
    if flat:
        vectors = torch.linalg.qr(wide.transpose(1, 2) @ vectors).Q
    right = vectors.to(gradient.dtype)
    return (gradient @ right).transpose(1, 2).contiguous(), right.transpose(1, 2).contiguous()
