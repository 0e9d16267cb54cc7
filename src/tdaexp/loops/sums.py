"""The check of captured shares: do they sum to the gradient that the optimiser got?

They do not where a loss mixes its examples' layers in ways that no rule knows, or where a weight is used in a second
place. Cost: once in a training, a gradient's memory and time.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
ROUNDED = 5e-2
"""Largest relative error of a component's gradient, by the type that output gradients have; of those of 16 bits the
last."""
FLOOR = 1e-3
"""A component whose gradient is smaller than this share of the largest one's is judged by that: it may be rounding."""
CLIPPED = 1e-2
"""Another length of the gradient that is said, as it was clipped."""


class Sums:
    """Sums over the examples of a pass of their shares, by component."""

    def __init__(self, model: nn.Module, components: ComponentMap) -> None:
        self.model, self.components = model, components
        self.found: dict[str, Tensor] = {}
        self.tolerance = 0.0

    def add(self, components: list[Component], factors: list[Factors]) -> None:
        """Take what a backward pass brings."""
        for component, one in zip(components, factors, strict=True):
            narrowest = next(tensor for tensor in reversed(one.tensors) if tensor.is_floating_point())
            self.tolerance = max(self.tolerance, TOLERANCE.get(narrowest.dtype, ROUNDED))
            self.found[component.name] = _summed(one)

    @staticmethod
    def check(passes: Sequence[Sums], loop: Loop, by: float) -> None:
        """Compare the sum over an update's passes, times `by`, with the gradient that its parameters have.

        Clipping may have shortened it. Errors (UserError): a component differs, by its name.
        """
        first = passes[0]
        fused = loop.scaler is not None and getattr(loop.optimizer, "_step_supports_amp_scaling", False)
        scale = loop.scale if fused else 1.0  # such an optimiser unscales for itself
        mine, wanted = {}, {}
        for one in first.components.components:
            total = sum((each.found[one.name] for each in passes), torch.zeros_like(first.found[one.name])) * by
            if loop.world > 1:
                dist.all_reduce(total)
            mine[one.name], wanted[one.name] = total, _gradient(first, one) / scale
        square = sum(float(one.square().sum()) for one in mine.values())
        length = sum(float((one * wanted[name]).sum()) for name, one in mine.items()) / square if square else 1.0
        largest = max(float(one.norm()) for one in wanted.values())
        tolerance = max(each.tolerance for each in passes)
        for name, one in mine.items():
            error, norm = float((wanted[name] - length * one).norm()), float(wanted[name].norm())
            if not error <= tolerance * max(norm, FLOOR * largest):
                raise UserError(
                    f"loop: the examples' captured gradients of the component '{name}' do not sum to the gradient that "
                    f"the optimiser got (relative error {error / norm if norm else float('inf'):.3g}, allowed "
                    f"{tolerance:g}), so that its scores would be wrong: its weights are used elsewhere too, or the "
                    "loss mixes examples; leave it out (components=[…])"
                )
        if length > 1 + max(CLIPPED, tolerance):
            raise UserError(f"loop: the optimiser's gradient is {length:.4g} times the sum of its examples'; give the "
                            "gradient scaler that the loop uses (scaler=SCALER)")  # fmt: skip
        if length < 1 - max(CLIPPED, tolerance):
            log.info("loop: the first gradient was clipped to %.3g of its length; scores are of gradients as they are", length)


def _gradient(sums: Sums, component: Component) -> Tensor:
    """What the component's parameters have in `.grad` [size]."""
    space = VectorSpace(sums.model, replace(sums.components, components=(component,)))
    named = dict(sums.model.named_parameters())
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
