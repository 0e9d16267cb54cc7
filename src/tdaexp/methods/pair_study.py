"""What studies of texts and of classifiers have in common: pairs to score, places for results, and the answer's label.

Methods that look at nothing else of a study serve both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from tdaexp import influence
from tdaexp.curvature.layers import Layers
from tdaexp.curvature.sides import PairSide
from tdaexp.curvature.source import Source
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.capture import Loss
from tdaexp.models.components import ComponentMap
from tdaexp.runtime import cache
from tdaexp.runtime.blockstore import BlockStore, stored_seconds
from tdaexp.runtime.code import Work


@dataclass(frozen=True)
class Compute:
    """How the passes are run: none of this may change a result beyond rounding.

    `tokens_per_batch` bounds a batch's padded size, `cache_gb` the memory for captured factors.
    """

    device: torch.device
    dtype: torch.dtype
    tokens_per_batch: int
    cache_gb: float


class PairStudy(ABC):
    """A study of pairs; the attributes are those of `Study` and `ClassifierStudy`."""

    train: Examples | TensorExamples
    queries: Examples | TensorExamples
    query_set: list[str]
    candidates: Candidates
    truth: np.ndarray
    truth_known: np.ndarray | None = None
    compute: Compute
    cache: Path
    stores: set[Path]
    overhead: set[Path]
    spent: float

    @property
    @abstractmethod
    def model_fingerprint(self) -> str:
        """Identity of the model."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the model, the training examples and the queries."""

    @property
    @abstractmethod
    def curvature_examples(self) -> Examples | TensorExamples:
        """The examples that curvature is averaged over."""

    @abstractmethod
    def components(self, names: list[str] | None = None) -> ComponentMap:
        """The model's components in parameter order, or the named ones."""

    @abstractmethod
    def source(self, layers: Layers) -> Source:
        """Passes over the examples that curvature is averaged over, with drawn labels."""

    @abstractmethod
    def train_side(self, layers: Layers, reduction: str) -> PairSide:
        """The training examples' losses."""

    @abstractmethod
    def query_side(self, layers: Layers, loss: Loss, reduction: str) -> PairSide:
        """The queries' losses, of a loss of one's own."""

    @property
    def pairs(self) -> np.ndarray:
        """Candidate columns [Q, C] as indices into `train`, -1 where there is none."""
        return self.candidates.indices

    def store(self, kind: str, *depends_on: Any, by: Work) -> Path:
        """Folder in the cache for results that depend on this study's model, data and pairs and on `depends_on`.

        `by` is the function or class that computes them: its code is a part of the folder's name, too.
        """
        return self._entry(kind, [self.fingerprint, self.pairs, *depends_on], by)

    def training_store(self, kind: str, *depends_on: Any, by: Work) -> Path:
        """As `store`, for what depends on the model and on `curvature_examples`, but on no query and no pair."""
        path = self._entry(kind, [self.model_fingerprint, self.curvature_examples.fingerprint(), *depends_on], by)
        self.overhead.add(path)
        return path

    def _entry(self, kind: str, parts: list[Any], by: Work) -> Path:
        place = [str(self.compute.dtype), self.compute.device.type, self.compute.tokens_per_batch]
        path = cache.entry(self.cache, kind, place, *parts, by=[by, type(self)])
        self.stores.add(path)
        return path

    def split_cost(self, seconds: dict[str, float]) -> dict[str, float]:
        """Tell overhead, gradients and scoring apart in a run's `seconds` by stage.

        `overhead` and `gradients` are what the stores took, whichever run filled them: those that serve any query
        (factors of curvature, features of the training set), and the others. `scoring` is left without what this
        process put into stores since the study was made, or waited for others that filled them. Where several
        processes filled the stores, what each of them took is counted, so that the sum is more than the run's time.
        """
        took = {path: stored_seconds(path) for path in self.stores}
        overhead = sum(seconds for path, seconds in took.items() if path in self.overhead)
        parts = {"overhead": overhead, "gradients": sum(took.values()) - overhead}
        return {**seconds, **parts, "scoring": seconds["scoring"] - (BlockStore.spent - self.spent)}

    def label(
        self,
        values: np.ndarray,
        components: ComponentMap | None = None,
        query_sq: np.ndarray | None = None,
        train_sq: np.ndarray | None = None,
    ) -> xr.Dataset:
        """Label values [Q, C] or [Q, C, K] on this study's pairs; pairs that do not exist become NaN."""
        absent = self.pairs < 0
        values = np.where(absent.reshape(*absent.shape, *[1] * (values.ndim - 2)), np.nan, values)
        ids = np.array([*self.train.ids, ""], dtype=object)
        return influence.build(
            values,
            attrs=None if components is None else {"parameters": components.total},
            query=self.queries.ids,
            query_set=self.query_set,
            train=ids[self.pairs],
            truth=self.truth,
            truth_known=np.ones(len(self.truth), bool) if self.truth_known is None else self.truth_known,
            bm25=self.candidates.bm25,
            component=None if components is None else components.names,
            size=None if components is None else components.sizes,
            query_sq=query_sq,
            train_sq=train_sq,
        )
