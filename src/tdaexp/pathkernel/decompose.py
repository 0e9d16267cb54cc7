"""The change of an output in one step, by component and by part of the update (theorem 3.1, summed over examples).

f(θ_{s+1}) − f(θ_s) = Σ_parts Σ_components ∫₀¹ ∇f(θ_s(t)) dt · direction + residual, where the directions sum to
θ_{s+1} − θ_s. Contributions are to f: the paper's ψ with the opposite sign. The residual is what the quadrature leaves;
it is returned, never spread. It is of sums: what single entries are off by is estimated by a finer rule on a few
queries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tdaexp.pathkernel.forward import forward_products
from tdaexp.pathkernel.parameters import Batch, Function, Layout, Parameters, Step, between
from tdaexp.pathkernel.quadrature import Quadrature, finer, nodes
from tdaexp.pathkernel.reverse import chunks, reverse_products
from tdaexp.pathkernel.secant import secant
from tdaexp.runtime.errors import unknown

log = logging.getLogger(__name__)
MODES = ("auto", "forward", "reverse")
MEMORY = 64 * 2**20  # bytes of gradients at a time
INPUTS = 2**19  # numbers in the inputs of one forward pass: activations are a hundred times as large
FEWEST, ONE_IN, MOST = 8, 32, 16


def error_of_sum(errors: Tensor, queries: int) -> Tensor:
    """Norm of the sum of so many queries' errors, as estimated from those [q, ...] of some.

    ‖Σ e‖² = Σ ‖e_i‖² + Σ_{i≠j} ⟨e_i, e_j⟩: the mean of each over the queries that are known stands for all. Where these
    are few, products that would have errors cancel are not believed.
    """
    some, own, whole = len(errors), errors.square().sum(), errors.sum(0).square().sum()
    if some in (1, queries):
        return whole.sqrt() * (queries / some)
    products = (whole - own).clamp(min=0) / (some * (some - 1))
    return (queries / some * own + queries * (queries - 1) * products).sqrt()


def looked_at(queries: int) -> list[int]:
    """Places of the queries whose entries are checked: one in `ONE_IN`, `FEWEST` to `MOST` of them, evenly spaced."""
    count = min(queries, max(FEWEST, min(MOST, queries // ONE_IN)))
    return [(2 * place + 1) * queries // (2 * count) for place in range(count)]


@dataclass(frozen=True)
class Contributions:
    """Of one step: `values` [P, K, Q, O] by part, component, query and output; `residual` and `after` = f(θ_{s+1})
    [Q, O]; `nodes` evaluations of the integral.
    """

    values: Tensor
    residual: Tensor
    after: Tensor
    nodes: int


class Decomposer:
    """Decomposes one function of one batch of queries, step by step.

    `mode` auto counts passes: forward mode takes K (1 + 2P) of them a node, reverse mode 1 + 2O (the rule secant: two
    more for each 1). An operation without a forward-mode rule makes it go over to reverse mode, with a warning.
    """

    def __init__(
        self,
        f: Function,
        layout: Layout,
        batch: Batch,
        quadrature: Quadrature | None = None,
        *,
        mode: str = "auto",
        memory: int = MEMORY,
    ) -> None:
        if mode not in MODES:
            raise unknown("mode", mode, MODES, "method.mode")
        self.f, self.layout, self.batch, self.mode, self.memory = f, layout, batch, mode, memory
        self.quadrature = quadrature or Quadrature()
        self.reduces: bool | None = None  # whether f gives one row for the whole batch; known after the first value

    def value(self, parameters: Parameters) -> Tensor:
        """f(θ) [Q, O]."""
        with torch.no_grad():
            if self.reduces is None:
                one = self.f(parameters, next(chunks(self.batch, 2)))
                self.reduces = len(one) < min(2, len(self.batch[0]))
            return torch.cat([self.f(parameters, piece) for piece in self.pieces()])

    def pieces(self, most: int | None = None) -> list[Batch]:
        """The queries in pieces whose activations fit, of at most so many; in one for a function that reduces them."""
        inputs = self.batch[0]
        rows = len(inputs) if self.reduces else max(1, INPUTS // max(1, inputs[0].numel()))
        return list(chunks(self.batch, min(rows, most or rows)))

    def step(
        self, step: Step, parts: Mapping[str, Tensor], before: Tensor | None = None, count: int | None = None
    ) -> Contributions:
        """Contributions of the directions [D] in `parts`, in their order; `before` is f(θ_s) if it is known, `count`
        the nodes (None = find out).
        """
        before = self.value(step.start) if before is None else before
        after = self.value(step.end)
        directions = torch.stack(list(parts.values()))
        if count is None:
            count = self.node_count(step, before, after, directions)
        values = self.integral(step, directions, count, before)
        return Contributions(values, after - before - values.sum((0, 1)), after, count)

    def node_count(self, step: Step, before: Tensor, after: Tensor, directions: Tensor | None = None) -> int:
        """Nodes for this step: the first count whose residual along the whole update is small enough, and what the
        entries along the `directions` [P, D] are off by (None: along the update, by component).
        """
        counts, change = self.quadrature.counts(), after - before
        if len(counts) == 1:
            return counts[0]  # without a look at the numbers, for which a device would have to be waited for
        whole = (self.layout.flat(step.end) - self.layout.flat(step.start))[None]
        rounding = float(after.norm()) * torch.finfo(after.dtype).eps
        for count in counts[:-1]:
            residual = change - self.integral(step, whole, count, before, split=False).sum((0, 1))
            if self.quadrature.satisfied(float(residual.norm()), float(change.norm()), rounding):
                entries, errors = self.entries(step, whole if directions is None else directions, count)
                if self.quadrature.satisfied(float(errors.norm()), float(entries.norm()), rounding):
                    return count
        return counts[-1]

    def entries(self, step: Step, directions: Tensor, count: int, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Contributions [P, K, q, O] to a few queries by `count` nodes, and what each of them is off by, estimated.

        `known` are the contributions [P, K, q, O] to these queries where they have been found.
        """
        few, one = self.few, finer(self.quadrature.rule, count)
        like = few.value(step.start)
        values = few.integral(step, directions, count, like) if known is None else known
        return values, one.factor * (values - few.reference(count).integral(step, directions, one.nodes, like))

    @cached_property
    def places(self) -> list[int]:
        """Rows of the queries whose entries are checked; of a function that reduces them, its one."""
        if self.reduces is None:
            raise RuntimeError("whether f reduces its batch is known after the first value")
        return [0] if self.reduces else looked_at(len(self.batch[0]))

    @cached_property
    def few(self) -> Decomposer:
        """The same for the queries whose entries are checked."""
        return self if self.reduces else self._of(tuple(tensor[self.places] for tensor in self.batch), self.quadrature)

    def reference(self, count: int) -> Decomposer:
        """The same by the rule that entries of `count` nodes are compared with."""
        return self._of(self.batch, Quadrature(finer(self.quadrature.rule, count).rule))

    def _of(self, batch: Batch, quadrature: Quadrature) -> Decomposer:
        found = Decomposer(self.f, self.layout, batch, quadrature, mode=self.mode, memory=self.memory)
        found.reduces = self.reduces
        return found

    def integral(self, step: Step, directions: Tensor, count: int, like: Tensor, split: bool = True) -> Tensor:
        """Contributions [P, K, Q, O] of directions [P, D] by `count` nodes (K = 1 unless `split`); `like` is f(θ_s)."""
        total: Tensor | None = None
        for weight, f, parameters in self.points(step, count):
            found = weight * self._products(f, parameters, directions, like, split)
            total = found if total is None else total + found
        assert total is not None  # a rule has at least one node
        return total

    def points(self, step: Step, count: int) -> Iterator[tuple[float, Function, Parameters]]:
        """The nodes: ∫₀¹ ∇f(θ_s(t)) dt is the weighted sum of each function's gradient at its parameters."""
        rule = self.quadrature.rule
        for position, weight in zip(*nodes(rule, count), strict=True):
            middle, half = float(position), float(weight) / 2
            f = self.f
            if rule == "secant":
                f = secant(f, between(step, middle - half), between(step, middle + half))
            yield float(weight), f, between(step, middle)

    def _products(self, f: Function, parameters: Parameters, directions: Tensor, like: Tensor, split: bool) -> Tensor:
        groups = len(self.layout.components) if split else 1
        cheaper = groups * (1 + 2 * len(directions)) <= 1 + 2 * like.shape[1]
        with torch.no_grad():
            if self.mode == "forward" or (self.mode == "auto" and cheaper):
                try:
                    pieces = self.pieces()
                    return torch.cat(
                        [forward_products(f, parameters, self.layout, directions, one, split) for one in pieces], 2
                    )
                except NotImplementedError as error:
                    reason = str(error).splitlines()[0]
                    log.warning("no forward-mode rule (%s); going over to reverse mode", reason)
                    self.mode = "reverse"
            row = like.shape[1] * self.layout.size * directions.element_size()
            rows, reduced = max(1, self.memory // row), bool(self.reduces)
            found = reverse_products(f, parameters, self.layout, directions, self.batch, rows, reduced)
            return found if split else found.sum(1, keepdim=True)
