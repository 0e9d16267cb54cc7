"""Reverse mode: gradients of few outputs, of all parameters at once; and gradients of single examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from tdaexp.pathkernel.forward import derivative
from tdaexp.pathkernel.parameters import Batch, Function, Layout, Parameters, Step

JVP_DIRECTIONS = 2
"""Up to so many directions, a forward-mode pass for each costs less than all per-example gradients."""


def chunks(batch: Batch, rows: int) -> Iterator[Batch]:
    """Pieces of at most `rows` elements."""
    for begin in range(0, len(batch[0]), rows):
        yield tuple(tensor[begin : begin + rows] for tensor in batch)


def output_gradients(f: Function, parameters: Parameters, layout: Layout, batch: Batch) -> Parameters:
    """∇f [Q, O, *shape] by parameter, of every query and output; cost: one forward and O backward passes."""
    chosen = {name: parameters[name] for name in layout.names}

    def single(values: Parameters, *element: Tensor) -> Tensor:
        return f({**parameters, **values}, tuple(tensor[None] for tensor in element))[0]

    found: Parameters = vmap(jacrev(single), in_dims=(None, *[0] * len(batch)))(chosen, *batch)
    return found


def reduced_gradients(f: Function, parameters: Parameters, layout: Layout, batch: Batch) -> Parameters:
    """∇f [1, O, *shape] by parameter, of a function that reduces over its batch to one row."""
    chosen = {name: parameters[name] for name in layout.names}
    found: Parameters = jacrev(lambda values: f({**parameters, **values}, batch))(chosen)
    return found


def add_gradients(total: Tensor, weight: float, gradients: Parameters, layout: Layout) -> None:
    """Add weight · gradients [Q, O, *shape] to `total` [Q, O, D] in place, without a flat copy of them between."""
    for name, place in layout.places.items():
        total[..., place].add_(gradients[name].flatten(2), alpha=weight)


def reverse_products(
    f: Function, parameters: Parameters, layout: Layout, directions: Tensor, batch: Batch, rows: int, reduced: bool
) -> Tensor:
    """∇f · direction [P, K, Q, O] for directions [P, D], restricted to each component.

    `rows` queries at a time; `reduced` says that f gives one row for the whole batch.
    """
    parts = []
    for piece in [batch] if reduced else chunks(batch, rows):
        gradients = layout.flat((reduced_gradients if reduced else output_gradients)(f, parameters, layout, piece))
        products = layout.by_component(directions, gradients.flatten(0, 1))  # [K, P, Q·O]
        parts.append(products.transpose(0, 1).unflatten(-1, gradients.shape[:2]))
    return torch.cat(parts, dim=2)


def example_dots(
    losses: Function,
    parameters: Parameters,
    layout: Layout,
    batch: Batch,
    directions: Tensor,
    *,
    memory: int,
    split: bool,
) -> Tensor:
    """∇L_k · direction [K, B, R] of every example's loss with directions [R, D] (K = 1 unless `split`).

    Forward mode for few directions or where `memory` bytes do not hold one gradient; else the gradients themselves,
    as many at a time as fit.
    """
    size = layout.size * directions.element_size()
    if len(directions) <= JVP_DIRECTIONS or size > memory:
        return _dots_forward(losses, parameters, layout, batch, directions, split)
    parts = []
    for piece in chunks(batch, max(1, memory // size)):
        gradients = example_gradients(losses, parameters, layout, piece)
        parts.append(layout.by_component(gradients, directions) if split else (gradients @ directions.mT)[None])
    return torch.cat(parts, dim=1)


def example_gradients(losses: Function, parameters: Parameters, layout: Layout, batch: Batch) -> Tensor:
    """∇L_k [B, D] of every example's loss."""
    chosen = {name: parameters[name] for name in layout.names}

    def single(values: Parameters, *element: Tensor) -> Tensor:
        return losses({**parameters, **values}, tuple(tensor[None] for tensor in element))[0, 0]

    return layout.flat(vmap(grad(single), in_dims=(None, *[0] * len(batch)))(chosen, *batch))


def part_gradients(losses: Function, step: Step, layout: Layout, batch: Batch, codes: Tensor, parts: int) -> Tensor:
    """Σ_{k in part} w_k ∇L_k(θ_s) [parts, D] over a step's batch; `codes` [B] tell each example's part (0, 1, …)."""
    chosen = {name: step.start[name] for name in layout.names}
    found = layout.flat(chosen).new_zeros(parts, layout.size)
    for part in codes.unique().tolist():
        mine = codes == part
        piece, weights = tuple(tensor[mine] for tensor in batch), step.weights[mine].to(found)

        def objective(values: Parameters, piece: Batch = piece, weights: Tensor = weights) -> Tensor:
            return losses({**step.start, **values}, piece)[:, 0] @ weights

        found[part] = layout.flat(grad(objective)(chosen))
    return found


def _dots_forward(
    losses: Function, parameters: Parameters, layout: Layout, batch: Batch, directions: Tensor, split: bool
) -> Tensor:
    groups = list(layout.components.values()) if split else [tuple(layout.names)]
    named = layout.named(directions)
    return torch.stack([_along(losses, parameters, {name: named[name] for name in names}, batch) for names in groups])


def _along(losses: Function, parameters: Parameters, tangents: Parameters, batch: Batch) -> Tensor:
    """∇L_k · tangent [B, R], one direction at a time: memory for one."""
    primals = {name: parameters[name] for name in tangents}

    def moved(values: Parameters) -> Tensor:
        return losses({**parameters, **values}, batch)[:, 0]

    directions = range(len(next(iter(tangents.values()))))
    columns = [derivative(moved, primals, {n: values[row] for n, values in tangents.items()}) for row in directions]
    return torch.stack(columns, dim=1)
