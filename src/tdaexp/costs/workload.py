"""What a method's plan may look at, before there is a model or an example: shapes, lengths and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tdaexp.curvature.layers import Layers
from tdaexp.data.examples import token_budget_batches
from tdaexp.data.sizes import Sizes
from tdaexp.gradients.footprint import pass_bytes, shared_readers
from tdaexp.models.components import ComponentMap, component_map
from tdaexp.models.sharded import units_of
from tdaexp.runtime.costs import StageCost

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import PreTrainedModel

RUNTIME_BYTES = 0.1e9  # batches, allocator and libraries beside the tensors that are counted
STORE = 3e4  # bytes of a store beside its numbers
GATHERED = 3  # units: one in use, the next one on its way, and the buffer that it comes in
KEPT = 0.93  # of their size is what float32 numbers take after lossless compression
PAIR_BYTES = 520.0  # of main memory for each pair beside its numbers: ids, and the tables that the report is made of


@dataclass(frozen=True, eq=False)
class Workload:
    """A study by its sizes: `model` has parameters without data, made under `mode`.

    `pairs` [Q, C] stand for the candidates: their number is right, which they are is drawn. `finetune` is there where
    the data has a second stage; `query_sets` are the sets' sizes. Of a decomposition over checkpoints: how many there
    are, and the examples in the `batch` of each. `shares`: into how many the model is shared out.
    """

    model: PreTrainedModel
    mode: FakeTensorMode
    train: Sizes
    queries: Sizes
    pairs: np.ndarray
    dtype: torch.dtype
    tokens_per_batch: int
    cache_gb: float
    query_sets: list[int]
    finetune: Sizes | None = None
    checkpoints: int = 0
    batch: int = 0
    shares: int = 1
    _known: dict[Any, int] = field(default_factory=dict)

    @cached_property
    def every(self) -> ComponentMap:
        """All components of the model."""
        return component_map(self.model)

    def summary(self) -> str:
        """One line about the sizes."""
        return (
            f"{self.every.total:,} parameters, {len(self.train):,} training examples of {self.train.tokens.mean():.0f} "
            f"tokens, {len(self.queries):,} queries of {self.queries.tokens.mean():.0f}, {self.pairs.shape[1]:,} "
            "candidates each"
        )

    def components(self, names: list[str] | None = None) -> ComponentMap:
        """The model's components, or the named ones."""
        return self.every if names is None else self.every.select(names)

    @property
    def wide(self) -> int:
        """Bytes of a number in products and factors."""
        return 8 if self.dtype == torch.float64 else 4

    @property
    def weights(self) -> float:
        """Bytes of the model's parameters on a device; of a model that is shared out, with what is gathered at once."""
        total = self.every.total
        if self.shares > 1:
            units = [sum(one.numel() for one in unit.parameters()) for unit in units_of(self.model)]
            total = total // self.shares + (total - sum(units)) + GATHERED * max(units)
        return float(total * self.dtype.itemsize)

    def readers(self, layers: Layers) -> dict[str, str]:
        """For every layer the first one that reads the same input."""
        return shared_readers(self.model, layers.map, self.mode)

    def answered(self, limit: int | None) -> Workload:
        """The workload with at most `limit` queries of each set (null = all)."""
        if limit is None:
            return self
        starts = np.cumsum([0, *self.query_sets])[:-1]
        rows = [
            row
            for start, count in zip(starts, self.query_sets, strict=True)
            for row in range(start, start + min(limit, count))
        ]
        return replace(
            self,
            queries=self.some(self.queries, rows),
            pairs=self.pairs[rows],
            query_sets=[min(limit, count) for count in self.query_sets],
        )

    @property
    def candidates(self) -> Sizes:
        """Sizes of the training examples that any query has as a candidate."""
        return self.some(self.train, np.unique(self.pairs))

    @staticmethod
    def some(sizes: Sizes, places: Sequence[int] | np.ndarray) -> Sizes:
        """The sizes at some places."""
        chosen = np.asarray(places, dtype=np.int64)
        return Sizes(sizes.tokens[chosen], sizes.predicted[chosen])

    def forward_flop(self, sizes: Sizes) -> float:
        """FLOP of a forward pass over every example once (the rule is in `runtime.costs`)."""
        inside = sum(one.size for one in self.every.components if one.name.startswith("layers."))
        config = self.model.config
        head = config.vocab_size * config.hidden_size
        read = sizes.read.astype(float)
        attention = 4.0 * config.num_hidden_layers * config.hidden_size * (read**2).sum()
        return float(2.0 * inside * read.sum() + 2.0 * head * sizes.predicted.sum() + attention)

    def pass_flop(self, sizes: Sizes) -> float:
        """FLOP of a forward and a backward pass over every example once."""
        return 3.0 * self.forward_flop(sizes)

    def batches(self, sizes: Sizes) -> list[list[int]]:
        """Batches of examples of similar length."""
        order = np.argsort(sizes.tokens, kind="stable").tolist()
        return token_budget_batches(sizes.tokens, order, self.tokens_per_batch)

    def pass_bytes(self, components: ComponentMap, sizes: Sizes) -> float:
        """Peak bytes of a forward and backward pass over the largest batch, without the weights."""
        if not len(sizes):
            return 0.0
        shapes = {self._shape(sizes, batch) for batch in self.batches(sizes)}
        largest = {
            max(shapes, key=lambda shape: shape[0] * shape[1]),
            max(shapes, key=lambda shape: shape[0] * shape[2]),
        }
        return float(max(self._pass(components, shape) for shape in largest))

    def _shape(self, sizes: Sizes, batch: list[int]) -> tuple[int, int, int]:
        return len(batch), int(sizes.read[batch].max()), int(sizes.predicted[batch].max())

    def _pass(self, components: ComponentMap, shape: tuple[int, int, int]) -> int:
        key = (tuple(components.names), *shape)
        if key not in self._known:
            self._known[key] = pass_bytes(self.model, components, *shape, self.mode)
        return self._known[key]

    def table_bytes(self, components: int) -> float:
        """Bytes of one number for each pair and component."""
        return float(self.pairs.size * components * self.wide)

    def answer(self, components: int, self_products: bool) -> StageCost:
        """What writing the answer takes: the run's own influence store."""
        size = self.table_bytes(components) * (2 if self_products else 1)
        size += len(self.queries) * components * self.wide * self_products
        host = 2 * size + PAIR_BYTES * self.pairs.size + RUNTIME_BYTES
        return StageCost("answer", disk=KEPT * size + 2 * STORE, device=self.weights, host=host)
