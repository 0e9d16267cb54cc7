"""Forward mode: derivatives along few directions, of all outputs and queries at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vmap

from tdaexp.pathkernel.parameters import Batch, Function, Layout, Parameters


def forward_products(
    f: Function, parameters: Parameters, layout: Layout, directions: Tensor, batch: Batch, split: bool = True
) -> Tensor:
    """∇f · direction [P, K, Q, O] for directions [P, D], restricted to each component in turn.

    With `split` False the directions stay whole (K = 1). Cost: per component one pass for the values and about two per
    direction; layers below a component carry values alone. Errors (NotImplementedError): an operation without a
    forward-mode rule.
    """
    named = layout.named(directions)
    groups = list(layout.components.values()) if split else [tuple(layout.names)]
    return torch.stack([_along(f, parameters, {name: named[name] for name in names}, batch) for names in groups], 1)


def _along(f: Function, parameters: Parameters, tangents: Parameters, batch: Batch) -> Tensor:
    primals = {name: parameters[name] for name in tangents}

    def moved(values: Parameters) -> Tensor:
        return f({**parameters, **values}, batch)

    return vmap(lambda tangent: derivative(moved, primals, tangent))(tangents)


def derivative(function: Callable[[Parameters], Tensor], primals: Parameters, tangent: Parameters) -> Tensor:
    """The derivative of `function` at `primals` along one direction, in forward mode."""
    with warnings.catch_warnings():
        # torch's first forward-mode derivative compiles its own rules by a function that it calls deprecated itself
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        found: Tensor = jvp(function, (primals,), (tangent,))[1]
    return found
