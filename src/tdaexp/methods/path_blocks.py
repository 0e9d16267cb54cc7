"""Takes steps block by block, so that a killed run goes on where it stopped and ends with the same bits.

Beside the rows per step in a block store lies `sums.npz`: what is summed over steps so far, and under `state …` what
the recursions carry on. It is replaced as a whole after each block.
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

from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)
STEPS_PER_BLOCK = 32
STATE = "state "
Arrays = dict[str, np.ndarray]
OneStep = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
"""(step, sums so far, which it changes) -> the step's own row, empty for a step that does not count."""


def run_steps(
    store: Path, order: list[int], counted: list[int], shapes: dict[str, tuple[int, ...]], one: OneStep, title: str
) -> Arrays:
    """Take the steps in `order`; returns the rows of counted steps in the order of time, and the sums."""
    blocks = [slice(k, min(k + STEPS_PER_BLOCK, len(order))) for k in range(0, len(order), STEPS_PER_BLOCK)]
    rows = BlockStore(store / "rows", {n: ((len(order), *shape), "float64") for n, shape in shapes.items()}, blocks)
    with rows.pending() as missing:
        sums, done = _load(store / "sums.npz")
        if any(block < done for block in missing):
            log.warning("%s: damaged; the decomposition starts again", store)
            sums, done = {}, 0
        for number in track(range(done, len(blocks)), f"{title}, blocks of steps", len(blocks), done):
            found = [one(order[place], sums) for place in range(blocks[number].start, blocks[number].stop)]
            values = {
                name: np.stack([row[name].numpy() if row else np.full(shape, np.nan) for row in found])
                for name, shape in shapes.items()
            }
            rows.write(number, values)
            _save(store / "sums.npz", sums, number + 1)
        kept = np.argsort(order)[np.isin(np.sort(order), counted)]
        summed = {name: value.numpy() for name, value in sums.items() if not name.startswith(STATE)}
        return {name: value[kept] for name, value in rows.read().items()} | summed


def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to what is summed under a name."""
    sums[name] = sums[name] + value if name in sums else value


def put_state(sums: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Keep what a recursion carries on."""
    sums.update({STATE + name: value for name, value in state.items()})


def get_state(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `put_state` kept."""
    return {name.removeprefix(STATE): value for name, value in sums.items() if name.startswith(STATE)}


def _load(path: Path) -> tuple[dict[str, Tensor], int]:
    """The sums and how many blocks they cover; nothing where the file is damaged."""
    if not path.exists():
        return {}, 0
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files if name != "done"}, int(file["done"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        log.warning("%s: damaged (%s); the decomposition starts again", path, type(error).__name__)
        return {}, 0


def _save(path: Path, sums: dict[str, Tensor], done: int) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in sums.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, done=np.int64(done), **arrays)
