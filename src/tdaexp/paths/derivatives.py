"""Derivatives of a step's loss that going back over a training takes: gradient, Hessian products, examples' shares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from tdaexp.data.examples import token_budget_batches
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.explicit import Losses
from tdaexp.gradients.factors import Factors
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vector_products import CHUNK_BYTES
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import Component, ComponentMap
from tdaexp.models.plain import forward_mode
from tdaexp.models.substitute import called_with
from tdaexp.objectives.base import Objective, cross_entropy
from tdaexp.pathkernel.parameters import Layout
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import Shrinking, two

TOKENS = 1024
"""Of a batch in a pass at most: the directions multiply it."""
NEED = "second derivatives of a loss"


class Derivatives:
    """Of Σ_k p_k ℓ_k over a batch of `examples`, where ℓ_k is summed over an example's positions.

    `model` is run with other parameters than its own, and its own are overwritten. Parameters θ [D] and directions
    [Q, D] are in the order of the `layout`, `components` are those by which shares are told apart. A batch may hold an
    example twice; how it is cut into passes of `tokens_per_batch` positions changes nothing but rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        components: ComponentMap,
        examples: Any,
        objective: Objective[Any],
        tokens_per_batch: int,
    ) -> None:
        self.model, self.layout, self.tokens = model, layout, min(TOKENS, tokens_per_batch)
        objective.prepare(model)  # before anything is differentiated
        self.gradients = Gradients(model, components, examples, objective, reduction="sum")
        self.space = VectorSpace(model, components)
        self._losses = Losses(model, objective, cross_entropy)
        self._products = Shrinking(self._product, lambda one: [(half, *one[1:]) for half in two(one[0])], _added)

    def gradient(self, parameters: Tensor, ids: np.ndarray, weights: np.ndarray) -> Tensor:
        """∇ Σ_k p_k ℓ_k at θ [D]; `ids` [B] are the batch's examples, `weights` [B] their p."""
        named, total = self.layout.named(parameters), torch.zeros_like(parameters)
        with frozen(self._losses):
            for places in self._pieces(ids):
                leaves = {name: value.detach().requires_grad_() for name, value in named.items()}
                with torch.enable_grad():
                    loss = self._loss(ids[places], weights[places])(leaves)
                    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
                total += self.layout.flat(dict(zip(leaves, found, strict=True)))
        return total

    def hessian_products(self, parameters: Tensor, ids: np.ndarray, weights: np.ndarray, directions: Tensor) -> Tensor:
        """H a [Q, D] for directions a [Q, D], H the Hessian of the same at θ.

        One pass forwards and backwards, and a forward-mode derivative of both for each direction.
        """
        total = torch.zeros_like(directions)
        with frozen(self._losses), forward_mode(self._losses, NEED):
            for places in self._pieces(ids):
                total += self._products((places, ids, weights, parameters, directions))
        return total

    def shares(self, parameters: Tensor, ids: np.ndarray, directions: Tensor) -> Tensor:
        """⟨a, ∇ℓ_k⟩ [Q, B, K] of every example with directions a [Q, D], by component.

        A pass forwards and backwards over the batch, whatever the number of directions.
        """
        self.load(parameters)
        vectors = self.space.vectors(self.layout.named(directions))
        places = dict(zip(self.gradients.components.names, enumerate(self.space.slices), strict=True))
        found = vectors.new_zeros(len(vectors), len(ids), len(places))
        with self.gradients.ready():
            for piece in self._pieces(ids):
                rows = torch.from_numpy(np.asarray(piece)).to(vectors.device)

                def consume(arrived: list[Component], factors: list[Factors], rows: Tensor = rows) -> None:
                    for component, one in zip(arrived, factors, strict=True):
                        column, place = places[component.name]
                        found[:, rows, column] = _dots(vectors[:, place], one)

                self.gradients.capture(ids[piece].tolist(), consume)
        return found

    def load(self, parameters: Tensor) -> None:
        """Give the model parameters [D] of its own."""
        with torch.no_grad():
            for name, value in self.layout.named(parameters).items():
                self.model.get_parameter(name).copy_(value)

    def _pieces(self, ids: np.ndarray) -> Iterator[list[int]]:
        """Places in a batch, in passes of similar lengths."""
        lengths = self.gradients.lengths[ids]
        yield from token_budget_batches(lengths, np.argsort(lengths, kind="stable").tolist(), self.tokens)

    def _loss(self, ids: np.ndarray, weights: np.ndarray) -> Callable[[dict[str, Tensor]], Tensor]:
        """Parameters by name to Σ_k p_k ℓ_k."""
        inputs = self.gradients.inputs(ids.tolist())

        def loss(values: dict[str, Tensor]) -> Tensor:
            named = {f"model.{name}": value for name, value in values.items()}
            losses: Tensor = called_with(self._losses, named, inputs)
            return losses @ torch.from_numpy(weights).to(losses)

        return loss

    def _product(self, work: tuple[list[int], np.ndarray, np.ndarray, Tensor, Tensor]) -> Tensor:
        places, ids, weights, parameters, directions = work
        slope = grad(self._loss(ids[places], weights[places]))
        named = self.layout.named(parameters)

        def push(direction: dict[str, Tensor]) -> dict[str, Tensor]:
            tangent: dict[str, Tensor] = jvp(slope, (named,), (direction,))[1]
            return tangent

        try:
            return self.layout.flat(vmap(push)(self.layout.named(directions)))
        except NotImplementedError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"method=magic: needs second derivatives of all that the model does: {reason} Take method=ekfac"
            ) from error


def _dots(vectors: Tensor, factors: Factors) -> Tensor:
    """Dot products [Q, B] of one component's gradients with vectors [Q, size]."""
    step = max(1, CHUNK_BYTES // (factors.size * vectors.element_size()))
    parts = [
        vectors @ factors.materialise(slice(begin, begin + step)).to(vectors.dtype).mT
        for begin in range(0, factors.examples, step)
    ]
    return torch.cat(parts, dim=1)


def _added(parts: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)
