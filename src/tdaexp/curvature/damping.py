"""Damping: λ as a fixed number or as a fraction of a layer's mean eigenvalue; never added in place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class Damping:
    """λ of G + λ I. `value` is λ itself, the same for all layers; None means `relative` times a layer's mean Λ."""

    value: float | None = None
    relative: float = 0.1

    def __post_init__(self) -> None:
        """Refuse negative and undefined damping."""
        for name in ("value", "relative"):
            one = getattr(self, name)
            if one is not None and not 0 <= one < math.inf:
                raise UserError(f"damping: {name}={one} must be a finite number that is not negative")

    def of(self, spectrum: Tensor, layer: str) -> float:
        """λ for a layer with eigenvalues `spectrum`. Errors (UserError): λ is 0 where an eigenvalue is, to rounding."""
        amount = self.relative * float(spectrum.mean()) if self.value is None else self.value
        limit = float(spectrum.max()) * torch.finfo(spectrum.dtype).eps * max(spectrum.shape)
        if amount == 0 and float(spectrum.min()) <= limit:
            small = int((spectrum <= limit).sum())
            raise UserError(
                f"layer '{layer}': {small:,} of {spectrum.numel():,} eigenvalues are zero to rounding and so is the "
                f"damping: the curvature cannot be inverted; set method.damping (say {max(limit, 1e-8):.1g}) or "
                "method.relative_damping=0.1"
            )
        return amount
