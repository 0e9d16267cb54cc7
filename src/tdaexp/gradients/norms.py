"""Per-example gradients of norms: layers that multiply what they normalised by a weight, and may add a bias."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tdaexp.models.parts import NORMS, Part
from tdaexp.runtime.accumulation import accumulation_dtype

CHANNELS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
"""Norms whose parameters belong to the second axis."""

_zeros: WeakKeyDictionary[nn.Module, tuple[object, float]] = WeakKeyDictionary()
"""Of each norm its class when it was looked at, and what `zero_weight` found."""


def norm_gradient(part: Part, module: nn.Module, inputs: Tensor, delta: Tensor) -> Tensor:
    """Per-example gradient of y = w ⊙ x̂ + b: weight Σ_t δ_t ⊙ x̂_t, then bias Σ_t δ_t. Returns [B, size].

    x̂ is what the module itself computes with weight 1 and bias 0, so every kind of norm is covered as it is; with
    weight 0 where it computes y = (1 + w) ⊙ x̂, as Gemma does.
    """
    normalised = _with_weight(module, inputs, 1 + zero_weight(module))
    wide = accumulation_dtype(delta.dtype)
    delta = delta.to(wide)
    # Of images the parameters run along the channels, else along the last axes.
    width = next(module.parameters()).ndim
    summed = tuple(range(2, delta.ndim)) if isinstance(module, CHANNELS) else tuple(range(1, delta.ndim - width))
    sides = [delta * normalised.to(wide), *([delta] if part.bias else [])]
    return torch.cat([(one.sum(summed) if summed else one).flatten(1) for one in sides], dim=1)


def zero_weight(module: nn.Module) -> float:
    """The weight with which a norm gives 0: that of y = w ⊙ x̂ is 0, that of y = (1 + w) ⊙ x̂ is -1.

    Found out once for each module, by one row. What is neither counts as the first, and fails the check of a loaded
    model (`building.self_check`).
    """
    if any(type(module).forward is kind.forward for kind in NORMS):
        return 0.0
    known, zero = _zeros.get(module, (None, 0.0))
    if known is not type(module):
        weight = next(module.parameters())
        if isinstance(weight, FakeTensor) or weight.device.type == "meta":  # a plan's model has shapes alone
            return 0.0
        row = torch.linspace(-1.0, 2.0, weight.shape[-1], dtype=weight.dtype, device=weight.device)[None]
        zero = -1.0 if not _with_weight(module, row, -1.0).any() else 0.0
        _zeros[module] = type(module), zero
    return zero


def _with_weight(module: nn.Module, inputs: Tensor, weight: float) -> Tensor:
    """What the module computes with this number as its weight everywhere, and no bias."""
    plain = {  # of a sharded model the values may be elsewhere: only their shapes are read
        name: torch.full(value.shape, weight * (name == "weight"), dtype=value.dtype, device=inputs.device)
        for name, value in module.named_parameters()
    }
    with torch.no_grad():
        found: Tensor = torch.func.functional_call(module, plain, (inputs,))
    return found
