"""Explicit vectors over a model's components, and what they are as tensors of the model's parameters.

A vector lists the components in order; inside a component the layout is that of a materialised gradient (see
`factors`): a linear map row by row, each row followed by its bias; norms in parameter order. So a vector can be
multiplied with captured factors component by component, and be used as a direction in parameter space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdaexp.models.components import ComponentMap
from tdaexp.models.parts import Part

MATRICES = ("linear", "conv1d", "conv2d")


@dataclass(frozen=True)
class VectorSpace:
    """The space of vectors [..., size] over the `components` of `model`."""

    model: nn.Module
    components: ComponentMap

    @property
    def size(self) -> int:
        """Entries of a vector."""
        return int(self.components.sizes.sum())

    @property
    def slices(self) -> list[slice]:
        """Where each component lies in a vector."""
        found, start = [], 0
        for component in self.components.components:
            found.append(slice(start, start + component.size))
            start += component.size
        return found

    @property
    def names(self) -> set[str]:
        """Full names of the parameters that the components have a share in (one name for tied ones)."""
        return {name for *_, name in self._shares()}

    def parameters(self) -> dict[str, Tensor]:
        """These parameters, by name and in the model's order."""
        chosen = self.names
        return {name: value.detach() for name, value in self.model.named_parameters() if name in chosen}

    def tangents(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors [K, size] as directions in parameter space: name to [K, *shape], zero outside the components.

        Directions may share the memory of the vectors.
        """
        named = dict(self.model.named_parameters())
        found: dict[str, Tensor] = {}
        for place, part, kind, name in self._shares():
            shape = named[name].shape
            entries = place.of(vectors)
            if part.rows is None and part.expert is None:
                found[name] = _shaped(entries, part, kind, shape)
                continue
            if name not in found:
                found[name] = vectors.new_zeros(len(vectors), *shape)
            if part.expert is not None:
                rows = slice(None) if part.rows is None else part.rows
                found[name][:, part.expert, rows] = entries.reshape(len(entries), *part.shape)
            elif part.kind == "conv1d" and kind == "weight":
                found[name][:, :, part.rows] = _shaped(entries, part, kind, (part.shape[1], part.shape[0]))
            else:
                found[name][:, part.rows] = _shaped(entries, part, kind, (part.shape[0], *shape[1:]))
        return {name: found[name] for name in named if name in found}

    def vectors(self, gradients: dict[str, Tensor]) -> Tensor:
        """The inverse of `tangents` (its transpose where a matrix has rows of no component): [K, size]."""
        first = next(iter(gradients.values()))
        result = first.new_empty(len(first), self.size)
        for place, part, kind, name in self._shares():
            value = gradients[name] if part.expert is None else gradients[name][:, part.expert]
            if part.kind == "conv1d" and kind == "weight":
                value = value.transpose(1, 2)
            if part.rows is not None:
                value = value[:, part.rows]
            entries = place.of(result)
            entries.copy_(value.reshape(entries.shape))
        return result

    def _shares(self) -> Iterator[tuple[Place, Part, str, str]]:
        """(place in a vector, part, 'weight' or 'bias', parameter's name) of everything that has its own place."""
        for component, whole in zip(self.components.components, self.slices, strict=True):
            start = whole.start
            for part in component.own:
                stop = start + part.size
                if part.kind == "other":
                    yield from self._one_by_one(start, part)
                    start = stop
                    continue
                outputs, inputs = part.shape
                stem = f"{part.module}." if part.module else ""
                weight, bias = Place(start, stop - outputs * part.bias), Place(stop - outputs * part.bias, stop)
                if part.kind in MATRICES and part.bias:
                    weight = Place(start, stop, inputs + 1, (0, inputs))
                    bias = Place(start, stop, inputs + 1, (inputs, inputs + 1))
                yield weight, part, "weight", part.parameters[0] if part.parameters else f"{stem}weight"
                if part.bias:
                    yield bias, part, "bias", f"{stem}bias"
                start = stop

    def _one_by_one(self, start: int, part: Part) -> Iterator[tuple[Place, Part, str, str]]:
        """The parameters of a part without a rule, one behind the other."""
        named = dict(self.model.named_parameters())
        for name in part.parameters:
            stop = start + named[name].numel()
            yield Place(start, stop), part, "weight", name
            start = stop


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a vector: from `start` to `stop`, in rows of `width` the `columns` [first, end)."""

    start: int
    stop: int
    width: int = 1
    columns: tuple[int, int] = (0, 1)

    def of(self, vectors: Tensor) -> Tensor:
        """The entries of vectors [K, size], in their own memory: [K, rows, columns]."""
        rows: Tensor = vectors[:, self.start : self.stop].unflatten(1, (-1, self.width))
        return rows[..., slice(*self.columns)]


def _shaped(entries: Tensor, part: Part, kind: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Entries [K, rows, columns] in the shape of a parameter."""
    if part.kind == "conv1d" and kind == "weight":
        return entries.reshape(len(entries), part.shape[0], part.shape[1]).transpose(1, 2)
    return entries.reshape(len(entries), *shape)
