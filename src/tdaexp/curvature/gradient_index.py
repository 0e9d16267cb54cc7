"""Training gradients kept in 8 bits, so that another query set needs no pass over the training data.

Each row of an example's gradient matrix G [O, I] is stored as whole numbers from -127 to 127 and one scale: a byte per
parameter. Rounding errors are independent of the query, so they average out in the dot product: relative to |P||G| the
error is about 0.01/√(O I). What is kept depends on the model, the training set and its loss, but not on factors,
damping or queries. Cost of another query set: its own passes, and one read of the store.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.contraction import HeldLayer, Workspace
from tdaexp.curvature.layers import Layer, Layers
from tdaexp.curvature.score import Held, LayerPairs, Scoring, run_layers
from tdaexp.gradients.factors import LinearFactors
from tdaexp.gradients.pair_driver import WritePairs, meet_pairs
from tdaexp.gradients.pairs import Pairs
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.schedule import Block
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred, fetch, send
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import Shrinking, joined, two
from tdaexp.runtime.rows import Rows

LEVELS = 127
CACHED_ENTRIES = 1 << 19
"""Gradient entries that are unpacked at a time; a constant, because results may depend on it in the last bits."""


def index_bytes(layers: Layers, examples: int) -> int:
    """Size of the index of all training gradients: a byte per weight, four per bias and per row's scale."""
    each = [layer.outputs * (layer.inputs - layer.bias + 4 * (1 + layer.bias)) for layer in layers.layers]
    return sum(each) * examples


def quantise(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., I] as int8 [..., I] and scales [...]: gradient ≈ numbers × scale. Overwrites `gradient`."""
    scale = torch.maximum(gradient.amax(-1), -gradient.amin(-1)) / LEVELS
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return gradient.mul_(inverse[..., None]).round_().to(torch.int8), scale


class GradientIndex:
    """All training gradients of one side in a block store; rows are ordered by length."""

    def __init__(self, train: Gradients, layers: Layers, store: Path, keep_gb: float, tokens_per_batch: int) -> None:
        """Plan the store. Errors (UserError): it would be larger than `keep_gb` (10^9 bytes)."""
        train.check(range(len(train)), "training")
        needed = index_bytes(layers, len(train))
        if needed > keep_gb * 1e9:
            raise UserError(
                f"keeping the gradients of {len(train):,} training examples takes {needed / 1e9:.3g} GB; set "
                f"method.keep_gb={np.ceil(needed / 1e7) / 100:g}, choose fewer components, or keep none "
                "(method.keep_gb=0)"
            )
        self.train, self.layers = train, layers
        self.space = Workspace(torch.float32, train.device)
        order = np.argsort(train.lengths, kind="stable").tolist()
        # Batches of one size, so that each is one file per array.
        size = max(1, tokens_per_batch // int(train.lengths.max()))
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]
        self.block_of = np.empty(len(order), dtype=np.int64)  # which batch holds each example
        for number, batch in enumerate(self.batches):
            self.block_of[batch] = number
        ends = np.cumsum([len(batch) for batch in self.batches])
        slices = [slice(int(end) - len(batch), int(end)) for batch, end in zip(self.batches, ends, strict=True)]
        count = len(train)
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for layer in layers.layers:
            arrays[f"G.{layer.name}"] = ((count, layer.outputs, layer.inputs - layer.bias), "int8")
            arrays[f"s.{layer.name}"] = ((count, layer.outputs, 1 + layer.bias), "float32")
        self.blocks = BlockStore(store, arrays, slices, compressed=False, rows=min(size, count))

    def fill(self) -> None:
        """Run the training examples that are not kept yet. Errors (UserError): a gradient that is not finite."""
        compute = Shrinking(self._batch, two, joined)
        with self.train.ready(), self.blocks.pending(beside=True) as missing:
            for block in self.blocks.each(missing, "training gradients"):
                self.blocks.write(block, compute(self.batches[block]))

    def _batch(self, members: list[int]) -> dict[str, np.ndarray]:
        """What is kept of some examples."""
        values: dict[str, Tensor] = {}
        later = Deferred()

        def take(layer: Layer, factors: LinearFactors, check: Tensor) -> None:
            numbers, rows, largest = self._compressed(layer, factors)
            check[:] = largest
            values[f"G.{layer.name}"], values[f"s.{layer.name}"] = fetch(numbers), fetch(rows)

        run_layers(self.train, self.layers, members, take, later)
        later.flush()
        return {name: value.numpy() for name, value in values.items()}

    def _compressed(self, layer: Layer, factors: LinearFactors) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers [B, O, I] int8, scales and biases [B, O, 1 or 2], and the largest entries [B], finite if all are."""
        inputs, deltas = (
            one.float() if one.dtype == torch.float64 else one for one in (factors.inputs, factors.deltas)
        )
        step = self.space.examples(layer)
        parts = [
            quantise(self.space.form(inputs[start : start + step], deltas[start : start + step]))
            for start in range(0, len(deltas), step)
        ]
        numbers, scale = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        rows = [scale, deltas.float().sum(1)] if layer.bias else [scale]
        return numbers, torch.stack(rows, dim=2), scale.sum(1)

    def scores(self, block: int, held: Held) -> Tensor:
        """Scores [Q, n, K] of held queries with the examples of a block, float32."""
        rows = self.blocks.blocks[block]
        columns: dict[int, Tensor] = {}
        for layer in self.layers.layers:
            stored = (self.blocks.group[f"{key}.{layer.name}"][rows] for key in "Gs")
            numbers, scale = (torch.from_numpy(one).to(self.space.device) for one in stored)
            found = product_with_kept(layer, held[layer.name], numbers, scale)
            columns |= dict(zip(self.layers.columns(layer), found.unbind(2), strict=True))
        return torch.stack([columns[k] for k in range(len(columns))], dim=2)


def product_with_kept(layer: Layer, held: HeldLayer, numbers: Tensor, rows: Tensor) -> Tensor:
    """Scores [Q, n, members] of held queries with n kept gradients.

    `numbers` [n, O, I] int8; `rows` [n, O, 1 or 2] has each row's scale, and its bias where there is one. Goes through
    a few output rows at a time, so that what is unpacked stays in the processor's cache.
    """
    width = numbers.shape[2]
    step = max(1, CACHED_ENTRIES // (len(numbers) * width))
    columns = []
    for _, member in layer.members:
        total: Tensor | float = 0.0
        for start in range(member.start, member.stop, step):
            part = slice(start, min(start + step, member.stop))
            gradient = numbers[:, part].to(torch.float32).mul_(rows[:, part, :1])
            if held.explicit is not None:
                total = total + held.explicit[:, part].flatten(1).to(torch.float32) @ gradient.flatten(1).T
                if held.bias is not None:
                    total = total + held.bias[:, part].to(torch.float32) @ rows[:, part, 1].T
            else:
                biases = rows[:, part, 1:] if layer.bias else None
                total = total + _low_rank_product(held, part, gradient, biases)
        columns.append(torch.as_tensor(total))
    return torch.stack(columns, dim=2)


def _low_rank_product(held: HeldLayer, part: slice, gradient: Tensor, biases: Tensor | None) -> Tensor:
    """Scores [Q, n] of queries of low rank with some rows of n gradients [n, o, I], biases [n, o, 1]."""
    if held.left is None or held.right is None:
        raise ValueError("queries are held neither explicitly nor with low rank")
    left, right = held.left.to(torch.float32), held.right.to(torch.float32)
    whole = gradient if biases is None else torch.cat([gradient, biases], dim=2)
    through = whole @ right.flatten(0, 1).T  # [n, o, Q r]
    both = torch.einsum("noc,co->cn", through, left.flatten(0, 1)[:, part])
    return both.view(len(left), -1, both.shape[1]).sum(1)


class IndexedScoring(Scoring):
    """Queries are held as for exact scores; the training examples' gradients are read from an index."""

    def __init__(self, sides: LayerPairs, index: GradientIndex, tokens_per_batch: int) -> None:
        super().__init__(sides.train, sides.queries, tokens_per_batch, sides)
        self.index, self.kind = index, "float32"

    def plan(self, pairs: np.ndarray, memory: float) -> list[Block]:
        """Candidates come in the index's batches."""
        found = []
        for block in super().plan(pairs, memory):
            needed = np.unique(pairs[block.members])
            needed = needed[needed >= 0]
            of = self.index.block_of[needed]
            found.append(Block(block.queries, [needed[of == number].tolist() for number in np.unique(of)]))
        return found

    def meet(self, batch: list[int], held: Held, pairs: Pairs, write: WritePairs, later: Deferred) -> None:
        """Read a batch of the index."""
        number = int(self.index.block_of[batch[0]])
        place = {example: row for row, example in enumerate(self.index.batches[number])}
        there = np.array([place[example] for example in batch])[pairs.right.numpy()]
        later.flush()  # the checks of what is held
        values = self.index.scores(number, held)
        left = pairs.on(values.device)[0]
        later.add(partial(write, "scores"), values[left, send(there, values.device)])


def indexed_scores(
    sides: LayerPairs,
    pairs: np.ndarray,
    *,
    index: Path,
    store: Path,
    keep_gb: float,
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
) -> Rows:
    """As `score.pair_scores`, from gradients that are kept for other query sets. Returns [Q, C, K] float32.

    `index` is a folder named after the model, the training set and its loss alone, `store` one named after all that the
    result depends on. Errors (UserError): as there, and an index larger than `keep_gb`.
    """
    kept = GradientIndex(sides.train, sides.layers, index, keep_gb, tokens_per_batch)
    kept.fill()
    work = IndexedScoring(sides, kept, tokens_per_batch)
    return meet_pairs(work, pairs, store=store, cache_gb=cache_gb)["scores"]
