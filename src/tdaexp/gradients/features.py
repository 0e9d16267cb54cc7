"""Sketches of every example's gradient, component by component, made inside the backward pass.

A sketch that works on factors (`project_factors`, `project_rows`) never sees a gradient; any other gets explicit
gradients (`project_gradient`) of a few examples of one component at a time, which are dropped at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.factors import EmbeddingFactors, Factors, LinearFactors, TiedFactors
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.sketch import Sketch
from tdaexp.gradients.sketch_factorised import TwoSidedSketch
from tdaexp.models.components import Component
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.fake_device import blank
from tdaexp.runtime.oom_split import Shrinking, two
from tdaexp.runtime.rehearsal import current, padded

CHUNK_BYTES = 1 << 28
"""Memory for explicit gradients; a constant, because results may depend on it in the last bits."""
PIECE_BYTES = 1 << 25
"""Sketches that are read at a time."""
FILE_BYTES = 1 << 22
"""Of a file, or one example's sketches where these are more: candidates are read one by one."""


class Sketches(Protocol):
    """Sketches of N examples that lie somewhere: example i is row `place[i]`, and `columns` are its components'."""

    @property
    def place(self) -> np.ndarray:
        """Rows [N]."""

    @property
    def columns(self) -> dict[str, slice]:
        """Which entries of a row belong to a component."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the entries, as they are read."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one example's sketches, as they are read."""

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows [n, entries]."""


@dataclass(frozen=True, eq=False)
class Features:
    """Sketches of N examples on disk, in an order of their own: example i is row `place[i]`, N = `len(place)`.

    `columns` tells which entries of a row belong to a component.
    """

    store: BlockStore
    place: np.ndarray
    columns: dict[str, slice]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the entries."""
        return np.dtype(str(self.store.group["features"].dtype))

    @property
    def row_bytes(self) -> int:
        """Bytes of one example's sketches."""
        return int(self.store.group["features"].shape[1]) * self.dtype.itemsize

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows [n, entries], a few at a time from the disk, with what lies between them where that is little."""
        wanted, array = np.asarray(numbers, dtype=np.int64), self.store.group["features"]
        if current() is not None:
            return blank((len(wanted), array.shape[1]), array.dtype)
        found = np.empty((len(wanted), array.shape[1]), dtype=array.dtype)
        order = np.argsort(wanted, kind="stable")
        ranked, start = wanted[order], 0
        while start < len(order):
            first = int(ranked[start])
            stop = int(np.searchsorted(ranked, first + max(1, FILE_BYTES // self.row_bytes)))
            found[order[start:stop]] = array[first : int(ranked[stop - 1]) + 1][ranked[start:stop] - first]
            start = stop
        return found


@dataclass(frozen=True, eq=False)
class Changed:
    """Sketches whose rows [n, entries] are read through `change`, which keeps their shape and type."""

    sketches: Sketches
    change: Callable[[np.ndarray], np.ndarray]

    @property
    def place(self) -> np.ndarray:
        """Rows [N]."""
        return self.sketches.place

    @property
    def columns(self) -> dict[str, slice]:
        """Which entries of a row belong to a component."""
        return self.sketches.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the entries."""
        return self.sketches.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one example's sketches."""
        return self.sketches.row_bytes

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows as they are after the change."""
        return self.change(self.sketches.rows(numbers))


def pieces(sketches: Sketches, most: float = PIECE_BYTES) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All sketches in pieces of at most so many bytes: numbers of examples [n], and their rows [n, entries]."""
    order, step = np.argsort(sketches.place), max(1, int(min(most, PIECE_BYTES) // sketches.row_bytes))
    for start in range(0, len(order), step):
        stop = min(start + step, len(order))
        yield order[start:stop], sketches.rows(np.arange(start, stop))


def project(factors: Factors, sketch: Sketch) -> Tensor:
    """Sketch the gradients of a batch's component: [B, sketch.dim], float32 or float64."""
    if isinstance(sketch, TwoSidedSketch):
        if isinstance(factors, LinearFactors):
            return sketch.project_factors(factors.extended_inputs(), factors.deltas)
        if isinstance(factors, EmbeddingFactors):
            return sketch.project_rows(factors.ids, factors.deltas)
        if isinstance(factors, TiedFactors):  # a sketch is linear
            return project(factors.embedding, sketch) + project(factors.head, sketch)
    step = max(1, CHUNK_BYTES // (8 * factors.size))
    parts = [slice(start, start + step) for start in range(0, factors.examples, step)]
    return torch.cat([sketch.project_gradient(factors.materialise(part)) for part in parts])


def component_features(
    gradients: Gradients, sketches: Mapping[str, Sketch], *, store: Path, tokens_per_batch: int = 4096
) -> Features:
    """Sketched gradients of N examples, by component: [N, sketches[name].dim] each.

    Build each sketch for the component's `matrix` shape. Features are float32, or float64 for a float64 model. `store`
    is a folder named after all that the result depends on; batches it already holds are not run again, and a run that
    was killed goes on with the same bits.

    Errors (UserError): an example without loss, NaN or Inf in a gradient.
    """
    gradients.check(range(len(gradients)), "gradient")
    names, batches = gradients.components.names, gradients.batches(tokens_per_batch)
    order = [index for batch in batches for index in batch]
    ends = np.cumsum([len(batch) for batch in batches])
    slices = [slice(int(end) - len(batch), int(end)) for batch, end in zip(batches, ends, strict=True)]
    dims = [sketches[name].dim for name in names]
    width = sum(dims) * np.dtype(gradients.kind).itemsize
    smallest = min(map(len, batches), default=1)
    rows = max(1, min(smallest, FILE_BYTES // width))
    arrays: dict[str, tuple[tuple[int, ...], str]] = {"features": ((len(gradients), sum(dims)), gradients.kind)}
    blocks = BlockStore(store, arrays, slices, compressed=False, rows=rows)  # 7 % smaller would cost more than it saves
    compute = Shrinking(partial(_sketch_batch, gradients, sketches), two, np.concatenate)
    size = padded(gradients.lengths)
    with gradients.ready(), blocks.pending() as missing:
        for block in blocks.each(missing, "gradient sketches", lambda n: size(batches[n]), lambda n: len(batches[n])):
            blocks.write(block, {"features": compute(batches[block])})
    stops = np.cumsum(dims).tolist()
    columns = {name: slice(stop - dim, stop) for name, dim, stop in zip(names, dims, stops, strict=True)}
    return Features(blocks, np.argsort(order), columns)


def _sketch_batch(gradients: Gradients, sketches: Mapping[str, Sketch], members: list[int]) -> np.ndarray:
    """Sketches [B, sum of dims] of one batch, components side by side in order."""
    found: dict[str, Tensor] = {}

    def consume(arrived: list[Component], factors: list[Factors]) -> None:
        for component, one in zip(arrived, factors, strict=True):
            found[component.name] = project(one, sketches[component.name])

    losses = gradients.capture(members, consume)
    names = gradients.components.names
    ordered = [found[name] for name in names]
    norms = torch.stack([one.abs().amax(1) for one in ordered], dim=1)
    ids = [gradients.ids[index] for index in members]
    require_finite(norms.cpu().numpy(), ids, names, losses.cpu().numpy())
    return torch.cat(ordered, dim=1).cpu().numpy()
