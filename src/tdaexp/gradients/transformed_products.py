"""Dot products of gradients that a method has transformed, component by component: the short way to a method.

A block's queries are held explicitly, transformed once; every training batch is formed, transformed and met. Methods
that can do without explicit gradients, as `products` does, are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.factors import Factors
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.pair_driver import GradientPairs, WritePairs, WriteQueries, meet_pairs
from tdaexp.gradients.pairs import Pairs, products_of_rows
from tdaexp.gradients.passes import Gradients, Transform, query_gradients, train_gradients
from tdaexp.gradients.schedule import Block
from tdaexp.models.components import Component, ComponentMap
from tdaexp.problem import Problem
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.rows import Rows


def as_it_is(name: str, gradient: Tensor) -> Tensor:
    """The gradient."""
    return gradient


def transformed_products(
    problem: Problem,
    components: ComponentMap,
    name: str,
    *settings: object,
    query: Transform = as_it_is,
    train: Transform = as_it_is,
    reduction: str = "mean",
) -> Rows:
    """Dot products [Q, C, K] of the queries' and the training examples' transformed loss gradients, by component.

    `name` and `settings` are all that the transforms depend on: results are kept under them, and a killed run goes on
    where it stopped. The gradients are those of losses, so that a positive product helps where both are left alone.
    Errors (UserError): an example without a loss, NaN or Inf in a gradient.
    """
    code = [one for one in (query, train) if one is not as_it_is]
    work = TransformedPairs(
        train_gradients(problem, components, reduction),
        query_gradients(problem, components, reduction),
        problem.compute.tokens_per_batch,
        query,
        train,
    )
    store = problem.store("transformed", name, components.names, reduction, *settings, by=[transformed_products, *code])
    return meet_pairs(work, problem.pairs, store=store, cache_gb=problem.compute.cache_gb)["products"]


@dataclass
class TransformedPairs(GradientPairs[dict[str, Tensor]]):
    """Holds the queries' transformed gradients [n, d] by component."""

    of_queries: Transform
    of_train: Transform

    arrays = {"products": "pair"}  # noqa: RUF012 (a constant of the class)
    doing = "products of transformed gradients"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = self.train.components.names
        self.width = len(self.names)

    def held_bytes(self) -> np.ndarray:
        """As much as the gradients before they are transformed."""
        size = int(self.train.components.sizes.sum()) * self.train.dtype.itemsize
        return np.full(len(self.queries), size, dtype=np.float64)

    def hold(self, block: Block, write: WriteQueries, later: Deferred) -> dict[str, Tensor]:
        """The queries, batch by batch."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for members in block.queries:
            self._run(self.queries, members, self.of_queries, later, lambda name, made: found[name].append(made))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def meet(self, batch: list[int], held: dict[str, Tensor], pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """One pass over some training examples."""
        values = torch.empty(len(pairs), self.width, device=self.train.device, dtype=self.train.dtype)

        def take(name: str, made: Tensor) -> None:
            values[:, self.names.index(name)] = products_of_rows(held[name], made, pairs)

        self._run(self.train, batch, self.of_train, later, take)
        later.add(partial(write, "products"), values)

    def _run(
        self,
        side: Gradients,
        members: list[int],
        transform: Transform,
        later: Deferred,
        take: Callable[[str, Tensor], None],
    ) -> None:
        """One pass: what each component's gradients are transformed to goes to `take`."""
        largest = torch.full((len(members), self.width), torch.nan, device=side.device, dtype=side.dtype)

        def consume(components: list[Component], factors: list[Factors]) -> None:
            for component, one in zip(components, factors, strict=True):
                gradient = one.materialise()
                largest[:, self.names.index(component.name)] = gradient.abs().amax(1)
                take(component.name, transform(component.name, gradient))

        losses = side.capture(members, consume)
        ids = [side.ids[index] for index in members]
        later.add(lambda largest, losses: require_finite(largest, ids, self.names, losses), largest, losses)
