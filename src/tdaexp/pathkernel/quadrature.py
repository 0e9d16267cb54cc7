"""Rules for ∫₀¹ g(t) dt along one step, with node counts fixed or steered by what entries and sums are off by.

Left Riemann sums carry a first-order bias that adds up over a run. Midpoint and trapezoid are second order; n
Gauss–Legendre nodes are exact for polynomials of degree 2n − 1. At kinks (ReLU) every rule of nodes is first order.
The rule secant takes no gradient at a node: it cuts the step into n equal pieces, each complete with one derivative.

Complete sums say nothing of single entries: secant's sum to the true change however long the step is. What entries are
off by is estimated by the difference from a `finer` rule.
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
SMOOTH_TOLERANCE = 1e-3
"""Of a smooth network whose rule is `auto`, where none is set: there a second node is worth thousands at a kink."""


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
class Finer:
    """A `rule` of `nodes` that is nearer to the integral; times `factor`, the difference from it is the error."""

    rule: str
    nodes: int
    factor: float


def finer(rule: str, count: int) -> Finer:
    """By what the error of `count` nodes is estimated.

    Secant falls fourfold where pieces are halved, at kinks too, since it averages over them: e₁ − e₂ = ¾ e₁. A rule of
    nodes is compared with four times as many of Gauss: spectrally better on smooth networks, and at kinks, where errors
    fall as one over the nodes, off by a quarter of what is estimated.
    """
    return Finer("secant", 2 * count, 4 / 3) if rule == "secant" else Finer("gauss", 4 * count, 1.0)


@dataclass(frozen=True)
class Quadrature:
    """`nodes` per step; with a `tolerance` a step gets more, doubling up to `most`, until its entries are off by no
    more than that share of them (estimated, Euclidean norms) and |residual| ≤ tolerance · |change| (norms over all
    queries and outputs). The rule may be `auto` until `chosen` settles it.
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

    def chosen(self, secant: bool, smooth: bool = False) -> Quadrature:
        """The same with the rule `auto` settled: secant, or gauss, with a small tolerance on a `smooth` network."""
        if self.rule != AUTO:
            return self
        tolerance = SMOOTH_TOLERANCE if smooth and not secant and self.tolerance is None else self.tolerance
        return replace(self, rule="secant" if secant else "gauss", tolerance=tolerance, most=max(self.most, self.nodes))

    def counts(self) -> list[int]:
        """Node counts to try, in order."""
        found = [self.nodes]
        while self.tolerance is not None and found[-1] * 2 <= self.most:
            found.append(found[-1] * 2)
        return found

    def satisfied(self, residual: float, change: float, rounding: float) -> bool:
        """Whether norms of residual and change allow to stop; `rounding` is the output's norm times its epsilon."""
        return self.tolerance is None or residual <= max(self.tolerance * change, FLOOR * rounding)
