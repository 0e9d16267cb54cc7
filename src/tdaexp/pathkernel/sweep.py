"""Influence of single training examples, by running time backwards.

Σ_s φ_test(s) · φ_train(s, k) = Σ_i w_{i,k} ∇L_k(θ_i) · u_i, where i runs over the steps whose batch holds example k and

    U_i = gain_i lr_i p_i ⊙ φ_test(i) + decay · U_{i+1}        u_i = take_i U_i + direct_i lr_i p_i ⊙ φ_test(i)

(symbols of `updates`). Each gradient is weighted by its own step's w. Memory holds U and φ_test [queries · outputs, D]
and a piece of one batch's gradients: nothing grows with the number of training examples times the parameters. Cost of a
step: the Jacobian of the queries at each node, the batch's gradients, and their products with u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.pathkernel.decompose import MEMORY, Decomposer
from tdaexp.pathkernel.parameters import Batch, Function, Layout, Step, between
from tdaexp.pathkernel.quadrature import Quadrature, nodes
from tdaexp.pathkernel.reverse import chunks, example_dots, output_gradients
from tdaexp.pathkernel.updates import Optimiser, decay_share


@dataclass(frozen=True)
class Swept:
    """Of one step, as contributions to f. By gradient step: `train` [K, B, Q, O] of the batch's examples in the order
    of the step's ids (through this and all later updates), and `regularisation` [K, Q, O]. By update: `whole`
    [K, Q, O] of the update itself, `residual` [Q, O] and the `nodes` used. K = 1 unless components are kept.
    """

    train: Tensor
    regularisation: Tensor
    whole: Tensor
    residual: Tensor
    nodes: int


class Sweep:
    """State of the reverse sweep; `step` takes the steps from the last to the first.

    `carry` [Q·O, D] is all that has to be saved to go on later. `losses` gives [B, 1] and `f` [Q, O].
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
        memory: int = MEMORY,
    ) -> None:
        self.losses, self.layout, self.rule, self.components, self.memory = losses, layout, rule, components, memory
        self.decomposer = Decomposer(f, layout, queries, quadrature)
        self.carry: Tensor | None = None
        self._after: tuple[int, Tensor] | None = None

    def step(self, step: Step, examples: Batch, counted: bool = True) -> Swept:
        """Go one step back; `examples` holds the batch in the order of `step.ids`.

        With `counted` False the update itself does not count, so that the sum is over the other steps alone: the
        examples still get what their gradients do through later updates.
        """
        now, layout = self.rule.coefficients(step.number), self.layout
        before, after = self._values(step)
        features, count = self.features(step, before, after) if counted else (None, 0)
        scaled = 0.0 if features is None else self.rule.scale(step, layout) * features
        carried = 0.0 if self.carry is None or now.decay == 0 else now.decay * self.carry
        carry = now.gain * scaled + carried
        if not isinstance(carry, Tensor):  # nothing counts yet
            carry = layout.flat(step.start).new_zeros(before.numel(), layout.size)
        self.carry = carry
        direction = now.take * carry + (now.direct * scaled if now.direct else 0.0)
        dots = example_dots(
            self.losses, step.start, layout, examples, direction, memory=self.memory, split=self.components
        )
        train = -step.weights.to(dots)[:, None] * dots
        decay = decay_share(step, layout)[None]
        if self.rule.coupled:
            regularisation = -self._dots(decay, direction)[:, 0]
        elif features is None:
            regularisation = train.new_zeros(len(train), before.numel())
        else:
            regularisation = -self._dots(decay * layout.spread(step.lr, decay), features)[:, 0]
        whole, residual = self._whole(step, features, after - before, train)
        shape = before.shape
        return Swept(train.unflatten(-1, shape), regularisation.unflatten(-1, shape), whole, residual, count)

    def features(self, step: Step, before: Tensor, after: Tensor) -> tuple[Tensor, int]:
        """φ_test(s) = ∫₀¹ ∇f(θ_s(t)) dt [Q·O, D], and the nodes used."""
        count, batch = self.decomposer.node_count(step, before, after), self.decomposer.batch
        row = before.shape[1] * self.layout.size * before.element_size()
        pieces = []
        for piece in chunks(batch, max(1, self.memory // row)):
            total: Tensor | None = None
            for position, weight in zip(*nodes(self.decomposer.quadrature.rule, count), strict=True):
                point = between(step, float(position))
                found = output_gradients(self.decomposer.f, point, self.layout, piece).flatten(0, 1)
                total = found.mul_(float(weight)) if total is None else total.add_(found, alpha=float(weight))
            pieces.append(total)
        return torch.cat([piece for piece in pieces if piece is not None]), count

    def _values(self, step: Step) -> tuple[Tensor, Tensor]:
        known = self._after is not None and self._after[0] == step.number + 1
        after = self._after[1] if known and self._after else self.decomposer.value(step.end)
        before = self.decomposer.value(step.start)
        self._after = (step.number, before)
        return before, after

    def _whole(self, step: Step, features: Tensor | None, change: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if features is None:
            return like.new_zeros(len(like), *change.shape), change
        update = (self.layout.flat(step.end) - self.layout.flat(step.start))[None]
        whole = self._dots(update, features)[:, 0].unflatten(-1, change.shape)
        return whole, change - whole.sum(0)

    def _dots(self, vectors: Tensor, others: Tensor) -> Tensor:
        """[K, A, B], K = 1 unless components are kept."""
        if self.components:
            return self.layout.by_component(vectors, others)
        return (vectors @ others.mT)[None]
