"""The recording of a training in somebody's loop, in the form that `explaind` and `magic` read.

    folder/note.json, states/, batches/     as of `training.trajectory`

A recorded step is θ_{s+1} = the optimiser's on Σ_k w_k ℓ_k(θ_s), so that each row's weight in the update's loss must be
known: by default a pass's loss is the mean over its rows, passes are averaged, and so are processes. Whether that is so
is seen at the first update, by the gradient. Cost of a step: its weights to the disk once, with AdamW twice, and once
in a training a forward and backward pass.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tdaexp.loops.loop import Loop
from tdaexp.loops.observer import Observer
from tdaexp.loops.optimisers import alike, decays_of, kind_of, rate_of
from tdaexp.runtime.errors import UserError
from tdaexp.training.recorder import Recorder, plan
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import check_deterministic

log = logging.getLogger(__name__)
TOLERANCE = 1e-4
"""Largest relative difference of the first gradient from that of Σ_k w_k ℓ_k."""


class Record(Observer):
    """Records every `every`-th update in `folder`; `tdaexp.attribute(…, history=FOLDER)` reads it.

    `loss(model, batch)` returns one number for each item [B], as `tdaexp.attribute` will be given it. `weights(rows)`
    gives each row's weight in the loss of a pass over these rows [B] (None: the mean). `collate` batches items (None:
    as the loop's DataLoader does).
    """

    needs_rows = True

    def __init__(
        self,
        folder: str | Path,
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        every: int = 1,
        weights: Callable[[Sequence[int]], Any] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        """Errors (UserError): an impossible number."""
        if every < 1:
            raise UserError(f"Record: every={every} must be at least 1")
        self.folder, self.loss, self.every = Path(folder), loss, every
        self.weights, self.collate = weights, collate
        self._recorder: Recorder | None = None
        self._expected: dict[str, Tensor] | None = None

    def begin(self, loop: Loop) -> None:
        """Errors (UserError): a training that goes on or whose length is not known, dropout, batch norm in training
        mode, a parameter that is not trained or no float32, an optimiser that is not known.
        """
        if loop.start:
            raise UserError(f"Record: the training goes on from step {loop.start}, and its first steps were not "
                            "recorded; begin it anew")  # fmt: skip
        if loop.steps is None:
            raise UserError("Record: how many updates the training makes must be known before it begins; give steps=N")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"Record: {self.folder} holds something already; name a new folder")
        check_deterministic(loop.model)
        for name, one in loop.model.named_parameters():
            if name not in loop.parameters or one.dtype != torch.float32:
                how = "is not trained" if name not in loop.parameters else f"is {one.dtype}"
                raise UserError(f"Record: the parameter '{name}' {how}; a recording is of whole models in float32")
        self._kind = kind_of(loop.optimizer)
        alike(loop.optimizer, ("betas", "eps", "momentum"))
        self._recorder = self._expected = None

    def before(self, loop: Loop) -> None:
        """Take θ_s, and what else is needed of the step."""
        rate_of(loop.optimizer)
        self._rows, self._weights = self._batch(loop)
        if not loop.first:
            return
        if self._recorder is None:
            self._recorder = self._begun(loop)
            self._expected = self._gradient(loop)
        if len(self._rows) > self._recorder.layout.batch:
            raise UserError(
                f"Record: step {loop.step} has {len(self._rows)} rows and the first had {self._recorder.layout.batch}, "
                "for which there is room; make no batch larger than the first"
            )
        self._recorder.before(loop.step, loop.parameters, loop.optimizer)

    def made(self, loop: Loop) -> None:
        """Take the step's batch and the optimiser's state; compare the first gradient with the one expected."""
        if self._recorder is None:
            return
        if self._expected is not None:
            self._check(loop, self._expected)
            self._expected = None
        self._recorder.after(loop.step, loop.parameters, loop.optimizer, (self._rows, self._weights))

    def after(self, loop: Loop) -> None:
        """Take the end of the training with its last update. Errors (UserError): one more than was planned."""
        if self._recorder is None or loop.steps is None:
            return
        if loop.step == loop.steps:
            self._recorder.end(loop.parameters)
        elif loop.step > loop.steps:
            raise UserError(f"Record: the training goes on behind its step {loop.steps}; give steps=N as it is")

    def end(self, loop: Loop) -> None:
        """Say where a training was too short."""
        if loop.step != loop.steps:
            log.warning(
                "Record: the training ended after %d of %s updates, so that the recording cannot be read; record it "
                "again with steps=%d", loop.step, loop.steps, loop.step,
            )  # fmt: skip

    def _batch(self, loop: Loop) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the update and their weights in its loss [B], of all processes."""
        share = 1 / (len(loop.passes) * loop.world)
        rows = np.array([row for one in loop.passes for row in one], dtype=np.int64)
        mean = self.weights or (lambda rows: np.full(len(rows), 1 / len(rows)))
        weights = np.concatenate([share * np.asarray(mean(one), dtype=np.float64) for one in loop.passes])
        if loop.world == 1:
            return rows, weights
        every: list[Any] = [None] * loop.world
        dist.all_gather_object(every, (rows, weights))
        return np.concatenate([one for one, _ in every]), np.concatenate([one for _, one in every])

    def _begun(self, loop: Loop) -> Recorder:
        group, steps = loop.optimizer.param_groups[0], int(loop.steps or 0)
        settings = FitSettings(
            steps=steps, optimizer=self._kind, record=self.every, checkpoint_every=max(1, steps),
            betas=list(group.get("betas", (0.9, 0.999))), eps=float(group.get("eps", 1e-8)),
            momentum=float(group.get("momentum", 0.0)),
        )  # fmt: skip
        identity = secrets.token_hex(8)  # of this training and no other
        layout = plan(loop.parameters, settings, examples=loop.rows, batch=len(self._rows), identity=identity)
        return Recorder(self.folder, replace(layout, decay=decays_of(loop.model, loop.optimizer)))

    def _gradient(self, loop: Loop) -> dict[str, Tensor]:
        """That of Σ_k w_k ℓ_k at the present parameters."""
        device = next(loop.model.parameters()).device
        items = [loop.items[int(row)] for row in self._rows]
        batch = tree_map_only(Tensor, lambda one: one.to(device), (self.collate or loop.collate)(items))
        with loop.alone():
            losses = self.loss(loop.model, batch)
            if losses.shape != (len(items),):
                raise UserError(
                    f"Record: the loss gives {list(losses.shape)} for {len(items)} items; it must return one number "
                    "for each, [B] (with reduction='none', and no mean)"
                )
            total = losses @ torch.from_numpy(self._weights).to(losses)
            found = torch.autograd.grad(total, list(loop.parameters.values()), allow_unused=True)
        named = zip(loop.parameters.items(), found, strict=True)
        return {name: torch.zeros_like(one) if own is None else own for (name, one), own in named}

    def _check(self, loop: Loop, expected: dict[str, Tensor]) -> None:
        own = {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in loop.parameters.items()}
        error = sum(float((own[name] - one).square().sum()) for name, one in expected.items()) ** 0.5
        norm = sum(float(one.square().sum()) for one in expected.values()) ** 0.5
        if not error <= TOLERANCE * norm:
            raise UserError(
                "Record: the first update's gradient is not that of the weighted sum of its rows' losses (relative "
                f"error {error / norm if norm else float('inf'):.3g}, allowed {TOLERANCE:g}): give the loss that is "
                "trained on and weights=FUNCTION where it is no mean over rows, clip no gradient, and train in float32"
            )
