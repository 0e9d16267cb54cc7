"""One simulated AdamW update of a large model, decomposed tensor by tensor (theorem 3.1 and remark F.3).

f(θ_{s+1}) − f(θ_s) = Σ_parts Σ_components φ_s · direction + residual with φ_s = ∫₀¹ ∇f(θ_s(t)) dt, as in `decompose`.
Here f is a sum over pieces of a batch, whose gradients torch adds up by itself: the nodes' weights go into the backward
passes, so that `.grad` ends as φ_s. Device: the parameters, `.grad` and one piece's activations; host: θ_s, θ_{s+1} and
the batch's gradient. Moments are read when a tensor is reached. Cost: a forward and a backward pass a node, and two
forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.pathkernel.quadrature import Quadrature, nodes
from tdaexp.pathkernel.updates import AdamW, simulated_update

PARTS = ("kernel", "regularisation", "first_moment")
Total = Callable[[float | None], float]
"""f at the model's present weights; with a weight w it also adds w ∇f to every parameter's `.grad`."""
Moments = Callable[[str], tuple[Tensor, Tensor]]
"""Parameter name -> running averages of gradient and squared gradient before the update."""


@dataclass(frozen=True)
class Slab:
    """Parameters of one component in one tensor: all of it, or `rows` along `axis`."""

    component: int
    parameter: str
    rows: Tensor | None = None
    axis: int = 0


@dataclass(frozen=True)
class SimulatedStep:
    """An update from θ_s (`start`) by the batch's `gradient`, all on the host by parameter name."""

    rule: AdamW
    start: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]
    moments: Moments
    lr: float
    weight_decay: Mapping[str, float]

    @cached_property
    def end(self) -> dict[str, Tensor]:
        """θ_{s+1}, as rounded as the optimiser would leave it."""
        return {name: start + sum(self._parts(name).values()) for name, start in self.start.items()}

    def parts(self, name: str) -> dict[str, Tensor]:
        """Directions of one parameter, by PARTS, that sum to θ_{s+1} − θ_s: the kernel's is what the others leave."""
        found = self._parts(name)
        found["kernel"] = self.end[name] - self.start[name] - found["regularisation"] - found["first_moment"]
        return {part: found[part] for part in PARTS}

    def kernel_scale(self, name: str) -> Tensor:
        """What multiplies an example's share of the batch's gradient in the kernel's direction."""
        gradient, layout, beta = self.gradient[name], self._layout(name), self.rule.betas[1]
        raw = beta * self._moments(name)[1] + (1 - beta) * gradient**2
        one = {name: self.start[name]}
        none = gradient.new_empty(0)
        step = Step(0, one, one, {name: self.lr}, {name: 0.0}, none, none, {name: raw})
        now = self.rule.coefficients(0)
        return (-now.gain * now.take * self.rule.scale(step, layout)).view_as(gradient)

    def _parts(self, name: str) -> dict[str, Tensor]:
        first, second = self._moments(name)
        flat = simulated_update(
            self.rule, {name: self.start[name]}, {name: self.gradient[name]}, {name: first}, {name: second},
            lr={name: self.lr}, weight_decay={name: self.weight_decay[name]}, layout=self._layout(name),
        )  # fmt: skip
        return {part: value.view_as(self.start[name]) for part, value in flat.items()}

    def _moments(self, name: str) -> tuple[Tensor, Tensor]:
        first, second = self.moments(name)
        return first.to(self.start[name]), second.to(self.start[name])

    def _layout(self, name: str) -> Layout:
        return Layout({name: (name,)}, {name: self.start[name].shape})


@dataclass(frozen=True)
class Change:
    """f before and after the update, and the `nodes` used; φ_s is left in the parameters' `.grad`."""

    before: float
    after: float
    nodes: int


def integrate(
    f: Total,
    parameters: Mapping[str, Tensor],
    step: SimulatedStep,
    quadrature: Quadrature,
    entries: Callable[[], Tensor] | None = None,
) -> Change:
    """Leave φ_s in `.grad` and θ_s in the parameters; more nodes where the quadrature's tolerance asks for them.

    `entries` reads some from `.grad`: they are held to the tolerance too, by what the last doubling changed of them.
    """
    move(parameters, step, 0.0)
    before = f(None)
    move(parameters, step, 1.0)
    after = f(None)
    rounding = abs(after) * torch.finfo(next(iter(parameters.values())).dtype).eps
    counts = quadrature.counts()
    last: Tensor | None = None
    for count in counts:
        clear(parameters)
        for position, weight in zip(*nodes(quadrature.rule, count), strict=True):
            move(parameters, step, float(position))
            f(float(weight))
        if count == counts[-1]:
            break
        found = sum(
            float(((step.end[name] - step.start[name]) * phi).sum(dtype=torch.float64))
            for name, phi in gradients(parameters).items()
        )
        settled = entries is None
        if entries is not None:
            now = entries()
            change = now - last if last is not None else now
            settled, last = quadrature.satisfied(float(change.norm()), float(now.norm()), rounding), now
        if settled and quadrature.satisfied(abs(after - before - found), abs(after - before), rounding):
            break
    move(parameters, step, 0.0)
    return Change(before, after, count)


def move(parameters: Mapping[str, Tensor], step: SimulatedStep, position: float) -> None:
    """Set the parameters to θ_s + t (θ_{s+1} − θ_s), in place."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            start, end = step.start[name], step.end[name]
            whole = {0.0: start, 1.0: end}
            parameter.copy_(whole[position] if position in whole else start + position * (end - start))


def gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`.grad` by name on the host, zeros where no pass has reached a parameter; on the CPU it is no copy."""
    return {
        name: torch.zeros_like(parameter, device="cpu") if parameter.grad is None else parameter.grad.detach().cpu()
        for name, parameter in parameters.items()
    }


def clear(parameters: Mapping[str, Tensor]) -> None:
    """Forget `.grad`; what `gradients` gave out stays."""
    for parameter in parameters.values():
        parameter.grad = None


def dots(
    left: Callable[[str], Mapping[str, Tensor]], right: Mapping[str, Tensor], slabs: Iterable[Slab], components: int
) -> dict[str, Tensor]:
    """Dot products [K] float64 by component of the directions `left(NAME)` with `right`, by the directions' names."""
    totals: dict[str, Tensor] = {}
    by_name: dict[str, list[Slab]] = {}
    for slab in slabs:
        by_name.setdefault(slab.parameter, []).append(slab)
    for name, own in by_name.items():
        for part, direction in left(name).items():
            total = totals.setdefault(part, torch.zeros(components, dtype=torch.float64, device="cpu"))
            product = direction * right[name]
            for slab in own:
                chosen = product if slab.rows is None else product.index_select(slab.axis, slab.rows)
                total[slab.component] += chosen.sum(dtype=torch.float64)
    return totals
