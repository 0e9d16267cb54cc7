"""Per-component dot products and squared norms of per-example gradients, for the pairs of a candidate list.

Both self-products are kept beside the dot product, so that the cosine of any subset of components is a matter of
sums (Select or Project, A.2). Work is stored query batch by query batch and resumes after a kill with the same bits:
batches are a pure function of pairs, lengths and the token budget (`schedule`), a batch's factors are a pure function
of the batch, and the products of two batches are a pure function of their factors and pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tdaexp.data.examples import Examples, collate
from tdaexp.gradients.cache import FactorCache
from tdaexp.gradients.capture import capture
from tdaexp.gradients.dots import Pairs, pair_dots, self_dots
from tdaexp.gradients.factors import Factors, accumulation_dtype, compact, nbytes
from tdaexp.gradients.finite import check_losses, require_finite
from tdaexp.gradients.schedule import Schedule, schedule
from tdaexp.influence import BlockStore
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that making a batch's factors takes, and a count of the passes that were made."""

    model: PreTrainedModel
    components: ComponentMap
    reduction: str
    pad_id: int
    passes: int = field(default=0)

    def factors(self, examples: Examples, batch: list[int]) -> tuple[list[Factors], np.ndarray]:
        """Factors of a batch in component order, and the squared gradient norms [B, K]; NaN and Inf are refused."""
        chosen = [examples[index] for index in batch]
        found: dict[str, Factors] = {}

        def keep(component: Component, factors: Factors) -> None:
            found[component.name] = compact(factors)

        losses = capture(
            self.model, self.components, collate(chosen, self.pad_id), keep, reduction=self.reduction
        )
        self.passes += len(batch)
        ordered = [found[name] for name in self.components.names]
        squares = self_dots(ordered).cpu().numpy()
        require_finite(
            squares, [example.id for example in chosen], self.components.names, losses.cpu().numpy()
        )
        return ordered, squares


def component_products(
    model: PreTrainedModel,
    components: ComponentMap,
    train: Examples,
    queries: Examples,
    pairs: np.ndarray,
    *,
    store: Path,
    reduction: str = "mean",
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """Dot products of per-example loss gradients, by component, for Q queries and their C candidates each.

    `pairs` [Q, C] int indexes `train`, -1 for no candidate. Runs on the model's device and in its dtype; products are
    float32, or float64 for a float64 model. Returns `dot` [Q, C, K], `query_sq` [Q, K] and `train_sq` [Q, C, K], NaN
    where there is no candidate. `store` is a folder named after all that the result depends on; what it already holds
    is not computed again. Factors in memory stay within `cache_gb` (10^9 bytes) and two batches on top: less memory
    means that training examples run more often, never other numbers.

    Errors (UserError): an example without loss, NaN or Inf in a gradient, a candidate outside the training set.
    """
    _check(pairs, train, queries)
    plan = schedule(pairs, queries.lengths, train.lengths, tokens_per_batch)
    order = np.concatenate([np.array(batch) for batch in plan.query_batches])
    blocks = BlockStore(store, _arrays(pairs, len(components), model.dtype), _slices(plan.query_batches))
    work = _Work(Run(model, components, reduction, pad_id), plan, train, queries, pairs, int(cache_gb * 1e9))
    missing = blocks.missing()
    done = len(blocks.blocks) - len(missing)
    for block, values in track(work.blocks(missing), "gradient products", len(blocks.blocks), done):
        blocks.write(block, values)
    if missing:
        log.info("%s", work.summary())
    back = np.argsort(order)
    return {name: values[back] for name, values in blocks.read().items()}


def _check(pairs: np.ndarray, train: Examples, queries: Examples) -> None:
    if pairs.shape[0] != len(queries):
        raise UserError(f"{pairs.shape[0]} rows of candidates for {len(queries)} queries; they must match")
    if pairs.size and not (-1 <= pairs.min() and pairs.max() < len(train)):
        raise UserError(f"a candidate's number is outside 0 … {len(train) - 1}, the training examples")
    check_losses(queries, "query")
    check_losses(Examples([train[index] for index in np.unique(pairs[pairs >= 0])]), "training")


def _arrays(pairs: np.ndarray, components: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], str]]:
    kind = "float64" if accumulation_dtype(dtype) == torch.float64 else "float32"
    shape = (*pairs.shape, components)
    return {"dot": (shape, kind), "train_sq": (shape, kind), "query_sq": ((len(pairs), components), kind)}


def _slices(batches: list[list[int]]) -> list[slice]:
    ends = np.cumsum([len(batch) for batch in batches])
    return [slice(int(end) - len(batch), int(end)) for batch, end in zip(batches, ends, strict=True)]


class _Work:
    """Goes through query batches a few at a time, and for each such group through the training batches it needs."""

    def __init__(
        self, run: Run, plan: Schedule, train: Examples, queries: Examples, pairs: np.ndarray, limit: int
    ) -> None:
        self.run, self.plan, self.train, self.queries, self.pairs, self.limit = (
            run,
            plan,
            train,
            queries,
            pairs,
            limit,
        )
        self.home, self.row = plan.home(len(train))
        self.cache = FactorCache(self._run_train, limit // 2)
        self.squares: dict[int, np.ndarray] = {}
        self.query_passes = 0

    def _run_train(self, batch: int) -> list[Factors]:
        factors, self.squares[batch] = self.run.factors(self.train, self.plan.train_batches[batch])
        return factors

    def blocks(self, missing: list[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (query batch, its values in batch order) for the query batches that are missing."""
        waiting = list(missing)
        while waiting:
            group: dict[int, tuple[list[Factors], dict[str, np.ndarray]]] = {}
            held = 0
            # Query batches share a sweep over the training batches as long as their factors fit in half the memory.
            while waiting and (not group or held < self.limit // 2):
                block = waiting.pop(0)
                factors, squares = self.run.factors(self.queries, self.plan.query_batches[block])
                self.query_passes += len(squares)
                held += nbytes(factors)
                group[block] = factors, self._empty(block, squares)
            self._sweep(group)
            for block, (_, values) in group.items():
                yield block, values

    def _empty(self, block: int, squares: np.ndarray) -> dict[str, np.ndarray]:
        shape = (len(squares), self.pairs.shape[1], squares.shape[1])
        blank = {name: np.full(shape, np.nan, squares.dtype) for name in ("dot", "train_sq")}
        return {**blank, "query_sq": squares}

    def _sweep(self, group: dict[int, tuple[list[Factors], dict[str, np.ndarray]]]) -> None:
        """Fill in the products of a group of query batches with all training batches that they need."""
        homes = {block: self._homes(block) for block in group}
        needed = sorted({int(home) for found in homes.values() for home in np.unique(found[found >= 0])})
        for batch in self.cache.order(needed):
            factors = self.cache.get(batch)
            for block, (mine, values) in group.items():
                rows, columns = np.nonzero(homes[block] == batch)
                if len(rows) == 0:
                    continue
                there = self.row[self.pairs[self.plan.query_batches[block]][rows, columns]]
                device = mine[0].tensors[0].device
                pairs = Pairs(torch.from_numpy(rows).to(device), torch.from_numpy(there).to(device))
                values["dot"][rows, columns] = pair_dots(mine, factors, pairs).cpu().numpy()
                values["train_sq"][rows, columns] = self.squares[batch][there]

    def _homes(self, block: int) -> np.ndarray:
        """Training batch of each candidate of a query batch [B, C], -1 where there is no candidate."""
        candidates = self.pairs[self.plan.query_batches[block]]
        return np.where(candidates >= 0, self.home[candidates], -1)

    def summary(self) -> str:
        """One line: how many passes were made, and how many would have done with unlimited memory."""
        distinct = sum(map(len, self.plan.train_batches))
        train = self.run.passes - self.query_passes
        return (
            f"forward-backward passes: {self.query_passes} queries, {train} training examples "
            f"({distinct} distinct, {self.cache.runs} batches)"
        )
