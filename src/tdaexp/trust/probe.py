"""A few pairs of a run, whose gradient products are formed once more in other ways: what the drifts are measured on.

Queries and candidates are taken from the shortest to the longest, so that examples which share a batch are padded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from tdaexp.gradients.pair_driver import block_values
from tdaexp.gradients.passes import Gradients, query_gradients, train_gradients
from tdaexp.gradients.products import Products
from tdaexp.gradients.schedule import Block
from tdaexp.problem import Problem
from tdaexp.trust.check import NotMeasured

if TYPE_CHECKING:
    from tdaexp.methods.base import Method

Found = dict[str, np.ndarray]
"""`dot` and `train_sq` [Q, C, K], `query_sq` [Q, K]."""
FLOOR = 1e-3
"""A component whose gradients are smaller than this share of the whole ones is judged by that: it may be rounding."""
SHARE = 0.02
"""Of a run's passes, at most so many more are made for checks,"""
FEW = 1e10
"""or passes of so many FLOP in all, which take one core a second or two."""


class Allowance:
    """How much work the checks of a run may make: `wanted` None = what is cheap beside the run, or takes a second or
    two; True = all; False = none. Counted in positions (tokens) of passes, not by a clock: the same run makes the same
    checks on any machine.
    """

    def __init__(self, wanted: bool | None, run: float, parameters: int) -> None:
        """`run` are the positions of the run's own passes, at least; `parameters` those of the model."""
        self.wanted, self.run, self.parameters, self.spent = wanted, run, parameters, 0.0

    def spend(self, positions: float) -> None:
        """Note passes over so many positions. Errors (NotMeasured): too much."""
        if self.wanted is False:
            raise NotMeasured("trust=false leaves out what takes passes through the model")
        flop = 6.0 * self.parameters * positions
        own = 6.0 * self.parameters * self.run
        if not self.wanted and self.spent + flop > max(SHARE * own, FEW):
            raise NotMeasured(
                f"it would take about {100 * flop / own:.2g} % of this run's passes, and more than a second or two; "
                "trust=true measures it all the same"
            )
        self.spent += flop


@dataclass(frozen=True)
class Probe:
    """Gradients of a few training examples and a few queries, all of which meet."""

    train: Gradients
    queries: Gradients
    tokens_per_batch: int

    @property
    def positions(self) -> float:
        """Of a pass over each example."""
        return float(self.train.lengths.sum() + self.queries.lengths.sum())

    def products(self, alone: bool = True) -> Found:
        """Products and self-products, each example in a batch of its own, or together with others."""
        sides = self.queries, self.train
        if alone:
            batches = [[[number] for number in range(len(side))] for side in sides]
        else:
            batches = [side.batches(self.tokens_per_batch) for side in sides]
        work = Products(self.train, self.queries, self.tokens_per_batch)
        block, pairs = Block(*batches), np.tile(np.arange(len(self.train)), (len(self.queries), 1))
        with work.ready():
            found = block_values(work, pairs, block)
        back = np.argsort(block.members)
        return {name: values[back].astype(np.float64) for name, values in found.items()}

    @cached_property
    def alone(self) -> Found:
        """`products` of examples in batches of their own."""
        return self.products()

    def on(self, copies: dict[nn.Module, nn.Module]) -> Probe:
        """The same on copies of the models."""
        sides = [replace(side, model=copies[side.model]) for side in (self.train, self.queries)]
        return Probe(sides[0], sides[1], self.tokens_per_batch)


def sides_of(method: Method, problem: Problem, names: list[str]) -> tuple[Gradients, Gradients]:
    """Gradients of all training examples and of all queries, those of the model that answers them."""
    reduction = getattr(method, "reduction", "mean")
    train = train_gradients(problem, problem.map.select(names), reduction)
    queries = query_gradients(problem, problem.map.select(names), reduction)
    second = problem.finetuned
    if second is not None and method.both_stages:
        queries = replace(queries, model=second.loaded.model, components=second.map.select(names))
    return train, queries


def probe_of(method: Method, problem: Problem, names: list[str], queries: int = 2, examples: int = 4) -> Probe:
    """A few queries, and a few of their candidates. Errors (NotMeasured): no query has any."""
    sides = sides_of(method, problem, names)
    return few_pairs(*sides, problem.pairs, problem.compute.tokens_per_batch, queries, examples)[0]


def few_pairs(
    train: Gradients, queries: Gradients, pairs: np.ndarray, tokens_per_batch: int, most: int, examples: int
) -> tuple[Probe, list[int], list[int]]:
    """At most so many of some queries and so many of their candidates, and their numbers. Errors as `probe_of`."""
    able = np.flatnonzero((pairs >= 0).any(axis=1))
    if not len(able):
        raise NotMeasured("no pair was scored")
    rows = able[spread(queries.lengths[able], most)]
    near = np.unique(pairs[rows])
    near = near[near >= 0]
    columns = near[spread(train.lengths[near], examples)]
    sides = [
        replace(side, examples=side.examples.select(chosen.tolist()))
        for side, chosen in ((train, columns), (queries, rows))
    ]
    return Probe(sides[0], sides[1], tokens_per_batch), rows.tolist(), columns.tolist()


def spread(lengths: np.ndarray, count: int) -> list[int]:
    """Places of at most `count` examples, evenly spaced from the shortest to the longest."""
    order = np.argsort(lengths, kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [int(place) for place in order[chosen]]


def drift(found: Found, reference: Found, names: list[str]) -> tuple[float, str]:
    """The largest change of a pair's product, as a share of the product of the two gradients' norms, in any component
    or in their sum; and where that is.

    Of a component by its own gradients, or by `FLOOR` of the whole ones where these are larger.
    """
    difference = np.abs(found["dot"] - reference["dot"])
    squares = reference["query_sq"][:, None] * reference["train_sq"]
    whole = np.sqrt(reference["query_sq"].sum(-1)[:, None] * reference["train_sq"].sum(-1))
    own = np.maximum(np.sqrt(squares), FLOOR * whole[..., None])
    total = np.abs((found["dot"] - reference["dot"]).sum(-1))
    worst = [_largest(total, whole), *(_largest(difference[..., k], own[..., k]) for k in range(len(names)))]
    place = int(np.argmax(worst))
    return worst[place], "all components together" if place == 0 else f"the component '{names[place - 1]}'"


def _largest(change: np.ndarray, scale: np.ndarray) -> float:
    """Of two numbers that are zero nothing changed."""
    shares = np.divide(change, scale, out=np.where(change > 0, np.inf, 0.0), where=scale > 0)
    return float(shares.max())
