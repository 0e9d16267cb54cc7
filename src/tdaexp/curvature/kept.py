"""Training gradients kept in 8 bits, so that another query set needs no pass over the training data.

Each row of an example's gradient matrix G [O, I] is stored as whole numbers from -127 to 127 and one scale: a byte per
parameter. Rounding errors are independent of the query, so they average out in the dot product: relative to |P||G| the
error is about 0.01/√(O I). What is kept depends on the model, the training set and its loss, but not on factors, damping
or queries. Cost of another query set: its own passes, and one read of the store.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.layers import Layer
from tdaexp.curvature.score import HeldLayer, Precondition, Scoring, Side, check_sides, explicit, run_layers
from tdaexp.data.examples import token_budget_batches
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.factors import LinearFactors
from tdaexp.gradients.finite import check_losses
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)
LEVELS = 127


def kept_bytes(train: Side) -> int:
    """Size of the store of all training gradients: one byte per entry, four per row."""
    rows = sum(layer.size + 4 * layer.outputs for layer in train.layers.layers)
    return rows * len(train.examples)


def quantise(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., I] as int8 [..., I] and scales [...] float32: gradient ≈ numbers × scale."""
    scale = gradient.abs().amax(-1) / LEVELS
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    numbers = gradient.mul(inverse[..., None]).round_().to(torch.int8)
    return numbers, scale.to(torch.float32)


class KeptGradients:
    """All training gradients of one side in a block store; rows are ordered by length."""

    def __init__(self, train: Side, store: Path, keep_gb: float, tokens_per_batch: int, pad_id: int = 0) -> None:
        """Plan the store. Errors (UserError): it would be larger than `keep_gb` (10^9 bytes)."""
        check_losses(train.examples, "training")
        needed = kept_bytes(train)
        if needed > keep_gb * 1e9:
            raise UserError(
                f"keeping the gradients of {len(train.examples):,} training examples takes {needed / 1e9:.3g} GB; set "
                f"method.keep_gb={np.ceil(needed / 1e7) / 100:g}, choose fewer components, or keep none with method.keep_gb=0"
            )
        self.train, self.pad_id = train, pad_id
        lengths = train.examples.lengths
        order = np.argsort(lengths, kind="stable").tolist()
        self.batches = token_budget_batches(lengths, order, tokens_per_batch)
        self.place = np.argsort(order)  # where each example's row is
        ends = np.cumsum([len(batch) for batch in self.batches])
        slices = [slice(int(end) - len(batch), int(end)) for batch, end in zip(self.batches, ends, strict=True)]
        count = len(train.examples)
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for layer in train.layers.layers:
            arrays[f"G.{layer.name}"] = ((count, layer.outputs, layer.inputs), "int8")
            arrays[f"s.{layer.name}"] = ((count, layer.outputs), "float32")
        self.blocks = BlockStore(store, arrays, slices, compressed=False)

    def fill(self) -> None:
        """Run the training examples that are not kept yet. Errors (UserError): a gradient that is not finite."""
        count = len(self.batches)
        with frozen(self.train.model), self.blocks.pending() as missing:
            for block in track(missing, "training gradients", count, count - len(missing)):
                values: dict[str, np.ndarray] = {}

                def take(layer: Layer, factors: LinearFactors, check: Tensor, values=values) -> None:
                    gradient = explicit(factors, torch.float32)
                    check[:] = gradient.flatten(1).sum(1)
                    numbers, scale = quantise(gradient)
                    values[f"G.{layer.name}"], values[f"s.{layer.name}"] = numbers.cpu().numpy(), scale.cpu().numpy()

                run_layers(self.train, self.batches[block], self.pad_id, take)
                self.blocks.write(block, values)

    def scores(self, held: dict[str, HeldLayer], queries: int) -> np.ndarray:
        """Scores [queries, N, K] of held queries against all training examples, float32."""
        layers = self.train.layers
        values = np.empty((queries, len(self.train.examples), len(layers.components)), dtype=np.float32)
        device = next(self.train.model.parameters()).device
        for block in range(len(self.batches)):
            rows = self.blocks.blocks[block]
            for layer in layers.layers:
                numbers = torch.from_numpy(self.blocks.group[f"G.{layer.name}"][rows]).to(device)
                scale = torch.from_numpy(self.blocks.group[f"s.{layer.name}"][rows]).to(device)
                found = product_with_kept(layer, held[layer.name], numbers, scale)
                values[:, rows, layers.columns(layer)] = found.cpu().numpy()
        return values[:, self.place]


def product_with_kept(layer: Layer, held: HeldLayer, numbers: Tensor, scale: Tensor) -> Tensor:
    """Scores [Q, n, members] of held queries with n kept gradients [n, O, I] and their scales [n, O]."""
    columns = []
    gradient = numbers.to(torch.float32).mul_(scale[..., None])
    flat = gradient.flatten(1)
    for _, rows in layer.members:
        if held.explicit is not None:
            entries = slice(rows.start * layer.inputs, rows.stop * layer.inputs)
            columns.append(held.explicit.flatten(1)[:, entries].to(torch.float32) @ flat[:, entries].T)
        else:
            assert held.left is not None and held.right is not None
            left, right = held.left.to(torch.float32), held.right.to(torch.float32)
            through = gradient[:, rows] @ right.flatten(0, 1).T  # [n, o, Q r]
            both = torch.einsum("noc,co->cn", through, left.flatten(0, 1)[:, rows])
            columns.append(both.view(len(left), -1, both.shape[1]).sum(1))
    return torch.stack(columns, dim=2)


def kept_scores(
    train: Side,
    queries: Side,
    pairs: np.ndarray,
    precondition: Precondition,
    *,
    store: Path,
    keep_gb: float,
    query_rank: int | None = None,
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    pad_id: int = 0,
) -> np.ndarray:
    """As `score.pair_scores`, from gradients that `store` keeps for other query sets. Returns [Q, C, K] float32.

    `store` is a folder named after the model, the training set and its loss alone. Errors (UserError): as there, and a
    store larger than `keep_gb`.
    """
    pairs = np.asarray(pairs, dtype=np.int64)
    check_sides(train, queries, pairs)
    kept = KeptGradients(train, store, keep_gb, tokens_per_batch, pad_id)
    kept.fill()
    work = Scoring(train, queries, pairs, precondition, query_rank, pad_id)
    at_once = max(1, int(cache_gb * 1e9 // work.held_bytes()))
    values = np.full((*pairs.shape, len(train.layers.components)), np.nan, dtype=np.float32)
    lengths = queries.examples.lengths
    order = np.argsort(lengths, kind="stable")
    starts = range(0, len(order), at_once)
    with frozen(queries.model):
        for start in track(starts, "influence", len(starts)):
            members = order[start : start + at_once]
            held = work.hold(token_budget_batches(lengths, members.tolist(), tokens_per_batch))
            table = kept.scores(held, len(members))
            for row, query in enumerate(members):
                real = pairs[query] >= 0
                values[query, real] = table[row, pairs[query, real]]
    return values
