"""Random projection of gradients, component by component: how many dimensions each gets, and which sketch.

As in Hinterleitner et al. 2026, section 3.4: a separate random matrix per component, dimensions in
proportion to its parameters, the results concatenated.

| kind | cost per example | needs |
|---|---|---|
| `factorised` | O(T (d_in k_in + d_out k_out)) | the gradient's factors, never the gradient |
| `srht` | O(numel log k) | the gradient |
| `sjlt` | O(s numel) | the gradient |
| `trak` | O(numel k) | the gradient; the paper's own |
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch

from tdaexp.gradients.sketch import Sketch, component_seed
from tdaexp.gradients.sketch_factorised import FactorisedSketch
from tdaexp.gradients.sketch_sjlt import SJLTSketch
from tdaexp.gradients.sketch_srht import SRHTSketch
from tdaexp.gradients.sketch_trak import TrakSketch, has_fast_jl
from tdaexp.runtime.errors import UserError, unknown

DENSE = {"factorised": FactorisedSketch, "trak": TrakSketch}
SIGNED = {"srht": SRHTSketch, "sjlt": SJLTSketch}
KINDS = (*DENSE, *SIGNED)
DISTRIBUTIONS = ("rademacher", "normal")
RULES = ("paper", "proportional")
PAPER_MULTIPLE = 512


def make_sketch(
    kind: str, name: str, shape: tuple[int, int], dim: int, seed: int, distribution: str = "rademacher"
) -> Sketch:
    """Build the `dim`-dimensional sketch of component `name`, whose gradient is [d_out, d_in] = `shape`.

    `kind` is one of KINDS; a factorised sketch may have fewer dimensions (its `dim` tells). `distribution`
    is that of the matrix entries, and "normal" exists for factorised and trak only. Raises UserError for a
    choice that does not exist.
    """
    if dim < 1:
        raise UserError(f"projection: {dim} dimensions for component '{name}'; give it at least 1")
    check_kind(kind, distribution)
    if kind in DENSE:
        return DENSE[kind](shape, dim, component_seed(seed, name, kind), distribution)
    sketch: Sketch = SIGNED[kind](shape, dim, component_seed(seed, name, kind))
    return sketch


def drawn_by(kind: str, device: torch.device) -> str:
    """What decides a sketch's random numbers beside its seed: all but traker's are drawn on the CPU."""
    return kind if kind != "trak" or device.type == "cpu" else f"{kind} on {device.type}{' by fast_jl' * has_fast_jl()}"


def check_kind(kind: str, distribution: str) -> None:
    """Raise UserError for a kind or distribution that does not exist, or for two that do not go together."""
    if kind not in KINDS:
        raise unknown("projection", kind, KINDS, "method.projection")
    if distribution not in DISTRIBUTIONS:
        raise unknown("distribution", distribution, DISTRIBUTIONS, "method.distribution")
    if kind in SIGNED and distribution != "rademacher":
        raise UserError(
            f"method.projection={kind}: its entries are signs, there is no '{distribution}' form; "
            "use method.distribution=rademacher"
        )


def dimensions(sizes: Mapping[str, int], budget: float, rule: str = "paper") -> dict[str, int]:
    """Share out `budget` x all parameters as dimensions, in proportion to `sizes` (name -> parameters).

    Rule "paper": multiples of 512, at least 512 each; the total is the multiple of 512 nearest to the
    budget (where that leaves 512 each), shared out by largest remainders, ties to the first in order. For
    OLMo-1B's 113 components these are the paper's totals, 11,767,808 at 1 % and 58,838,016 at 5 %. On a
    small model the least of 512 each can exceed the budget.

    Rule "proportional": each component's share rounded, at least 1.

    Raises UserError for a budget outside (0, 1] and for an unknown rule.
    """
    if not 0 < budget <= 1:
        raise UserError(f"budget={budget}: a budget is above 0 and at most 1; try budget=0.01")
    if rule == "proportional":
        return {name: max(1, round(budget * size)) for name, size in sizes.items()}
    if rule != "paper":
        raise unknown("dimension rule", rule, RULES, "projection")
    units = max(len(sizes), round(budget * sum(sizes.values()) / PAPER_MULTIPLE))
    return {name: PAPER_MULTIPLE * count for name, count in _share_out(sizes, units).items()}


def _share_out(sizes: Mapping[str, int], units: int) -> dict[str, int]:
    """Share out `units` in proportion to `sizes`, at least one each; the counts add up to `units`."""
    shared = dict.fromkeys(sizes, 1)
    larger = dict(sizes)
    # Whoever would get less than one gets one, which leaves less for the others: repeat until none does.
    total = sum(larger.values())
    while small := [name for name, size in larger.items() if size * units < total]:
        for name in small:
            total -= larger.pop(name)
        units -= len(small)
    shares = {name: Fraction(size * units, total) for name, size in larger.items()}
    shared |= {name: int(share) for name, share in shares.items()}
    left = units - sum(int(share) for share in shares.values())
    for name in sorted(shares, key=lambda name: int(shares[name]) - shares[name])[:left]:
        shared[name] += 1
    return shared
