"""Which operation of a network has a kink: there no rule of nodes converges fast, elsewhere two of Gauss suffice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tdaexp.pathkernel.parameters import Batch, Function, Parameters

BENDS = {
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "rrelu", "prelu", "elu", "celu", "selu", "threshold",
    "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "abs", "clamp", "max", "min", "amax", "amin",
    "maximum", "minimum", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "sort", "topk", "median",
}  # fmt: skip
"""Whose derivative, or that one's own, jumps."""


def kinked_operation(f: Function, parameters: Parameters, batch: Batch) -> str | None:
    """The first operation inside f, on what comes from the parameters, whose derivative jumps; None: f is smooth."""
    mode = _Kinks()
    with mode:
        f({name: value.detach().requires_grad_() for name, value in parameters.items()}, batch)
    return mode.found


class _Kinks(TorchFunctionMode):
    """Notes the first operation with a kink."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.found is None and getattr(func, "__name__", "") in BENDS:
            moves = any(isinstance(one, Tensor) and one.requires_grad for one in tree_leaves((args, kwargs)))
            self.found = func.__name__ if moves else None
        return func(*args, **kwargs)
