"""Writes a trajectory while a model is trained: block after block, the same bits whether or not it was killed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime import seal
from tdaexp.runtime.errors import UserError
from tdaexp.training.optimisers import decays
from tdaexp.training.settings import FitSettings
from tdaexp.training.trajectory import Layout

log = logging.getLogger(__name__)
BLOCK_BYTES = 8_000_000
DISK_MARGIN = 1.05  # zarr's own files, and what else the run writes


def plan(
    parameters: Mapping[str, Tensor], settings: FitSettings, *, examples: int, batch: int, identity: str
) -> Layout:
    """The layout of a recording before it starts; `batch` is the size of its largest batch."""
    size = 4 * sum(parameter.numel() for parameter in parameters.values())
    rows = max(1, min(BLOCK_BYTES // size, settings.checkpoint_every // settings.record))
    return Layout(
        identity=identity,
        total=settings.steps,
        every=settings.record,
        optimizer=settings.optimizer,
        betas=list(settings.betas),
        eps=settings.eps,
        momentum=settings.momentum,
        shapes={name: list(parameter.shape) for name, parameter in parameters.items()},
        decay=decays(parameters.items(), settings),
        examples=examples,
        batch=batch,
        rows=rows,
        eps_root=settings.eps_root,
    )


class Recorder:
    """Collects rows until a block is full, then writes it. `empty` tells when all that was given is on disk."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Open or create the folder. Errors (UserError): it does not fit on the disk."""
        self._rows: dict[int, dict[str, np.ndarray]] = {}
        self.layout = _as_begun(folder, layout)
        _check_disk(folder, self.layout)
        seal.write_note(folder / "note.json", asdict(self.layout))
        self._states, self._batches = self.layout.open(folder)

    @property
    def empty(self) -> bool:
        """Whether no row waits for its block to be full."""
        return not self._rows

    def before(self, step: int, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Take θ_s, and the first moment where it is kept."""
        if step % self.layout.every == 0:
            row = {"parameters": self.layout.flat(parameters)}
            if self.layout.every > 1:
                key = "exp_avg" if self.layout.optimizer == "adamw" else "momentum_buffer"
                row["momentum"] = self.layout.flat(_state(parameters, optimizer, key))
            self._rows[step // self.layout.every] = row

    def after(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        batch: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Take what is known of a step once its update is made; `batch` are the ids and weights [B]."""
        if step % self.layout.every:
            return
        row, (ids, weights) = self._rows[step // self.layout.every], batch
        gap = self.layout.batch - len(ids)
        row |= {"ids": np.pad(ids, (0, gap), constant_values=-1), "weights": np.pad(weights, (0, gap))}
        row["lr"] = np.asarray(optimizer.param_groups[0]["lr"])
        if self.layout.optimizer == "adamw":
            row["second_moment"] = self.layout.flat(_state(parameters, optimizer, "exp_avg_sq"))
        if self.layout.every > 1:
            row["updated"] = self.layout.flat(parameters)
        self._flush(step // self.layout.every)

    def end(self, parameters: Mapping[str, Tensor]) -> None:
        """Take the parameters that the training ended with."""
        nothing = {name: np.zeros(shape[1:], dtype) for name, (shape, dtype) in self.layout.states().items()}
        nothing |= {name: np.zeros(shape[1:], dtype) for name, (shape, dtype) in self.layout.batches().items()}
        self._rows[len(self.layout.steps)] = {**nothing, "parameters": self.layout.flat(parameters)}
        self._flush(len(self.layout.steps))

    def _flush(self, row: int) -> None:
        block = row // self.layout.rows
        span = self.layout.blocks[block]
        if row != span.stop - 1:
            return
        for store, names in ((self._states, self.layout.states()), (self._batches, self.layout.batches())):
            rows = [self._rows[index] for index in range(span.start, span.stop)]
            store.write(block, {name: np.stack([values[name] for values in rows]) for name in names})
        self._rows.clear()


def _state(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, key: str) -> dict[str, Tensor]:
    """One of the optimiser's buffers by parameter name; zeros before the first step, and without momentum."""
    found = {name: optimizer.state.get(parameter, {}).get(key) for name, parameter in parameters.items()}
    return {name: torch.zeros_like(parameters[name]) if value is None else value for name, value in found.items()}


def _as_begun(folder: Path, layout: Layout) -> Layout:
    """The layout with the blocks of a recording that was begun before, perhaps under another `checkpoint_every`."""
    note = folder / "note.json"
    if not note.exists():
        return layout
    try:
        begun = Layout(**seal.read_note(note))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{note}: not readable ({error}); delete {folder} and run again") from error
    if replace(begun, rows=layout.rows) != layout:
        raise UserError(f"{folder}: holds the trajectory of another training; delete this folder and run again")
    return begun


def _check_disk(folder: Path, layout: Layout) -> None:
    """Say how large the trajectory will be; refuse one that does not fit beside what is written already."""
    folder.mkdir(parents=True, exist_ok=True)
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free + written
    log.info(
        "trajectory: %d states of %s parameters, at most %.3g GB in %s",
        len(layout.steps) + 1, f"{layout.size:,}", layout.nbytes / 1e9, folder,
    )  # fmt: skip
    if layout.nbytes * DISK_MARGIN > free:
        raise UserError(
            f"trainer.fit.record={layout.every}: the trajectory takes {layout.nbytes / 1e9:.3g} GB and {folder} has "
            f"{free / 1e9:.3g} GB free; record every {2 * layout.every}-th step or fewer, or name another cache_dir"
        )
