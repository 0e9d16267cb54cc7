"""Rules for ∫₀¹ g(t) dt along one step, with node counts fixed or steered by the completeness residual.

Left Riemann sums carry a first-order bias that adds up over a run. Midpoint and trapezoid are second order; n
Gauss–Legendre nodes are exact for polynomials of degree 2n − 1. At kinks (ReLU) every rule of nodes is first order.
The rule secant takes no gradient at a node: it cuts the step into n equal pieces, each complete with one derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tdaexp.runtime.errors import UserError, unknown

RULES = ("secant", "gauss", "midpoint", "trapezoid", "left")
AUTO = "auto"
"""Instead of a rule: whoever knows the network puts secant or gauss in its place."""
FLOOR = 64.0
"""A residual of so many roundings of the output itself is rounding: more nodes cannot lower it."""


def nodes(rule: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in [0, 1] and weights, float64 [count], that sum to 1; for secant the pieces' middles.

    Errors (UserError): unknown rule, no node.
    """
    if rule not in RULES:
        raise unknown("quadrature rule", rule, [*RULES, AUTO], "method.quadrature.rule")
    if count < (2 if rule == "trapezoid" else 1):
        raise UserError(
            f"method.quadrature.nodes={count}: too few for the rule '{rule}'; use at least "
            f"{2 if rule == 'trapezoid' else 1}"
        )
    if rule == "gauss":
        positions, weights = np.polynomial.legendre.leggauss(count)
        return (positions + 1) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(count, 1 / (count - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, count), weights
    offset = 0.0 if rule == "left" else 0.5
    return (np.arange(count) + offset) / count, np.full(count, 1 / count)


@dataclass(frozen=True)
class Quadrature:
    """`nodes` per step; with a `tolerance` a step gets more, doubling up to `most`, until |residual| ≤ tolerance ·
    |change| (Euclidean norms over all queries and outputs). The rule may be `auto` until `chosen` settles it.
    """

    rule: str = "gauss"
    nodes: int = 1
    tolerance: float | None = None
    most: int = 16

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        nodes("gauss" if self.rule == AUTO else self.rule, self.nodes)
        if self.tolerance is not None and not self.tolerance > 0:
            raise UserError(f"method.quadrature.tolerance={self.tolerance}: must be positive, or null for fixed nodes")
        if self.tolerance is not None and self.most < self.nodes:
            raise UserError(f"method.quadrature.most={self.most}: below method.quadrature.nodes={self.nodes}")

    def chosen(self, secant: bool) -> Quadrature:
        """The same with the rule `auto` settled: secant, or gauss."""
        return replace(self, rule="secant" if secant else "gauss") if self.rule == AUTO else self

    def counts(self) -> list[int]:
        """Node counts to try, in order."""
        found = [self.nodes]
        while self.tolerance is not None and found[-1] * 2 <= self.most:
            found.append(found[-1] * 2)
        return found

    def satisfied(self, residual: float, change: float, rounding: float) -> bool:
        """Whether norms of residual and change allow to stop; `rounding` is the output's norm times its epsilon."""
        return self.tolerance is None or residual <= max(self.tolerance * change, FLOOR * rounding)
