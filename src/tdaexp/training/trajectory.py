"""A recorded training: the states that the path kernel of ExPLAIND (Eichin et al. 2026, theorem 3.1) sums over.

    folder/note.json   optimiser, steps, names and shapes of the parameters, whose training it is
    folder/states/     float32 rows of all parameters one after the other, blocks with checksums:
                       `parameters` before the update, `second_moment` after it (AdamW); and, where not every step is
                       recorded, `updated` (parameters after it) and `momentum` (first moment before it)
    folder/batches/    per row: `ids` and `weights` of the batch, `lr`

The last row of `parameters` is the end of the training.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime import seal
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError

AGAIN = "run the same train.py command again"


@dataclass(frozen=True)
class Layout:
    """What a trajectory consists of, as kept in `note.json`.

    `total` steps of the training, every `every`-th recorded; `shapes` of the parameters by name; `decay` their weight
    decay; `optimizer` adamw | sgd with `betas`, `eps`, `eps_root`, `momentum` (dampening 0, no Nesterov); `batch`
    largest batch; `rows` per block; `examples` in the training set; `identity` of the training.
    """

    identity: str
    total: int
    every: int
    optimizer: str
    betas: list[float]
    eps: float
    momentum: float
    shapes: dict[str, list[int]]
    decay: dict[str, float]
    examples: int
    batch: int
    rows: int
    eps_root: float = 0.0

    @property
    def steps(self) -> list[int]:
        """The recorded steps."""
        return list(range(0, self.total, self.every))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def blocks(self) -> list[slice]:
        """Blocks of rows: one row for each recorded step, and one for the end."""
        rows = len(self.steps) + 1
        return [slice(start, min(start + self.rows, rows)) for start in range(0, rows, self.rows)]

    def states(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Names, shapes and types of the arrays of states."""
        names = ["parameters"]
        names += ["second_moment"] if self.optimizer == "adamw" else []
        names += ["updated", "momentum"] if self.every > 1 else []
        return {name: ((len(self.steps) + 1, self.size), "float32") for name in names}

    def batches(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Names, shapes and types of the arrays of batches."""
        rows = len(self.steps) + 1
        return {"ids": ((rows, self.batch), "int32"), "weights": ((rows, self.batch), "float64"), "lr": ((rows,), "f8")}

    @property
    def nbytes(self) -> int:
        """Size on disk, batches counted as if they did not compress."""
        every = [*self.states().values(), *self.batches().values()]
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in every)

    def open(self, folder: Path) -> tuple[BlockStore, BlockStore]:
        """Open or create the stores of states and of batches in a trajectory's folder."""
        states = BlockStore(folder / "states", self.states(), self.blocks, compressed=False, rows=self.rows)
        return states, BlockStore(folder / "batches", self.batches(), self.blocks, rows=self.rows)

    def flat(self, named: Mapping[str, Tensor]) -> np.ndarray:
        """Tensors by name as one row [parameters] float32."""
        return np.concatenate([named[name].detach().cpu().numpy().reshape(-1) for name in self.shapes])

    def named(self, row: np.ndarray) -> dict[str, Tensor]:
        """One row as tensors by name."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        pieces = torch.from_numpy(np.array(row)).split(sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


class Trajectory:
    """A finished recording, opened for reading. Steps count from 0: update s takes θ_s to θ_{s+1}.

    Tensors are float32 on the CPU, by parameter name. A step that is missing or damaged is a `UserError`.
    """

    def __init__(self, folder: Path) -> None:
        """Open a trajectory; what it lacks as a whole is found here, a damaged block when it is read or `verify`d."""
        self.folder = folder
        note = folder / "note.json"
        try:
            self.settings = Layout(**seal.read_note(note))
        except FileNotFoundError as error:
            raise UserError(f"{folder}: there is no trajectory here; train with trainer.fit.record=1") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{note}: not readable ({error}); delete {folder} and {AGAIN}") from error
        for name in ("states", "batches"):
            if not (folder / name).is_dir():
                raise UserError(f"{folder}: '{name}' is missing; delete {folder} and {AGAIN}")
        self.steps = self.settings.steps
        self._states, self._batches = self.settings.open(folder)
        absent = np.flatnonzero((self._states.flags() == 0) | (self._batches.flags() == 0))
        if len(absent):
            raise UserError(
                f"{folder}: step {self._first_step(int(absent[0]))} of {self.settings.total} is missing, the training "
                f"was cut off or files were deleted; {AGAIN}, it goes on where it stopped"
            )
        self._read = functools.lru_cache(maxsize=2)(self._read_block)  # two blocks: θ_s and θ_{s+1} may lie in both

    def __len__(self) -> int:
        return len(self.steps)

    def parameters(self, step: int) -> dict[str, Tensor]:
        """θ of a recorded step before its update, or of the end (step = the training's number of steps)."""
        row = len(self.steps) if step == self.settings.total else self._row(step)
        return self._state("parameters", row)

    def updated(self, step: int) -> dict[str, Tensor]:
        """θ after the update of a recorded step."""
        name = "parameters" if self.settings.every == 1 else "updated"
        return self._state(name, self._row(step) + (self.settings.every == 1))

    def second_moment(self, step: int) -> dict[str, Tensor]:
        """AdamW's `exp_avg_sq` after the update of a step, not bias-corrected. SGD has none (UserError)."""
        if self.settings.optimizer != "adamw":
            raise UserError(f"{self.folder}: the optimiser {self.settings.optimizer} has no second moment")
        return self._state("second_moment", self._row(step))

    def momentum(self, step: int) -> dict[str, Tensor]:
        """AdamW's `exp_avg` or SGD's buffer before the update of a step; kept where not every step is recorded."""
        if self.settings.every == 1:
            raise UserError(f"{self.folder}: every step is recorded, so that the first moment is a sum over batches")
        return self._state("momentum", self._row(step))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices [B] int64 into the training set, and weights [B] float64 of their losses in the step's loss."""
        ids, weights = self._value("ids", self._row(step)), self._value("weights", self._row(step))
        return ids[ids >= 0].astype(np.int64), weights[ids >= 0]

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        return float(self._value("lr", self._row(step)))

    def weight_decay(self, step: int) -> dict[str, float]:
        """Weight decay at a step by parameter name; the recorded optimisers keep it constant."""
        self._row(step)
        return dict(self.settings.decay)

    def verify(self) -> None:
        """Read everything once; raises UserError for the first step that does not read as it was written."""
        for block in range(len(self.settings.blocks)):
            self._read_block(block)

    def _row(self, step: int) -> int:
        row, rest = divmod(step, self.settings.every)
        if rest or not 0 <= row < len(self.steps):
            near = min(self.steps, key=lambda known: abs(known - step), default=None)
            raise UserError(f"{self.folder}: step {step} was not recorded; the nearest that was is {near}")
        return row

    def _state(self, name: str, row: int) -> dict[str, Tensor]:
        return self.settings.named(self._value(name, row))

    def _value(self, name: str, row: int) -> np.ndarray:
        block, place = divmod(row, self.settings.rows)
        found: np.ndarray = self._read(block)[name][place]
        return found

    def _read_block(self, block: int) -> dict[str, np.ndarray]:
        found: dict[str, Any] = {}
        for store in (self._states, self._batches):
            part = store.read_block(block)
            if part is None:
                last = min(self.settings.blocks[block].stop * self.settings.every, self.settings.total)
                where = f"steps {self._first_step(block)} to {last}"
                raise UserError(f"{store.path}: {where} are damaged or truncated; delete {self.folder} and {AGAIN}")
            found |= part
        return found

    def _first_step(self, block: int) -> int:
        return int(self.settings.blocks[block].start * self.settings.every)
