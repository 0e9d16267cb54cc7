"""Where a language model's components lie in its parameters, as what is summed in pieces takes them."""

from __future__ import annotations

import torch
from torch import nn

from tdaexp.models.components import ComponentMap
from tdaexp.pathkernel.streaming import Slab


def slabs_of(model: nn.Module, components: ComponentMap) -> list[Slab]:
    """Every parameter's share in each of the components, numbered in their order."""
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    slabs: list[Slab] = []
    seen: set[tuple[str, int]] = set()
    for number, component in enumerate(components.components):
        for part in component.parts:
            slabs += [Slab(number, name) for name in part.parameters]
            rows = None if part.rows is None else torch.from_numpy(part.rows)
            own = {} if part.parameters else dict(model.get_submodule(part.module).named_parameters(recurse=False))
            for kind, tensor in own.items():
                name = parameters[id(tensor)]
                if (name, number) not in seen or rows is not None:  # a tied head is the embedding's own tensor
                    slabs.append(Slab(number, name, rows, int(part.kind == "conv1d" and kind == "weight")))
                seen.add((name, number))
    return slabs
