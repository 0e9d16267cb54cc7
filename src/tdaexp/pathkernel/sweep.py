"""Influence of single training examples, by running time backwards.

Σ_s φ_test(s) · φ_train(s, k) = Σ_i w_{i,k} ∇L_k(θ_i) · u_i, where i runs over the steps whose batch holds example k and

    U_i = gain_i lr_i p_i ⊙ φ_test(i) + decay · U_{i+1}        u_i = take_i U_i + direct_i lr_i p_i ⊙ φ_test(i)

(symbols of `updates`). Each gradient is weighted by its own step's w. Memory holds U and φ_test [queries · outputs, D]
and a piece of one batch's gradients: nothing grows with the number of training examples times the parameters. Cost of a
step: the Jacobian of the queries at each node, the batch's gradients, and their products with u.

All of this is linear in φ_test, so what entries are off by goes the same way: a few rows more, of φ_test by the rule
less φ_test by a finer one (`quadrature.finer`), end as the errors of those queries' entries, summed over steps as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.pathkernel.decompose import MEMORY, Decomposer
from tdaexp.pathkernel.parameters import Batch, Function, Layout, Parameters, Step
from tdaexp.pathkernel.quadrature import Quadrature, finer
from tdaexp.pathkernel.reverse import add_gradients, example_dots, output_gradients, reduced_gradients
from tdaexp.pathkernel.updates import Optimiser, decay_share


@dataclass(frozen=True)
class Swept:
    """Of one step, as contributions to f. By gradient step: `train` [K, B, Q, O] of the batch's examples in the order
    of the step's ids (through this and all later updates), and `regularisation` [K, Q, O]. By update: `whole`
    [K, Q, O] of the update itself, `residual` [Q, O] and the `nodes` used. K = 1 unless components are kept. Where they
    are checked, `errors` [K, B, q, O] is what those of a few queries are off by (`Decomposer.places`).
    """

    train: Tensor
    errors: Tensor
    regularisation: Tensor
    whole: Tensor
    residual: Tensor
    nodes: int


class Sweep:
    """State of the reverse sweep; `step` takes the steps from the last to the first.

    `carry` [R·O, D] is all that has to be saved to go on later: rows of the queries, then those of the check. `losses`
    gives [B, 1] and `f` [Q, O]. With `sum_queries` the sum over the queries is decomposed (Q = 1 in all that is
    returned). `check`: estimate what entries are off by.
    """

    def __init__(
        self,
        f: Function,
        losses: Function,
        layout: Layout,
        rule: Optimiser,
        queries: Batch,
        quadrature: Quadrature | None = None,
        *,
        components: bool = False,
        sum_queries: bool = False,
        check: bool = False,
        memory: int = MEMORY,
    ) -> None:
        self.losses, self.layout, self.rule, self.components, self.memory = losses, layout, rule, components, memory
        self.sum_queries, self.check = sum_queries, check
        self.decomposer = Decomposer(f, layout, queries, quadrature)
        self.carry: Tensor | None = None
        self._after: tuple[int, Tensor] | None = None

    def step(self, step: Step, examples: Batch, counted: bool = True, count: int | None = None) -> Swept:
        """Go one step back; `examples` holds the batch in the order of `step.ids`; `count` nodes, None = find out.

        With `counted` False the update itself does not count, so that the sum is over the other steps alone: the
        examples still get what their gradients do through later updates.
        """
        now, layout = self.rule.coefficients(step.number), self.layout
        before, after = self._values(step)
        if counted and count is None:
            count = self.decomposer.node_count(step, before, after)
        if self.sum_queries:
            before, after = before.sum(0, keepdim=True), after.sum(0, keepdim=True)
        features = self.features(step, before, count) if counted and count else None
        own = before.numel()
        whole, residual = self._whole(step, None if features is None else features[:own], after - before)
        decay = decay_share(step, layout)[None]
        decoupled = layout.spread(step.lr, decay) * decay
        shrunk = whole.new_zeros(len(whole), own) if features is None else self._dots(decoupled, features[:own])[:, 0]
        direction = self._advance(step, features, own + self._checked * before.shape[1])
        dots = example_dots(
            self.losses, step.start, layout, examples, direction, memory=self.memory, split=self.components
        )
        if self.rule.coupled:
            shrunk = self._dots(decay, direction[:own])[:, 0]
        taken = 1.0 if now.direct else now.take
        rows = (-taken * step.weights.to(dots)[:, None] * dots).unflatten(-1, (-1, before.shape[1]))
        train, errors = rows[:, :, : len(before)], rows[:, :, len(before) :]
        regularisation = -(taken if self.rule.coupled else 1.0) * shrunk
        used = count if counted and count else 0
        return Swept(train, errors, regularisation.unflatten(-1, before.shape), whole, residual, used)

    @property
    def _checked(self) -> int:
        """Rows that are carried for the check: each looked-at query's error."""
        return len(self.decomposer.places) if self.check else 0

    def _advance(self, step: Step, features: Tensor | None, rows: int) -> Tensor:
        """Take φ_test(s) into U, in place: it is the largest thing there is. Returns u, or U where u = take · U."""
        now = self.rule.coefficients(step.number)
        if self.carry is None:
            self.carry = self.layout.flat(step.start).new_zeros(rows, self.layout.size)
        self.carry.mul_(now.decay)
        if features is not None:
            features.mul_(self.rule.scale(step, self.layout))
            self.carry.add_(features, alpha=now.gain)
        if not now.direct:
            return self.carry
        return now.take * self.carry + (0.0 if features is None else now.direct * features)

    def features(self, step: Step, like: Tensor, count: int) -> Tensor:
        """φ_test(s) = ∫₀¹ ∇f(θ_s(t)) dt [R·O, D] by `count` nodes; `like` [Q, O]. The last rows are the check's."""
        queries = len(like)
        total = like.new_zeros(queries + self._checked, like.shape[1], self.layout.size)
        self._integrate(total[:queries], self.decomposer, step, count, self.sum_queries)
        if self.check:
            few, one = self.decomposer.few, finer(self.decomposer.quadrature.rule, count)
            errors = total[queries:]
            self._integrate(errors, few.reference(count), step, one.nodes, sums=False)
            known = torch.zeros_like(errors) if self.sum_queries else total[self.decomposer.places]
            if self.sum_queries:
                self._integrate(known, few, step, count, sums=False)
            errors.sub_(known).mul_(-one.factor)
        return total.flatten(0, 1)

    def _integrate(self, total: Tensor, decomposer: Decomposer, step: Step, count: int, sums: bool) -> None:
        """Add ∫₀¹ ∇f(θ_s(t)) dt of a decomposer's queries to `total` [Q, O, D], or [1, O, D] of their sum."""
        reduced = decomposer.reduces
        row = total.shape[1] * self.layout.size * total.element_size()
        pieces = decomposer.pieces(None if sums or reduced else max(1, self.memory // row))
        for weight, f, point in decomposer.points(step, count):
            begin = 0
            for piece in pieces:
                if sums and not reduced:
                    found = reduced_gradients(_summed(f), point, self.layout, piece)
                else:
                    found = (reduced_gradients if reduced else output_gradients)(f, point, self.layout, piece)
                rows = 1 if sums or reduced else len(piece[0])
                add_gradients(total[begin : begin + rows], weight, found, self.layout)
                begin += 0 if sums else rows

    def _values(self, step: Step) -> tuple[Tensor, Tensor]:
        known = self._after is not None and self._after[0] == step.number + 1
        after = self._after[1] if known and self._after else self.decomposer.value(step.end)
        before = self.decomposer.value(step.start)
        self._after = (step.number, before)
        return before, after

    def _whole(self, step: Step, features: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor]:
        if features is None:
            return change.new_zeros(len(self.layout.components) if self.components else 1, *change.shape), change
        update = (self.layout.flat(step.end) - self.layout.flat(step.start))[None]
        whole = self._dots(update, features)[:, 0].unflatten(-1, change.shape)
        return whole, change - whole.sum(0)

    def _dots(self, vectors: Tensor, others: Tensor) -> Tensor:
        """[K, A, B], K = 1 unless components are kept."""
        if self.components:
            return self.layout.by_component(vectors, others)
        return (vectors @ others.mT)[None]


def _summed(f: Function) -> Function:
    def function(parameters: Parameters, batch: Batch) -> Tensor:
        return f(parameters, batch).sum(0, keepdim=True)

    return function
