"""The study of a classifier's pairs: its final weights, its training examples, and the queries to explain."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from tdaexp.curvature.layers import Layers
from tdaexp.curvature.modules import ModuleSource, module_map
from tdaexp.curvature.sides import ModuleSide, most_positions
from tdaexp.curvature.source import Source
from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.capture import Loss, cross_entropy
from tdaexp.methods.pair_study import Compute, PairStudy
from tdaexp.models.components import ComponentMap
from tdaexp.models.task import task_components
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.fingerprint import fingerprint


@dataclass(frozen=True)
class ClassifierStudy(PairStudy):
    """A classifier (in eval mode, on the device and in the dtype of `compute`), its training examples and queries.

    `weights` is the identity of the trained weights; `truth` [Q, C]: query and candidate are of the same class. The
    other attributes are as in `Study`. A query's answer is its one class, the loss its cross-entropy. A batch is
    bounded by the positions of the layer that has most (the places of a convolution), where a text counts tokens.
    """

    module: nn.Module
    weights: str
    train: TensorExamples
    queries: TensorExamples
    query_set: list[str]
    candidates: Candidates
    truth: np.ndarray
    compute: Compute
    cache: Path
    seed: int
    stores: set[Path] = field(default_factory=set)
    overhead: set[Path] = field(default_factory=set)
    spent: float = field(default_factory=lambda: BlockStore.spent)

    @property
    def curvature_examples(self) -> TensorExamples:
        """The training examples."""
        return self.train

    @property
    def model_fingerprint(self) -> str:
        """Identity of the weights."""
        return self.weights

    @property
    def fingerprint(self) -> str:
        """Identity of the weights, the training examples and the queries."""
        return fingerprint(self.weights, self.train.fingerprint(), self.queries.fingerprint())

    @cached_property
    def positions(self) -> int:
        """Positions of the layer that has most."""
        return most_positions(self.module, self.train.inputs)

    def components(self, names: list[str] | None = None) -> ComponentMap:
        """The network's components, or the named ones."""
        whole = module_map(self.module)
        return whole if names is None else whole.select(names)

    def members(self, components: ComponentMap) -> dict[str, list[str]]:
        """Parameter names of each component."""
        every = task_components(self.module).members
        return {name: every[name] for name in components.names}

    def source(self, layers: Layers) -> Source:
        """Passes over the training examples."""
        size = max(1, self.compute.tokens_per_batch // self.positions)
        return ModuleSource(self.module, self.train.inputs, self.train.ids, batch_size=size, layers=layers.layers)

    def train_side(self, layers: Layers, reduction: str) -> ModuleSide:
        """The training examples' cross-entropies; of one class there is nothing to reduce."""
        return self._side(layers, self.train, cross_entropy)

    def query_side(self, layers: Layers, loss: Loss, reduction: str) -> ModuleSide:
        """The queries' losses."""
        return self._side(layers, self.queries, loss)

    def _side(self, layers: Layers, examples: TensorExamples, loss: Loss) -> ModuleSide:
        return ModuleSide(self.module, layers, examples.ids, examples.inputs, examples.targets, self.positions, loss)
