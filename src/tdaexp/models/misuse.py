"""Which layers of a module are not applied once to all examples of a batch, one row an example: seen by running it.

The rows of a layer are the examples' own when the loss of example i reaches row i alone. That is seen backwards: with
example i's output weighted by c_i, the gradient of row i must be c_i times what it is without weights. A layer that
sees the examples in another order, or mixes them, shows another factor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from tdaexp.models.eval_mode import in_eval
from tdaexp.models.parts import NORMS

APART = 1e-3
"""Largest relative difference of a row's gradient from c_i times itself; the c_i are powers of two, which are exact."""


def misused(module: nn.Module, probe: Callable[[], object], examples: int) -> set[str]:
    """Paths of the layers that do not run exactly once on a batch of tensors with all examples, one row an example, or
    whose weights something else uses too.

    `probe` runs the module on so many `examples` and returns its output, [examples, …]; where it takes no derivatives
    only the runs are seen.
    """
    watched = _Watched(module, examples)
    wanted = {one: one.requires_grad for one in module.parameters() if one.is_floating_point()}
    try:
        with torch.enable_grad(), in_eval(module):
            for parameter in wanted:
                parameter.requires_grad_(True)
            with watched:
                output = probe()
            uses = _uses(output)
            watched.odd |= _exchanged(output, watched.outputs, examples)
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
    for path, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if own and (watched.runs[path] != 1 or any(uses[id(one)] > 1 for one in own)):
            watched.odd.add(path)
    return watched.odd


class _Watched:
    """Inside the block layers with parameters are watched: how often they run, on what, and what they give."""

    def __init__(self, module: nn.Module, examples: int) -> None:
        self.module, self.examples = module, examples
        self.runs: Counter[str] = Counter()
        self.odd: set[str] = set()
        self.outputs: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        self._handles = [
            layer.register_forward_hook(self._watch(path), with_kwargs=True)
            for path, layer in self.module.named_modules()
            if next(layer.parameters(recurse=False), None) is not None
        ]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, path: str) -> Callable[..., None]:
        def note(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
            self.runs[path] += 1
            read = arguments[0] if arguments else next(iter(named.values()), None)
            if not (isinstance(read, Tensor) and isinstance(output, Tensor) and self._fits(layer, read)):
                self.odd.add(path)
            elif output.requires_grad:
                self.outputs[path] = output

        return note

    def _fits(self, layer: nn.Module, read: Tensor) -> bool:
        if read.ndim <= 1 - isinstance(layer, NORMS) or len(read) != self.examples:
            return False
        return not isinstance(layer, nn.Embedding) or read.ndim == 2


def _exchanged(output: object, layers: dict[str, Tensor], examples: int) -> set[str]:
    """The layers whose rows are not those of the examples, in order."""
    if not isinstance(output, Tensor) or not output.requires_grad or not layers:
        return set()
    if isinstance(output, FakeTensor) or output.device.type == "meta" or output.ndim == 0 or len(output) != examples:
        return set()
    generator = torch.Generator().manual_seed(0)
    side = torch.randn(output.shape, generator=generator, device="cpu").to(output)
    weights = 2.0 ** torch.arange(examples, device="cpu")

    def gradients(sides: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(output, list(layers.values()), sides, retain_graph=True, allow_unused=True)

    def weighted(values: Tensor) -> Tensor:
        return values * weights.to(values).view(-1, *[1] * (values.ndim - 1))

    found = set()
    for path, plain, other in zip(layers, gradients(side), gradients(weighted(side)), strict=True):
        if plain is not None and other is not None:
            wanted = weighted(plain)
            if not (other - wanted).flatten(1).norm(dim=1).le(APART * wanted.flatten(1).norm(dim=1)).all():
                found.add(path)
    return found


def _uses(output: object) -> Counter[int]:
    """How many operations on the way to the output used each parameter, by its id."""
    found: Counter[int] = Counter()
    left: list[Any] = [one.grad_fn for one in tree_leaves(output) if isinstance(one, Tensor) and one.grad_fn]
    seen = set(left)
    while left:
        for node, _ in left.pop().next_functions:
            if hasattr(node, "variable"):
                found[id(node.variable)] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                left.append(node)
    return found
