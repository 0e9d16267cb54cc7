"""Takes steps block by block, so that a killed run goes on where it stopped and ends with the same bits.

Where blocks do not depend on each other, processes share them out (`run_blocks`). Where each step needs what the one
before it left, one process goes on alone (`run_steps`): beside the rows per step in a block store lies `sums.npz`, what
is summed over steps so far, and under `state …` what the recursion carries on. It is replaced as a whole after each
block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime import ranks
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)
STEPS_PER_BLOCK = 32
STATE = "state "
CPU = torch.device("cpu")
Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
OneStep = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
"""(step, sums so far, which it changes) -> the step's own row."""
Begin = Callable[[int], None]
"""Called with the first step of a block: nothing that an earlier step left may play a part from here on."""


def run_blocks(
    store: Path, counted: list[int], rows: Shapes, sums: Shapes, begin: Begin, one: OneStep, title: str
) -> Arrays:
    """Take the steps in `counted`, in blocks that are functions of the recorded steps alone.

    Returns rows [S, ...] in the order of time, and sums over steps; `rows` and `sums` are the shapes of one step's.
    """
    height = min(STEPS_PER_BLOCK, len(counted))
    blocks = [counted[k : k + height] for k in range(0, len(counted), height)]
    arrays = {name: ((len(blocks), height, *shape), "float64") for name, shape in rows.items()}
    arrays |= {f"sum.{name}": ((len(blocks), *shape), "float64") for name, shape in sums.items()}
    kept = BlockStore(store, arrays, [slice(k, k + 1) for k in range(len(blocks))])
    with kept.pending() as missing:
        for number in kept.each(missing, f"{title}, blocks of steps"):
            total: dict[str, Tensor] = {}
            begin(blocks[number][0])
            found = [one(step, total) for step in blocks[number]]
            values = {name: _stacked(found, name, (height, *shape))[None] for name, shape in rows.items()}
            kept.write(number, values | {f"sum.{name}": value.cpu().numpy()[None] for name, value in total.items()})
    done = kept.read()
    result = {name: done[name].reshape(-1, *shape)[: len(counted)] for name, shape in rows.items()}
    return result | {name: done[f"sum.{name}"].sum(0) for name in sums}


def _stacked(found: list[dict[str, Tensor]], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of one array, NaN behind the last one."""
    values = np.full(shape, np.nan)
    for place, row in enumerate(found):
        values[place] = row[name].cpu().numpy()
    return values


def run_steps(
    store: Path, order: list[int], shapes: Shapes, one: OneStep, title: str, device: torch.device = CPU
) -> Arrays:
    """Take the steps in `order`, each on what those before it left; returns the rows in that order, and the sums.

    The sums are on `device`; they come to main memory once a block.
    """
    blocks = [slice(k, min(k + STEPS_PER_BLOCK, len(order))) for k in range(0, len(order), STEPS_PER_BLOCK)]
    rows = BlockStore(store / "rows", {n: ((len(order), *shape), "float64") for n, shape in shapes.items()}, blocks)
    with ranks.first_alone(), rows.pending() as missing:
        sums, done = _load(store / "sums.npz", device)
        if any(block < done for block in missing):
            log.warning("%s: damaged; the decomposition starts again", store)
            sums, done = {}, 0
        left = range(done, len(blocks))
        for number in track(left, f"{title}, blocks of steps", len(blocks), done, stoppable=True):
            found = [one(order[place], sums) for place in range(blocks[number].start, blocks[number].stop)]
            rows.write(number, {name: _stacked(found, name, (len(found), *shape)) for name, shape in shapes.items()})
            _save(store / "sums.npz", sums, number + 1)
        totals = {name: value for name, value in sums.items() if not name.startswith(STATE)}
        return rows.read() | {name: value.cpu().numpy() for name, value in totals.items()}


def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to what is summed under a name."""
    sums[name] = sums[name] + value if name in sums else value


def put_state(sums: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Keep what a recursion carries on."""
    sums.update({STATE + name: value for name, value in state.items()})


def get_state(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `put_state` kept."""
    return {name.removeprefix(STATE): value for name, value in sums.items() if name.startswith(STATE)}


def _load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], int]:
    """The sums and how many blocks they cover; nothing where the file is damaged."""
    if not path.exists():
        return {}, 0
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            kept = {name: torch.from_numpy(file[name]).to(device) for name in file.files if name != "done"}
            return kept, int(file["done"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        log.warning("%s: damaged (%s); the decomposition starts again", path, type(error).__name__)
        return {}, 0


def _save(path: Path, sums: dict[str, Tensor], done: int) -> None:
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in sums.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, done=np.int64(done), **arrays)
