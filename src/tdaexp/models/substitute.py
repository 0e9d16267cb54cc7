"""Running a module with other values for some of its parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def called_with(module: nn.Module, values: dict[str, Tensor], *arguments: Any) -> Any:
    """What the module returns with these values of the named parameters, wherever those are used.

    A parameter in two layers has one name. torch would do as much by itself, but of a layer that is in two places it
    puts back the new value for the old one.
    """
    named = dict(module.named_parameters())
    new = {id(named[name]): value for name, value in values.items()}
    everywhere = {
        f"{path}.{name}" if path else name: new[id(own)]
        for path, layer in module.named_modules()
        for name, own in layer.named_parameters(recurse=False)
        if id(own) in new
    }
    return functional_call(module, everywhere, arguments, tie_weights=False)
