"""Components of any module: every layer is found by its type and named by its path, all norms being `norms`.

What has no rule for captured gradients (a bare parameter, a grouped convolution, a layer with a forward pass of its
own, a weight in two places, a layer that runs more than once or mixes the examples of its batch) becomes a component
all the same: autograd forms its gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from torch import nn

from tdaexp.models.components import Component, ComponentMap
from tdaexp.models.misuse import misused
from tdaexp.models.parts import NORMS, Part

PROBED = 4
"""Examples whose derivatives are looked at in one batch."""


def discovered(
    module: nn.Module,
    probe: Callable[[], object] | None = None,
    examples: int = 0,
    more: Sequence[tuple[Callable[[], object], int]] = (),
) -> ComponentMap:
    """The components of a module, in parameter order.

    `probe` runs the module on a batch of so many `examples` and returns its output, to see which layers run just once
    on all of them, one row an example, and whose weights nothing else uses: the others have no rule. `more` are probes
    of other batches and their examples. Without a probe every layer is taken to.
    """
    unfit = _shared(module)
    for one, count in [(probe, examples), *more] if probe else ():
        unfit |= misused(module, one, count)
    found: dict[str, list[Part]] = {}
    seen: set[int] = set()
    for path, layer in module.named_modules():
        own = {name: p for name, p in layer.named_parameters(recurse=False) if id(p) not in seen}
        seen |= {id(p) for p in own.values()}
        if own:
            name = "norms" if isinstance(layer, NORMS) else path or "parameters"
            found.setdefault(name, []).append(_part(path, layer, own, path in unfit))
    components = tuple(Component(name, tuple(parts)) for name, parts in found.items())
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
