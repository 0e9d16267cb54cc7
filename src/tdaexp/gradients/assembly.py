"""Puts together what a backward pass brings apart: a component's parts, and components with one input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.gradients.experts import expert_factors
from tdaexp.gradients.factors import (
    EmbeddingFactors,
    Factors,
    LinearFactors,
    TiedFactors,
    VectorFactors,
)
from tdaexp.gradients.norms import norm_gradient
from tdaexp.models.components import Component, ComponentMap
from tdaexp.models.parts import Part
from tdaexp.runtime.deferred import send
from tdaexp.runtime.errors import UserError

Consumer = Callable[[list[Component], list[Factors]], None]
"""Receives components and their factors, once each and as soon as the backward pass has them.

Linear components that read the same input (q, k and v; gate and up) come together, in parameter order, and
share one `inputs` tensor; every other component comes alone.
"""


class Assembly:
    """Turns (module, input, output gradient) into component factors and hands finished ones on."""

    def __init__(self, model: nn.Module, components: ComponentMap, consume: Consumer, examples: int) -> None:
        """Prepare for one pass over so many examples: of `modules` the inputs and output gradients are needed."""
        self.consume, self.examples = consume, examples
        self.modules: dict[str, nn.Module] = {}
        self._order = {one.name: k for k, one in enumerate(components.components) if one.captured}
        self._shares: dict[str, list[tuple[Component, int]]] = {}
        self._parts: dict[str, dict[int, Factors]] = {name: {} for name in self._order}
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}
        self._announced: set[str] = set()
        self._sharing: Counter[int] = Counter()
        self._waiting: dict[int, list[tuple[Component, Factors]]] = {}
        for component in components.components:
            for place, part in enumerate(component.parts if component.captured else ()):
                self.modules.setdefault(part.module, model.get_submodule(part.module))
                self._shares.setdefault(part.module, []).append((component, place))
        self.own_ways = {path: one for path, one in self.modules.items() if not _plain(one, self._kind(path))}
        """The modules whose output is not that of their weight: they scale it, or choose by it.

        What counts is where the weight is used (`capture`).
        """

    def _kind(self, path: str) -> str:
        component, place = self._shares[path][0]
        return component.parts[place].kind

    def is_norm(self, path: str) -> bool:
        """Whether the module at `path` is a norm."""
        return self._kind(path) == "norm"

    def announce(self, path: str, read: Sequence[Any]) -> Any:
        """Tell in the forward pass what the module at `path` reads; returns what to hand to `receive` later.

        The tensor itself is kept too, so that another one cannot take its identity. Errors (UserError): it ran before.
        """
        if path in self._announced:
            raise UserError(
                f"the model's '{path}' runs more than once in a forward pass, so that its gradient is a sum over these "
                "runs, which is not captured; leave its component out (method.components=[...])"
            )
        self._announced.add(path)
        if self._kind(path) == "expert":
            return [one.detach() for one in read]
        inputs = read[0]
        _, shared = self._inputs.setdefault(id(inputs), (inputs, self._as_rows(path, inputs.detach())))
        self._sharing[id(shared)] += sum(component.alone_linear for component, _ in self._shares[path])
        return shared

    def receive(self, path: str, inputs: Any, delta: Tensor) -> None:
        """Take in the backward pass the gradient δ of the output of the module at `path`."""
        self._inputs.clear()
        for component, place, factors in self._formed(path, inputs, delta):
            arrived = self._parts[component.name]
            arrived[place] = factors
            if len(arrived) == len(component.parts):
                del self._parts[component.name]
                self._deliver(component, combine(component, [arrived[k] for k in range(len(arrived))]))

    def _formed(self, path: str, inputs: Any, delta: Tensor) -> Iterator[tuple[Component, int, Factors]]:
        """Each share in a module, and its factors."""
        module, shares = self.modules[path], self._shares[path]
        if self._kind(path) == "expert":
            parts = [component.parts[place] for component, place in shares]
            made = expert_factors(module, parts, inputs, delta, self.examples)
            yield from ((*share, factors) for share, factors in zip(shares, made, strict=True))
            return
        delta = self._as_rows(path, delta)
        for component, place in shares:
            yield component, place, part_factors(component.parts[place], module, inputs, delta)

    def _as_rows(self, path: str, values: Tensor) -> Tensor:
        """What a layer reads or gives, with the examples along its first axis: [B, T, d] of a linear one.

        A layer that saw the positions of all examples in one row is as good: they stand there in order. Errors
        (UserError): a number of rows that examples cannot share.
        """
        linear = self._kind(path) == "linear"
        count = values.numel() // values.shape[-1] if linear else len(values)
        if not count or count % self.examples:
            raise UserError(
                f"the model's '{path}' is applied to {count} rows of {self.examples} examples, which does not tell "
                "whose they are; leave its component out (method.components=[...])"
            )
        if linear:
            if path in self.own_ways:  # a router may compute in a type of its own
                values = values.to(self.modules[path].weight.dtype)  # type: ignore[arg-type]
            whole = values.ndim == 3 and len(values) == self.examples
            return values if whole else values.reshape(self.examples, -1, values.shape[-1])
        if len(values) == self.examples:
            return values
        return values.reshape(self.examples, -1, *values.shape[1:])

    def _deliver(self, component: Component, factors: Factors) -> None:
        if not (isinstance(factors, LinearFactors) and component.alone_linear):
            self.consume([component], [factors])
            return
        key = id(factors.inputs)
        waiting = self._waiting.setdefault(key, [])
        waiting.append((component, factors))
        if len(waiting) == self._sharing[key]:
            del self._waiting[key], self._sharing[key]  # another tensor may come to have its identity
            waiting.sort(key=lambda pair: self._order[pair[0].name])
            self.consume([one for one, _ in waiting], [one for _, one in waiting])

    def check_complete(self) -> None:
        """Every component must have been delivered. Errors (UserError): the forward pass leaves one out."""
        left = [*self._parts, *(pair[0].name for pairs in self._waiting.values() for pair in pairs)]
        if left:
            raise UserError(
                f"no gradient reached the components {', '.join(left)}: the model's forward pass does not run these "
                "modules; leave them out (method.components=[...])"
            )


def part_factors(part: Part, module: nn.Module, inputs: Tensor, delta: Tensor) -> Factors:
    """Factors of one module (or of its rows in a fused matrix) from its input and its output's gradient δ."""
    if part.kind == "embedding":
        padding = getattr(module, "padding_idx", None)
        if padding is not None:  # the row of that token is never trained
            delta = delta.masked_fill((inputs == padding)[..., None], 0)
        return EmbeddingFactors(inputs, delta, part.shape[1])
    if part.kind == "norm":
        return VectorFactors(norm_gradient(part, module, inputs, delta))
    if part.kind == "conv2d":
        return LinearFactors(conv_patches(inputs, module), delta.flatten(2).transpose(1, 2), part.bias)  # type: ignore[arg-type]
    if part.rows is not None:
        delta = take_outputs(delta, part.rows)
    return LinearFactors(inputs, delta, part.bias)


def _plain(module: nn.Module, kind: str) -> bool:
    """Whether the module's output is what its weight makes of its first input."""
    if kind == "embedding":
        return type(module).forward is nn.Embedding.forward
    return kind != "linear" or (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward)


def conv_patches(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """Patches [B, places, C kh kw] of images [B, C, H, W], ordered as the rows of `conv.weight.flatten(1)`.

    A convolution is a linear layer that is applied at every place of its output: its input there is the patch under the
    kernel (Grosse and Martens 2016).
    """
    settings = {"dilation": conv.dilation, "padding": conv.padding, "stride": conv.stride}
    return nn.functional.unfold(inputs, conv.kernel_size, **settings).transpose(1, 2)  # type: ignore[arg-type]


def take_outputs(delta: Tensor, rows: np.ndarray) -> Tensor:
    """Copy some columns of δ [B, T, O]; runs of neighbours (a head's rows) at once, which is faster than one by one."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    if 2 * len(runs) > len(rows):
        return delta.index_select(2, send(rows, delta.device))
    return torch.cat([delta[..., int(run[0]) : int(run[-1]) + 1] for run in runs], dim=2)


def combine(component: Component, parts: list[Factors]) -> Factors:
    """Factors of a component from those of its parts: one layer, norms or experts side by side, a tied embedding."""
    if len(parts) == 1:
        return parts[0]
    if component.parts[0].kind == "expert":
        return VectorFactors(torch.cat([part.materialise() for part in parts], dim=1))
    vectors = [part.gradient for part in parts if isinstance(part, VectorFactors)]
    if len(vectors) == len(parts):
        return VectorFactors(torch.cat(vectors, dim=1))
    embedding, head = sorted(parts, key=lambda part: isinstance(part, LinearFactors))
    if isinstance(embedding, EmbeddingFactors) and isinstance(head, LinearFactors):
        return TiedFactors(embedding, head)
    raise RuntimeError(f"component '{component.name}' mixes kinds of layers that have no common gradient")
