"""Sketches of every example's gradient, component by component, made inside the backward pass.

A sketch that works on factors (`project_factors`, `project_rows`) never sees a gradient; any other gets explicit
gradients (`project_gradient`) of a few examples of one component at a time, which are dropped at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.gradients.capture import Loss, capture, cross_entropy, frozen
from tdaexp.gradients.factors import EmbeddingFactors, Factors, LinearFactors, TiedFactors, accumulation_dtype
from tdaexp.gradients.finite import check_losses, require_finite
from tdaexp.gradients.sketch import Sketch
from tdaexp.gradients.sketch_factorised import FactorisedSketch
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.shrink import Shrinking, two

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_BYTES = 1 << 28
"""Memory for explicit gradients; a constant, because results may depend on it in the last bits."""
PIECE_BYTES = 1 << 25
"""Sketches that are read at a time."""
FILE_BYTES = 1 << 22
"""Of a file, or one example's sketches where these are more: candidates are read one by one."""


@dataclass(frozen=True, eq=False)
class Features:
    """Sketches of N examples on disk, in an order of their own: example i is row `place[i]`, N = `len(place)`.

    `columns` tells which entries of a row belong to a component.
    """

    store: BlockStore
    place: np.ndarray
    columns: dict[str, slice]

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return np.dtype(self.store.group["features"].dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one example's sketches."""
        return int(self.store.group["features"].shape[1]) * self.dtype.itemsize

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows [n, entries], a few at a time from the disk, with what lies between them where that is little."""
        wanted, array = np.asarray(numbers, dtype=np.int64), self.store.group["features"]
        found = np.empty((len(wanted), array.shape[1]), dtype=array.dtype)
        order = np.argsort(wanted, kind="stable")
        ranked, start = wanted[order], 0
        while start < len(order):
            first = int(ranked[start])
            stop = int(np.searchsorted(ranked, first + max(1, FILE_BYTES // self.row_bytes)))
            found[order[start:stop]] = array[first : int(ranked[stop - 1]) + 1][ranked[start:stop] - first]
            start = stop
        return found

    def pieces(self, most: float = PIECE_BYTES) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All sketches in pieces of at most so many bytes: numbers of examples [n], and their rows [n, entries]."""
        order, step = np.argsort(self.place), max(1, int(min(most, PIECE_BYTES) // self.row_bytes))
        for start in range(0, len(order), step):
            stop = min(start + step, len(order))
            yield order[start:stop], self.rows(np.arange(start, stop))


def project(factors: Factors, sketch: Sketch) -> Tensor:
    """Sketch the gradients of a batch's component: [B, sketch.dim], float32 or float64."""
    if isinstance(sketch, FactorisedSketch):
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
    model: PreTrainedModel,
    components: ComponentMap,
    examples: Examples,
    sketches: Mapping[str, Sketch],
    *,
    store: Path,
    loss: Loss = cross_entropy,
    reduction: str = "mean",
    tokens_per_batch: int = 4096,
    pad_id: int = 0,
) -> Features:
    """Sketched loss gradients of N examples, by component: [N, sketches[name].dim] each.

    Build each sketch for the component's `matrix` shape. Runs on the model's device and in its dtype; features are
    float32, or float64 for a float64 model. `store` is a folder named after all that the result depends on; batches it
    already holds are not run again, and a run that was killed goes on with the same bits.

    Errors (UserError): an example without loss, NaN or Inf in a gradient.
    """
    check_losses(examples, "gradient")
    order = np.argsort(examples.lengths, kind="stable").tolist()
    batches = token_budget_batches(examples.lengths, order, tokens_per_batch)
    ends = np.cumsum([len(batch) for batch in batches])
    slices = [slice(int(end) - len(batch), int(end)) for batch, end in zip(batches, ends, strict=True)]
    dims = [sketches[name].dim for name in components.names]
    kind = "float64" if accumulation_dtype(model.dtype) == torch.float64 else "float32"
    width = sum(dims) * np.dtype(kind).itemsize
    smallest = min(map(len, batches), default=1)
    rows = max(1, min(smallest, FILE_BYTES // width))
    arrays: dict[str, tuple[tuple[int, ...], str]] = {"features": ((len(examples), sum(dims)), kind)}
    blocks = BlockStore(store, arrays, slices, compressed=False, rows=rows)  # 7 % smaller would cost more than it saves

    def sketched(members: list[int]) -> np.ndarray:
        chosen = Examples([examples[index] for index in members])
        return _sketch_batch(model, components, chosen, sketches, loss, reduction, pad_id)

    compute = Shrinking(sketched, two, np.concatenate)
    with frozen(model), blocks.pending() as missing:
        for block in blocks.each(missing, "gradient sketches"):
            blocks.write(block, {"features": compute(batches[block])})
    stops = np.cumsum(dims).tolist()
    columns = {name: slice(stop - dim, stop) for name, dim, stop in zip(components.names, dims, stops, strict=True)}
    return Features(blocks, np.argsort(order), columns)


def _sketch_batch(
    model: PreTrainedModel,
    components: ComponentMap,
    examples: Examples,
    sketches: Mapping[str, Sketch],
    loss: Loss,
    reduction: str,
    pad_id: int,
) -> np.ndarray:
    """Sketches [B, sum of dims] of one batch, components side by side in order."""
    found: dict[str, Tensor] = {}

    def consume(arrived: list[Component], factors: list[Factors]) -> None:
        for component, one in zip(arrived, factors, strict=True):
            found[component.name] = project(one, sketches[component.name])

    losses = capture(model, components, collate(examples, pad_id), consume, loss=loss, reduction=reduction)
    ordered = [found[name] for name in components.names]
    norms = torch.stack([one.abs().amax(1) for one in ordered], dim=1)
    require_finite(norms.cpu().numpy(), examples.ids, components.names, losses.cpu().numpy())
    return torch.cat(ordered, dim=1).cpu().numpy()
