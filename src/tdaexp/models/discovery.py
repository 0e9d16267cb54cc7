"""Components of any module: every layer is found by its type and named by its path, all norms being `norms`.

What has no rule for captured gradients (a bare parameter, a grouped convolution, a layer with a forward pass of its
own, a weight in two places, a layer that runs more than once or mixes the examples of its batch) becomes a component
all the same: autograd forms its gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tdaexp.models.components import Component, ComponentMap
from tdaexp.models.parts import NORMS, Part


def discovered(module: nn.Module, probe: Callable[[], object] | None = None, examples: int = 0) -> ComponentMap:
    """The components of a module, in parameter order.

    `probe` runs the module on a batch of so many `examples` and returns its output, to see which layers run just once
    on all of them, and whose weights nothing else uses: the others have no rule. Without it every layer is taken to.
    """
    unfit = _shared(module) | (_misused(module, probe, examples) if probe else set())
    found: dict[str, list[Part]] = {}
    seen: set[int] = set()
    for path, layer in module.named_modules():
        own = {name: p for name, p in layer.named_parameters(recurse=False) if id(p) not in seen}
        seen |= {id(p) for p in own.values()}
        if own:
            name = "norms" if isinstance(layer, NORMS) else path or "parameters"
            found.setdefault(name, []).append(_part(path, layer, own, path in unfit))
    components = tuple(Component(name, tuple(parts), sum(one.size for one in parts)) for name, parts in found.items())
    return ComponentMap(components, {}, sum(one.size for one in components), type(module).__name__)


def has_rule(layer: nn.Module) -> bool:
    """Whether the layer is linear, or a convolution of images without groups and with plain zero padding."""
    if isinstance(layer, nn.Conv2d) and _is(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return _is(layer, nn.Linear)


def _is(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether the layer is of one of the kinds and computes what that does."""
    return any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in kinds)


def _part(path: str, layer: nn.Module, own: dict[str, nn.Parameter], unfit: bool) -> Part:
    whole = len(own) == len(dict(layer.named_parameters(recurse=False)))
    weight, bias = own.get("weight"), "bias" in own
    if weight is not None and whole and not unfit and set(own) <= {"weight", "bias"}:
        if has_rule(layer):
            kind = "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
            return Part(path, kind, None, bias, (weight.shape[0], weight[0].numel()))
        if _is(layer, nn.Embedding) and layer.max_norm is layer.padding_idx is None and not layer.scale_grad_by_freq:
            return Part(path, "embedding", None, False, (weight.shape[1], weight.shape[0]))
        if _is(layer, *NORMS):
            return Part(path, "norm", None, bias, (weight.numel(), 0))
    names = tuple(f"{path}.{name}" if path else name for name in own)
    return Part(path, "other", None, False, (sum(p.numel() for p in own.values()), 0), names)


def _shared(module: nn.Module) -> set[str]:
    """Layers that have a parameter in common with another one."""
    every = [(name.rpartition(".")[0], id(p)) for name, p in module.named_parameters(remove_duplicate=False)]
    uses = Counter(key for _, key in every)
    return {path for path, key in every if uses[key] > 1}


def _misused(module: nn.Module, probe: Callable[[], object], examples: int) -> set[str]:
    """Layers that do not run exactly once on a batch of tensors with all examples, or whose weights others use too."""
    runs: Counter[str] = Counter()
    odd: set[str] = set()

    def watch(path: str) -> Callable[..., None]:
        def note(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
            runs[path] += 1
            read = arguments[0] if arguments else next(iter(named.values()), None)
            if (
                not (
                    isinstance(read, Tensor) and isinstance(output, Tensor) and read.ndim > 1 - isinstance(layer, NORMS)
                )
                or len(read) != examples
                or (isinstance(layer, nn.Embedding) and read.ndim != 2)
            ):
                odd.add(path)

        return note

    handles = [
        layer.register_forward_hook(watch(path), with_kwargs=True)
        for path, layer in module.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    modes = {one: one.training for one in module.modules()}
    wanted = {one: one.requires_grad for one in module.parameters() if one.is_floating_point()}
    try:
        with torch.enable_grad():
            module.eval()
            for parameter in wanted:
                parameter.requires_grad_(True)
            uses = _uses(probe())
    finally:
        for handle in handles:
            handle.remove()
        for one, mode in modes.items():
            one.training = mode
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
    for path, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if own and (runs[path] != 1 or any(uses[id(one)] > 1 for one in own)):
            odd.add(path)
    return odd


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
