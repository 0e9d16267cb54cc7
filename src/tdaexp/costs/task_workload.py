"""What a method's plan may look at of a classification task: its network, sizes and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tdaexp.costs.workload import KEPT, PAIR_BYTES, RUNTIME_BYTES, STORE
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.footprint import LiveBytes
from tdaexp.models.components import ComponentMap
from tdaexp.models.discovery import discovered
from tdaexp.models.task import TaskComponents
from tdaexp.objectives.classes import most_positions
from tdaexp.runtime.costs import StageCost
from tdaexp.training.recorder import plan as recording
from tdaexp.training.settings import FitSettings
from tdaexp.training.trajectory import Layout

TILED = 0.1  # of their size is what squared norms of candidates take where all queries have the same ones


@dataclass(frozen=True, eq=False)
class TaskWorkload:
    """A training by its sizes: `examples` are the training set; `queries`, and each one's `candidates`, a count.

    `watched`: of how many examples of each part the loss is looked at on the way, None = all.
    """

    module: nn.Module
    components: TaskComponents
    examples: TensorExamples
    queries: int
    classes: int
    fit: FitSettings
    candidates: int = 0
    tokens_per_batch: int = 4096
    cache_gb: float = 2.0
    watched: int | None = None

    @property
    def train(self) -> int:
        """Number of training examples."""
        return len(self.examples)

    @property
    def example(self) -> Tensor:
        """One input [1, ...]."""
        return self.examples.inputs[:1]

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return min(self.fit.batch_size, self.train)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(self.components.sizes.values())

    @property
    def inputs(self) -> float:
        """Bytes of all examples."""
        return float(self.example.nbytes * (self.train + self.queries))

    @cached_property
    def most_together(self) -> int:
        """Examples of a batch where pairs are scored: positions of the layer that has most count as tokens."""
        return max(1, self.tokens_per_batch // most_positions(self.module, self.example))

    def parts(self, names: list[str] | None) -> ComponentMap:
        """The network's components, or the named ones, with the kind and shape of their layers."""
        whole = discovered(self.module)
        return whole if names is None else whole.select(names)

    def table_bytes(self, components: int) -> float:
        """Bytes of one number for each pair and component."""
        return 4.0 * self.queries * self.candidates * components

    def answer(self, components: int, self_products: bool) -> StageCost:
        """What writing scores of pairs takes: the run's own influence store."""
        table, pairs = self.table_bytes(components), self.queries * self.candidates
        disk = (KEPT + TILED * self_products) * table + 2 * STORE
        host = 2 * table * (2 if self_products else 1) + PAIR_BYTES * pairs + self.inputs + RUNTIME_BYTES
        return StageCost("answer", disk=disk, host=host)

    @cached_property
    def layout(self) -> Layout | None:
        """The trajectory that the training leaves; None where it is not recorded."""
        if not self.fit.record:
            return None
        named = dict(self.module.named_parameters())
        return recording(named, self.fit, examples=self.train, batch=self.batch, identity="")

    @property
    def trajectory_bytes(self) -> float:
        """Size of the recording on disk: uncompressed files of whole blocks, the last one padded."""
        if self.layout is None:
            return 0.0
        rows = len(self.layout.blocks) * self.layout.rows
        return rows * (4.0 * self.size * len(self.layout.states()) + 12.0 * self.batch) + STORE

    @cached_property
    def forward(self) -> tuple[float, float]:
        """FLOP and bytes of tensors of a forward pass for each example, counted by running it.

        What a pass makes of the weights alone, whatever the batch, is left out of the bytes.
        """
        with torch.no_grad(), FlopCounterMode(display=False) as counter, LiveBytes() as one:
            self.module(self.example)
        rows = self.example.repeat(9, *[1] * (self.example.ndim - 1))
        with torch.no_grad(), LiveBytes() as nine:
            self.module(rows)
        return float(counter.get_total_flops()), (nine.peak - one.peak) / 8

    @cached_property
    def recorded_bytes(self) -> float:
        """Bytes for each example of what a forward pass keeps for a backward pass."""
        rows = self.example.repeat(8, *[1] * (self.example.ndim - 1))
        with torch.enable_grad(), LiveBytes() as live:
            self.module(rows).sum().backward()
        self.module.zero_grad()
        return max(0.0, live.peak - 4.0 * self.size) / 8

    def training(self) -> StageCost:
        """The training and its recording."""
        runs = self.fit.steps * self.batch
        most = self.watched or max(self.train, self.queries)
        looked = (min(self.train, most) + min(self.queries, most)) * (self.fit.steps // self.fit.evaluate_every)
        disk = 4.0 * self.size + self.trajectory_bytes
        block = self.layout.rows * 8.0 * self.size if self.layout else 0.0
        return StageCost(
            "training",
            forward=runs + looked,
            backward=runs,
            flop=(3.0 * runs + looked) * self.forward[0],
            disk=disk,
            device=16.0 * self.size + max(self.batch * self.recorded_bytes, min(2000, self.train) * self.forward[1]),
            host=2 * block + RUNTIME_BYTES + self.example.nbytes * (self.train + self.queries),
            note="once; other runs find it in the cache",
        )

    def summary(self) -> str:
        """One line about the sizes."""
        return f"{self.size:,} parameters, {self.train:,} training examples, {self.queries:,} queries"
