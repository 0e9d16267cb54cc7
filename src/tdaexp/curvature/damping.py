"""Damping: λ as a fixed number or as a fraction of a layer's mean eigenvalue; never added in place."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def times(self, factor: float) -> Damping:
        """So many times this damping."""
        return Damping(None if self.value is None else factor * self.value, factor * self.relative)

    def amount(self, mean: float) -> float:
        """λ for a layer whose eigenvalues have this mean."""
        return self.relative * mean if self.value is None else self.value

    def of(self, spectrum: Tensor, layer: str, rounding: float) -> float:
        """λ for a layer with eigenvalues `spectrum` [O, I].

        `rounding`: the largest share of the top eigenvalue that a direction without curvature can have by rounding.
        Errors (UserError): λ is 0, and a whole row or column is zero but for rounding (a factor of deficient rank), or
        an eigenvalue is exactly zero. A small eigenvalue among larger ones is the product of two small ones: no error.
        """
        amount = self.amount(float(spectrum.mean()))
        if amount > 0:
            return amount
        limit = rounding * float(spectrum.max())
        empty = (spectrum.amax(1, keepdim=True) <= limit) | (spectrum.amax(0, keepdim=True) <= limit) | (spectrum == 0)
        if bool(empty.any()):
            raise UserError(
                f"layer '{layer}': {int(empty.sum()):,} of {spectrum.numel():,} eigenvalues are zero to rounding and "
                "so is the damping: the curvature cannot be inverted; set method.damping "
                f"(say {max(limit, 1e-8):.1g}), or method.damping=null method.relative_damping=0.1"
            )
        return amount
