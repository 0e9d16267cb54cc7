"""Puts together, during a backward pass, the factors of components whose parts arrive one module at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tdaexp.gradients.factors import (
    EmbeddingFactors,
    Factors,
    LinearFactors,
    TiedFactors,
    VectorFactors,
    accumulation_dtype,
)
from tdaexp.models.components import Component, ComponentMap, Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Assembly:
    """Turns (module, input, output gradient) into component factors and hands each finished component on."""

    def __init__(
        self, model: PreTrainedModel, components: ComponentMap, consume: Callable[[Component, Factors], None]
    ) -> None:
        """`consume(component, factors)` is called once per component, when its last part has arrived."""
        self.consume = consume
        self.modules: dict[str, nn.Module] = {}
        self._shares: dict[str, list[tuple[Component, int]]] = {}
        self._arrived: dict[str, dict[int, Factors]] = {
            component.name: {} for component in components.components
        }
        for component in components.components:
            for place, part in enumerate(component.parts):
                self.modules.setdefault(part.module, model.get_submodule(part.module))
                self._shares.setdefault(part.module, []).append((component, place))

    def receive(self, path: str, inputs: Tensor, delta: Tensor) -> None:
        """Take the gradient δ of the output of the module at `path`, whose input was `inputs`."""
        for component, place in self._shares[path]:
            part = component.parts[place]
            arrived = self._arrived[component.name]
            arrived[place] = part_factors(part, self.modules[path], inputs, delta)
            if len(arrived) == len(component.parts):
                del self._arrived[component.name]
                self.consume(component, combine(component, [arrived[k] for k in range(len(arrived))]))

    def check_complete(self) -> None:
        """A component that the backward pass did not reach is an error of the component map."""
        if self._arrived:
            raise RuntimeError(f"no gradient reached the components {', '.join(self._arrived)}")


def part_factors(part: Part, module: nn.Module, inputs: Tensor, delta: Tensor) -> Factors:
    """Factors of one module (or of its rows in a fused matrix) from its input and its output's gradient δ."""
    if part.kind == "embedding":
        return EmbeddingFactors(inputs, delta, part.shape[1])
    if part.kind == "norm":
        return VectorFactors(norm_gradient(part, module, inputs, delta))
    if part.rows is not None:
        delta = delta.index_select(2, torch.from_numpy(part.rows).to(delta.device))
    return LinearFactors(inputs, delta, part.bias)


def norm_gradient(part: Part, module: nn.Module, inputs: Tensor, delta: Tensor) -> Tensor:
    """Per-example gradient of y = w ⊙ x̂ + b: weight Σ_t δ_t ⊙ x̂_t, then bias Σ_t δ_t. Returns [B, size].

    x̂ is what the module itself computes with weight 1 and bias 0, so every kind of norm is covered as it is.
    """
    plain = {"weight": torch.ones_like(module.weight)}
    if part.bias:
        plain["bias"] = torch.zeros_like(module.bias)
    with torch.no_grad():
        normalised = torch.func.functional_call(module, plain, (inputs,))
    wide = accumulation_dtype(delta.dtype)
    delta = delta.to(wide)
    gradient = (delta * normalised.to(wide)).sum(1)
    return torch.cat([gradient, delta.sum(1)], dim=1) if part.bias else gradient


def combine(component: Component, parts: list[Factors]) -> Factors:
    """Factors of a component from those of its parts: one layer, norms side by side, or a tied embedding."""
    if len(parts) == 1:
        return parts[0]
    vectors = [part.gradient for part in parts if isinstance(part, VectorFactors)]
    if len(vectors) == len(parts):
        return VectorFactors(torch.cat(vectors, dim=1))
    embedding = [part for part in parts if isinstance(part, EmbeddingFactors)]
    head = [part for part in parts if isinstance(part, LinearFactors)]
    if len(embedding) == len(head) == 1 == len(parts) - 1:
        return TiedFactors(embedding[0], head[0])
    raise NotImplementedError(
        f"component '{component.name}' mixes kinds of layers that have no common gradient form"
    )
