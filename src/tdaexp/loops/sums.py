"""The sum of captured shares against the gradient that the optimiser got: is it that, and how long is it?

The first says whether shares are right: they are not where a weight is used in a second place, or where the loss mixes
examples in a way that no rule knows. It is seen once in a training, for the memory and time of a gradient. The second
is what the loop has made of the gradient before the optimiser got it: a scaler's scale taken off, an average over
processes, clipping. It is seen at each update, by the smallest components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tdaexp.gradients.factors import Factors, LinearFactors
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.loops.loop import Loop
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.errors import UserError

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
ROUNDED = 5e-2
"""Largest relative error of a component's gradient by the type of what was captured; of 16 bits the last."""
FLOOR = 1e-3
"""A component whose gradient is smaller than this share of the largest one's is judged by that: it may be rounding."""
GAUGES = 3
"""Components by which the gradient's length is seen."""


class Sums:
    """Sums over the examples of a pass of their shares, of the components in `names` (None: all)."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = names
        self.found: dict[str, Tensor] = {}
        self.tolerance = 0.0

    def add(self, components: list[Component], factors: list[Factors]) -> None:
        """Take what a backward pass brings."""
        for component, one in zip(components, factors, strict=True):
            if self.names is None or component.name in self.names:
                type_of = next(tensor.dtype for tensor in reversed(one.tensors) if tensor.is_floating_point())
                self.tolerance = max(self.tolerance, TOLERANCE.get(type_of, ROUNDED))
                self.found[component.name] = _summed(one)


def checked(model: nn.Module, components: ComponentMap, passes: Sequence[Sums], loop: Loop) -> list[str]:
    """See that the shares of an update's passes sum to its gradient, whatever its length; returns the gauges.

    Errors (UserError): a component's do not; it is named.
    """
    mine = _total(passes, components.names, loop)
    wanted = {one.name: _gradient(model, components, one) for one in components.components}
    length = _along(mine, wanted)
    norms = {name: float(one.norm()) for name, one in wanted.items()}
    largest, tolerance = max(norms.values()), max(each.tolerance for each in passes)
    for name, one in mine.items():
        error = float((wanted[name] - length * one).norm())
        if not error <= tolerance * max(norms[name], FLOOR * largest):
            raise UserError(
                f"loop: the examples' captured gradients of the component '{name}' do not sum to the gradient that the "
                f"optimiser got (relative error {error / norms[name] if norms[name] else float('inf'):.3g}, allowed "
                f"{tolerance:g}), so that its scores would be wrong: its weights are used elsewhere too, or the loss "
                "mixes examples; leave it out (components=[…])"
            )
    sizes = dict(zip(components.names, components.sizes.tolist(), strict=True))
    return sorted((name for name in sizes if norms[name] > FLOOR * largest), key=sizes.__getitem__)[:GAUGES]


def length(model: nn.Module, components: ComponentMap, passes: Sequence[Sums], gauges: list[str], loop: Loop) -> float:
    """The optimiser's gradient over the sum of the shares of an update's passes, by its gauges; 0 where these are."""
    mine = _total(passes, gauges, loop)
    known = [one for one in components.components if one.name in gauges]
    return _along(mine, {one.name: _gradient(model, components, one) for one in known})


def _along(mine: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """⟨mine, wanted⟩ / ⟨mine, mine⟩."""
    square = sum(float(one.square().sum()) for one in mine.values())
    return sum(float((one * wanted[name]).sum()) for name, one in mine.items()) / square if square else 0.0


def _total(passes: Sequence[Sums], names: Sequence[str], loop: Loop) -> dict[str, Tensor]:
    """Sums over passes and processes."""
    found = {}
    for name in names:
        total = torch.stack([each.found[name] for each in passes]).sum(0)
        if loop.world > 1:
            dist.all_reduce(total)
        found[name] = total
    return found


def _gradient(model: nn.Module, components: ComponentMap, component: Component) -> Tensor:
    """What the component's parameters have in `.grad` [size]."""
    space, named = VectorSpace(model, replace(components, components=(component,))), dict(model.named_parameters())
    own = {}
    for name in space.names:
        found = named[name].grad
        own[name] = (torch.zeros_like(named[name]) if found is None else found)[None]
    vector = space.vectors(own)[0]
    return vector.to(accumulation_dtype(vector.dtype))


def _summed(factors: Factors) -> Tensor:
    """Σ_i G_i [size]."""
    if isinstance(factors, LinearFactors):
        wide = accumulation_dtype(factors.deltas.dtype)
        inputs, deltas = (one.flatten(0, 1).to(wide) for one in (factors.extended_inputs(), factors.deltas))
        return (deltas.T @ inputs).flatten()
    total = factors.materialise(slice(0, 1))[0]
    for row in range(1, factors.examples):
        total = total + factors.materialise(slice(row, row + 1))[0]
    return total
