"""The study of a list of checkpoints: what their simulated updates are made from, and what is watched meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tdaexp.data.examples import Examples
from tdaexp.data.groups import stratified
from tdaexp.models.components import component_map
from tdaexp.pathkernel.streaming import Slab
from tdaexp.problem import Compute
from tdaexp.runtime import cache
from tdaexp.runtime.code import Work
from tdaexp.training.checkpoint_list import Snapshot
from tdaexp.training.settings import FitSettings

OTHER = "other"


@dataclass(frozen=True)
class CheckpointStudy:
    """Checkpoints, the examples that batches are drawn from (`pool`), and held-out `queries`.

    `pool_groups` and `query_groups` name what each belongs to, e.g. its language. A batch has `batch_size` examples;
    `fit` says how the training would go on where a checkpoint does not hold it.
    """

    snapshots: list[Snapshot]
    pool: Examples
    pool_groups: list[str]
    queries: Examples
    query_groups: list[str]
    batch_size: int
    fit: FitSettings
    compute: Compute
    cache: Path
    seed: int

    def batch(self, snapshot: Snapshot) -> np.ndarray:
        """Places in the pool of the batch of one checkpoint, a function of (seed, step); each group by its share."""
        return stratified(self.pool_groups, self.batch_size, [self.seed, snapshot.step], "trainer.fit.batch_size")

    def store(self, kind: str, *depends_on: Any, by: Work) -> Path:
        """Folder in the cache for what `by` computes, which depends on this study and on `depends_on`."""
        return cache.entry(
            self.cache,
            kind,
            [one.identity for one in self.snapshots],
            [self.pool.fingerprint(), self.pool_groups, self.queries.fingerprint(), self.query_groups],
            [self.batch_size, self.fit.deciding(), self.seed],
            [str(self.compute.dtype), self.compute.device.type, self.compute.tokens_per_batch],
            *depends_on,
            by=[by, type(self)],
        )


def slabs_of(model: PreTrainedModel) -> tuple[dict[str, int], list[Slab]]:
    """Components (name to size) that cover every parameter, and where each lies.

    What the model's component map leaves out is the component `other`, so that the sum over components is complete.
    """
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    sizes: dict[str, int] = {}
    slabs: list[Slab] = []
    seen: set[tuple[str, int]] = set()
    for component in component_map(model).components:
        number = len(sizes)
        sizes[component.name] = component.size
        for part in component.parts:
            rows = None if part.rows is None else torch.from_numpy(part.rows)
            for kind, tensor in modules[part.module].named_parameters(recurse=False):
                name = parameters[id(tensor)]
                if (name, number) not in seen or rows is not None:  # a tied head is the embedding's own tensor
                    slabs.append(Slab(number, name, rows, int(part.kind == "conv1d" and kind == "weight")))
                seen.add((name, number))
    rest = [name for name in parameters.values() if name not in {slab.parameter for slab in slabs}]
    if rest:
        slabs += [Slab(len(sizes), name) for name in rest]
        sizes[OTHER] = sum(dict(model.named_parameters())[name].numel() for name in rest)
    return sizes, slabs
