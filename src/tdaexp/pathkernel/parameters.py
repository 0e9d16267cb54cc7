"""What every part of the path kernel is about: parameters by name, their components, and one step of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tdaexp.runtime.errors import UserError

Parameters = Mapping[str, Tensor]
Batch = tuple[Tensor, ...]
Function = Callable[[Parameters, Batch], Tensor]
"""(θ, tensors with a leading axis [Q]) -> [Q, O]. Row q depends on element q of the batch alone; a function that
reduces over its batch returns one row."""
Components = Mapping[str, tuple[str, ...]]
"""Component name -> names of its parameters: disjoint, and together all that is differentiated."""


@dataclass(frozen=True)
class Step:
    """One update, from θ_s (`start`) to θ_{s+1} (`end`).

    `lr` and `weight_decay` by parameter name; `second_moment` is the optimiser's raw running average after the update
    (None without one); `ids` [B] int64 indices of the batch's examples in the training set, `weights` [B] their
    weights in this step's own loss (1/B for a mean).
    """

    number: int
    start: Parameters
    end: Parameters
    lr: Mapping[str, float]
    weight_decay: Mapping[str, float]
    ids: Tensor
    weights: Tensor
    second_moment: Parameters | None = None


@dataclass(frozen=True)
class Layout:
    """Parameters as one flat vector [D]: in order of components, so that a component is a slice."""

    components: Components
    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, parameters: Parameters, components: Components) -> Layout:
        """The layout of these parameters. Errors (UserError): components that overlap or name unknown parameters."""
        listed = [name for names in components.values() for name in names]
        if len(set(listed)) != len(listed):
            twice = next(name for name in listed if listed.count(name) > 1)
            raise UserError(f"components: parameter '{twice}' is in two of them; a component is a disjoint group")
        missing = [name for name in listed if name not in parameters]
        if missing:
            raise UserError(f"components: the model has no parameter '{missing[0]}'; it has {', '.join(parameters)}")
        return cls(components, {name: parameters[name].shape for name in listed})

    @property
    def names(self) -> list[str]:
        """Parameter names in order."""
        return list(self.shapes)

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        found, begin = {}, 0
        for name, shape in self.shapes.items():
            found[name] = slice(begin, begin + shape.numel())
            begin += shape.numel()
        return found

    @property
    def size(self) -> int:
        """D."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def slices(self) -> list[slice]:
        """Where each component lies in the flat vector."""
        places = self.places
        return [slice(places[names[0]].start, places[names[-1]].stop) for names in self.components.values()]

    def flat(self, tensors: Parameters) -> Tensor:
        """Tensors [*lead, *shape] by name as one tensor [*lead, D]."""
        lead = tensors[self.names[0]].ndim - len(self.shapes[self.names[0]])
        return torch.cat([tensors[name].flatten(lead) for name in self.names], dim=-1)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`."""
        return {name: vector[..., place].unflatten(-1, self.shapes[name]) for name, place in self._items()}

    def spread(self, values: Mapping[str, float], like: Tensor) -> Tensor:
        """One number per parameter name as a vector [D]."""
        return torch.cat([like.new_full((place.stop - place.start,), values[name]) for name, place in self._items()])

    def by_component(self, vectors: Tensor, others: Tensor) -> Tensor:
        """Dot products [K, A, B] by component of vectors [A, D] with others [B, D]."""
        return torch.stack([vectors[:, place] @ others[:, place].mT for place in self.slices])

    def _items(self) -> Iterator[tuple[str, slice]]:
        return iter(self.places.items())


def by_module(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The default components: one for each module that owns parameters, by its dotted path, in parameter order."""
    found: dict[str, tuple[str, ...]] = {}
    for name, _ in model.named_parameters():
        module = name.rpartition(".")[0] or name
        found[module] = (*found.get(module, ()), name)
    return found


def between(step: Step, position: float) -> dict[str, Tensor]:
    """θ_s(t) = θ_s + t (θ_{s+1} − θ_s) at t = `position`."""
    return {name: start + position * (step.end[name] - start) for name, start in step.start.items()}
