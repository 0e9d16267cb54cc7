"""Per-component dot products and squared norms of a classifier's per-example gradients, for the pairs of a list.

For any network of torch: gradients are formed whole, one per example, by `torch.func.vmap` of `torch.func.grad`. That
is a forward and a backward pass per example, and a product of P numbers per pair of examples with P parameters. As in
`products`, a killed run goes on at the block of queries where it stopped.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.factors import accumulation_dtype
from tdaexp.gradients.finite import require_finite
from tdaexp.gradients.schedule import Block, halves, kept_plan, listed, plan_blocks, rows_of
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred, send
from tdaexp.runtime.shrink import Shrinking, joined

Gradients = dict[str, Tensor]  # component to [B, size]


def module_products(
    module: nn.Module,
    components: dict[str, list[str]],
    train: TensorExamples,
    queries: TensorExamples,
    pairs: np.ndarray,
    *,
    store: Path,
    positions: int = 1,
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
) -> dict[str, np.ndarray]:
    """Dot products of per-example cross-entropy gradients, by component, for Q queries and their C candidates each.

    `components`: name to parameter names; `pairs` [Q, C] int indexes `train`, -1 for none. Returns `dot` [Q, C, K],
    `query_sq` [Q, K] and `train_sq` [Q, C, K], NaN where there is no candidate. `positions` of an example bound a batch
    by `tokens_per_batch`, `cache_gb` (10^9 bytes) the queries' gradients that are held at a time. `store` is a folder
    named after all that the result depends on. Errors (UserError): NaN or Inf in a gradient.
    """
    work = _Work(module, components, train, queries, np.asarray(pairs, dtype=np.int64))
    lengths = np.full(len(queries), positions), np.full(len(train), positions)
    sizes = np.full(len(queries), work.bytes_per_example, dtype=float)
    wanted = plan_blocks(work.pairs, *lengths, sizes, tokens_per_batch, cache_gb * 1e9)
    plan = kept_plan(store.with_name(store.name + ".plan.json"), wanted)
    order = listed(plan)
    slices = rows_of(plan)
    kind, shape = str(work.dtype).removeprefix("torch."), (*work.pairs.shape, len(components))
    arrays = {"dot": (shape, kind), "train_sq": (shape, kind), "query_sq": ((len(queries), len(components)), kind)}
    blocks = BlockStore(store, arrays, slices)
    compute = Shrinking(work.block, lambda block: halves(block, work.pairs), joined)
    with frozen(module), blocks.pending() as missing:
        for number in blocks.each(missing, "gradient products"):
            blocks.write(number, compute(plan[number]))
    back = np.argsort(order)
    return {name: values[back] for name, values in blocks.read().items()}


class _Work:
    """Computes blocks."""

    def __init__(
        self,
        module: nn.Module,
        components: dict[str, list[str]],
        train: TensorExamples,
        queries: TensorExamples,
        pairs: np.ndarray,
    ) -> None:
        self.module, self.components, self.pairs = module, components, pairs
        self.train, self.queries = train, queries
        self.parameters = {name: value.detach() for name, value in module.named_parameters()}
        first = next(iter(self.parameters.values()))
        self.dtype, self.device = accumulation_dtype(first.dtype), first.device
        sizes = [self.parameters[name].numel() for members in components.values() for name in members]
        self.bytes_per_example = sum(sizes) * self.dtype.itemsize
        self._each = vmap(grad_and_value(self._loss), in_dims=(None, 0, 0))

    def block(self, block: Block) -> dict[str, np.ndarray]:
        """Arrays of a block's queries, in the order in which the block lists them."""
        members = block.members
        later = Deferred()
        held: Gradients = {}
        start = 0
        for batch in block.queries:  # each written to its place, so that nothing is held twice
            for name, gradient in self._gradients(self.queries, batch, later)[0].items():
                room = held.setdefault(name, gradient.new_empty(len(members), gradient.shape[1]))
                room[start : start + len(batch)] = gradient
            start += len(batch)
        candidates, count = self.pairs[members], len(self.components)
        dot = np.full((*candidates.shape, count), np.nan)
        train_sq = np.full_like(dot, np.nan)

        def write(places: tuple[np.ndarray, ...], there: np.ndarray, dots: np.ndarray, squares: np.ndarray) -> None:
            dot[places], train_sq[places] = dots, squares[there]

        for batch in block.train:
            row = np.full(len(self.train), -1)
            row[batch] = np.arange(len(batch))
            places = np.nonzero(np.where(candidates >= 0, row[candidates], -1) >= 0)
            there = row[candidates[places]]
            rows, columns = send(places[0], self.device), send(there, self.device)

            gradients, squares = self._gradients(self.train, batch, later)
            tables = [(held[name] @ gradient.T)[rows, columns] for name, gradient in gradients.items()]
            later.add(partial(write, places, there), torch.stack(tables, dim=1), squares)
        query_sq = torch.stack([held[name].square().sum(1) for name in self.components], dim=1)
        later.flush()
        return {"dot": dot, "train_sq": train_sq, "query_sq": query_sq.cpu().numpy()}

    def _gradients(self, examples: TensorExamples, members: list[int], later: Deferred) -> tuple[Gradients, Tensor]:
        """Gradients of some examples by component, and their squared norms [B, K]."""
        chosen = torch.tensor(members, dtype=torch.int64, device="cpu")
        inputs, targets = send(examples.inputs[chosen], self.device), send(examples.targets[chosen], self.device)
        found, losses = self._each(self.parameters, inputs, targets)
        gradients = {
            name: torch.cat([found[one].flatten(1) for one in own], dim=1).to(self.dtype)
            for name, own in self.components.items()
        }
        squares = torch.stack([gradient.square().sum(1) for gradient in gradients.values()], dim=1)
        ids, names = [examples.ids[index] for index in members], list(gradients)
        later.add(lambda squares, losses: require_finite(squares, ids, names, losses), squares, losses.float())
        return gradients, squares

    def _loss(self, parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(self.module, parameters, (one[None],))
        return nn.functional.cross_entropy(logits.to(self.dtype), target[None])
