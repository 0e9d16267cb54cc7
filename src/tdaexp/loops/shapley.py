"""In-run data Shapley of first order: what each training row did for each query, summed over a training's updates.

Source: Wang et al. 2024, "Data Shapley in one training run". With η_t and the gradient Σ_i g_{i,t} of update t, where
g_{i,t} is row i's share in it (∇ℓ_i over the batch's size), a query q of loss ℓ_q gets

    influence[q, i] = Σ_t η_t ⟨g_{i,t}, ∇ℓ_q(θ_t)⟩

which is the first-order Shapley value of the row in the update's game, summed over the updates. Sign: positive = the
row's steps lowered the query's loss. The updates are taken as plain gradient steps; AdamW scales its steps otherwise.
Additive over components.

The queries' gradients come from a pass of their own before each update, at the weights that the update starts from, in
eval mode; the rows' from the loop's own passes. Cost of an update: that pass, and the products of the captured factors,
n T_q B T (I + O) multiply-adds a layer (or B T I O where that is less) over the 3 B T I O of the training step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tdaexp import influence
from tdaexp.gradients.all_dots import all_dots
from tdaexp.gradients.factors import Factors
from tdaexp.loops.loop import Loop
from tdaexp.loops.observer import Observer
from tdaexp.loops.queries import queries_of
from tdaexp.loops.shares import Shares
from tdaexp.loops.sums import Sums, checked, length
from tdaexp.models.components import Component, parameters_of
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import provenance

log = logging.getLogger(__name__)
STORE = "influence.zarr"
LABEL = "in-run Shapley"


@dataclass
class _Captured:
    """A pass: its rows, the products [n, B, K] of its shares with the queries' gradients, and the shares' sums."""

    rows: list[int]
    dots: Tensor
    sums: Sums


class InRunShapley(Observer):
    """Leaves the rows' influence on `queries` in `folder`, which `tdaexp.load` reads.

    `queries` are items as the training set has them, which `collate` batches (None: as the loop's DataLoader does);
    `loss(model, batch)` returns one number for each, [B] (None: of a language model, `token_losses`). Only every
    `every`-th update is looked at, and counts as often. `components` are names of those that count, None = all.
    """

    needs_rows = True

    def __init__(
        self,
        folder: str | Path,
        queries: Any,
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        every: int = 1,
        components: Sequence[str] | None = None,
    ) -> None:
        """Errors (UserError): no query, an impossible number."""
        if not len(queries):
            raise UserError("InRunShapley: queries holds no item; give at least one")
        if every < 1:
            raise UserError(f"InRunShapley: every={every} must be at least 1")
        self.folder, self.queries, self.loss, self.collate = Path(folder), queries, loss, collate
        self.every, self.components = every, None if components is None else list(components)
        self._shares: Shares | None = None

    def begin(self, loop: Loop) -> None:
        """Errors (UserError): a training that goes on, a loss that is missing, a place that holds an answer."""
        if loop.start:
            raise UserError(f"InRunShapley: the training goes on from step {loop.start}, and what rows did before is "
                            "not known; begin it anew")  # fmt: skip
        if (self.folder / STORE).exists():
            raise UserError(f"InRunShapley: {self.folder / STORE} is there already; name a new folder")
        self._side = queries_of(loop, self.queries, self.loss, self.collate, self.components)
        found, model = self._side.components, self._side.model
        self._shares = Shares(loop.model, found)
        self._columns = {name: column for column, name in enumerate(found.names)}
        named = dict(model.named_parameters(remove_duplicate=False))
        self._parameters = [{id(named[name]) for name in parameters_of(model, one)} for one in found.components]
        self._scores = np.zeros((len(self._side), loop.rows, len(found)))
        self._pending: list[_Captured] = []
        self._held: list[Factors] | None = None
        self._losses: list[np.ndarray] = []
        self._gauges: list[str] | None = None
        log.info("%s: %s", LABEL, found.coverage_line())

    def ahead(self, loop: Loop) -> None:
        """Take the queries' gradients, where this update is looked at."""
        self._held = None
        if loop.step % self.every:
            return
        found: dict[str, Factors] = {}

        def keep(arrived: list[Component], factors: list[Factors]) -> None:
            found.update({one.name: own for one, own in zip(arrived, factors, strict=True)})

        with loop.alone(), self._side.ready():
            losses = self._side.capture(range(len(self._side)), keep)
        self._losses.append(losses.double().cpu().numpy())
        self._held = [found[name] for name in self._side.components.names]

    def passing(self, loop: Loop) -> None:
        """Be ready for the shares of a pass."""
        assert self._shares is not None
        if self._held is None:
            self._shares.rest()
            return
        held, rows = self._held, loop.passes[-1]
        shape = (len(self._side), len(rows), len(self._columns))
        dots = torch.zeros(shape, dtype=self._side.dtype, device=self._side.device)
        mine = _Captured(rows, dots, Sums(self._gauges))
        self._pending.append(mine)

        def consume(arrived: list[Component], factors: list[Factors]) -> None:
            columns = [self._columns[one.name] for one in arrived]
            mine.dots[:, :, columns] = all_dots([held[column] for column in columns], factors)
            mine.sums.add(arrived, factors)

        self._shares.arm(len(rows), consume)

    def discard(self, loop: Loop, keep: int) -> None:
        """Forget passes that no update came of."""
        if not keep and self._shares is not None:
            self._shares.rest(complete=False)
        self._pending = self._pending[len(self._pending) - keep :] if keep else []

    def made(self, loop: Loop) -> None:
        """Count the passes of the update; of the first one, see whether their shares sum to its gradient."""
        assert self._shares is not None
        self._shares.rest()
        self._held = None
        taken, self._pending = self._pending, []
        if not all(one.sums.found for one in taken):
            raise UserError(
                "InRunShapley: nothing of a pass was seen: what ran is not the model that is looked at, or it is "
                "compiled (torch.compile), and hooks do not run in it"
            )
        if not taken:
            return
        model, components, sums = self._side.model, self._side.components, [one.sums for one in taken]
        if self._gauges is None:
            self._gauges = checked(model, components, sums, loop)
        made_of = length(model, components, sums, self._gauges, loop)
        if not made_of and any(bool(one.dots.any()) for one in taken):
            raise UserError(
                f"InRunShapley: in update {loop.step} no gradient reached {', '.join(self._gauges)}, by which its "
                "length is seen; leave them out (components=[…])"
            )
        rates = self.every * self._rates(loop) * made_of
        for one in taken:
            found = one.dots.double().cpu().numpy() * rates
            for place, row in enumerate(one.rows):  # one may stand twice
                self._scores[:, row] += found[:, place]

    def _rates(self, loop: Loop) -> np.ndarray:
        """The learning rate of each component [K]. Errors (UserError): a component has several."""
        rate = {id(one): float(group["lr"]) for group in loop.optimizer.param_groups for one in group["params"]}
        found = [{rate[one] for one in own} for own in self._parameters]
        for name, own in zip(self._columns, found, strict=True):
            if len(own) > 1:
                raise UserError(f"InRunShapley: the parameters of '{name}' have several learning rates; give them one")
        return np.array([own.pop() for own in found])

    def end(self, loop: Loop) -> None:
        """Write the answer. Errors (UserError): a score that is not finite."""
        scores = torch.from_numpy(self._scores)
        if loop.world > 1:
            there = scores.to(self._side.device)
            dist.all_reduce(there)
            scores = there.cpu()
        values = scores.numpy()
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values).all((0, 2)))[0, 0])
            raise UserError(
                f"InRunShapley: the score of row {row} is not finite; the loss was not, in one of its passes"
            )
        if not loop.first:
            return
        with loop.alone(), self._side.ready(), torch.no_grad():
            inputs = self._side.inputs(range(len(self._side)))
            last = self._side.objective.losses(self._side.model, inputs, self._side.loss).double().cpu().numpy()
        explained, change = values.sum((1, 2)), (self._losses[0] if self._losses else last) - last
        log.info(
            "%s: the queries' mean loss fell by %.4g, of which first order explains %.4g",
            LABEL,
            change.mean(),
            explained.mean(),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        influence.save(self._labelled(values, explained, change, loop.step), self.folder / STORE)

    def _labelled(self, values: np.ndarray, explained: np.ndarray, change: np.ndarray, steps: int) -> Any:
        queries, rows = len(self._side), values.shape[1]
        told = {"method": "in_run_shapley", "label": LABEL, **provenance()}
        components = self._side.components
        found = influence.build(
            values,
            query=self._side.ids,
            query_set=["queries"] * queries,
            train=np.tile(np.array([str(row) for row in range(rows)], dtype=object), (queries, 1)),
            truth=np.zeros((queries, rows), dtype=bool),
            truth_known=np.zeros(queries, dtype=bool),
            component=components.names,
            size=components.sizes,
            attrs={**told, "parameters": components.total, "steps": steps, "every": self.every},
        )
        return found.assign(explained=("query", explained), change=("query", change))

    def leave(self) -> None:
        """Take the hooks off the model."""
        if self._shares is not None:
            self._shares.leave()
