"""The study: all that a method may look at, and the label it puts on its answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from tdaexp import influence
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.models.components import ComponentMap, component_map
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime.blockstore import BlockStore, stored_seconds
from tdaexp.runtime.fingerprint import CACHE_VERSION, fingerprint


@dataclass(frozen=True)
class Compute:
    """How the passes are run: none of this may change a result beyond rounding.

    `tokens_per_batch` bounds a batch's padded size, `cache_gb` the memory for captured factors.
    """

    device: torch.device
    dtype: torch.dtype
    tokens_per_batch: int
    cache_gb: float


@dataclass(frozen=True)
class Stage:
    """A second stage of training: the model that came out of it, and the examples that it was trained on."""

    loaded: LoadedModel
    examples: Examples


@dataclass(frozen=True)
class Study:
    """One model, one training set, its queries and the pairs to score.

    `queries` holds all query sets one after the other, `query_set` [Q] says which set each belongs to,
    `truth` [Q, C] which candidate is a source of the query. `cache` is the folder for what other runs can use again;
    `stores` remembers which of its parts this run asked for, `overhead` which of them no query had a part in, `spent`
    how much this process had put into stores before.

    A study of two stages (pre-train on `train`, then fine-tune) has the pre-trained model in `loaded` and the second
    stage in `finetuned`. `after` makes a single-stage study of it, in which curvature is averaged over `fitted`.
    """

    train: Examples
    queries: Examples
    query_set: list[str]
    candidates: Candidates
    truth: np.ndarray
    loaded: LoadedModel
    compute: Compute
    cache: Path
    seed: int
    stores: set[Path] = field(default_factory=set)
    overhead: set[Path] = field(default_factory=set)
    spent: float = field(default_factory=lambda: BlockStore.spent)
    finetuned: Stage | None = None
    fitted: Examples | None = None

    @property
    def curvature_examples(self) -> Examples:
        """The examples whose mean loss the explained model minimised: those that curvature is averaged over."""
        return self.train if self.fitted is None else self.fitted

    def after(self, stage: str) -> Study:
        """The study as a method sees it that knows one stage: the model after `pretrained` or `finetuned`.

        After `finetuned` the gradients of queries and training examples are the fine-tuned model's, and curvature is
        that of the fine-tuning loss: the single-stage influence of Bao et al. 2025, equation 10. A study without a
        second stage comes back as it is.
        """
        if self.finetuned is None:
            return self
        if stage == "pretrained":
            return replace(self, finetuned=None)
        return replace(self, loaded=self.finetuned.loaded, finetuned=None, fitted=self.finetuned.examples)

    @property
    def pairs(self) -> np.ndarray:
        """Candidate columns [Q, C] as indices into `train`, -1 where there is none."""
        return self.candidates.indices

    @property
    def fingerprint(self) -> str:
        """Identity of the model, the training examples and the queries."""
        return fingerprint(self.loaded.fingerprint, self.train.fingerprint(), self.queries.fingerprint())

    def components(self, names: list[str] | None = None) -> ComponentMap:
        """The model's components in parameter order, or the named ones."""
        whole = component_map(self.loaded.model)
        return whole if names is None else whole.select(names)

    def store(self, kind: str, *depends_on: Any) -> Path:
        """Folder in the cache for results that depend on this study's model, data and pairs and on `depends_on`."""
        key = fingerprint(
            CACHE_VERSION,
            self.fingerprint,
            self.pairs,
            [str(self.compute.dtype), self.compute.device.type, self.compute.tokens_per_batch],
            *depends_on,
        )
        path = self.cache / kind / key
        self.stores.add(path)
        return path

    def training_store(self, kind: str, *depends_on: Any) -> Path:
        """As `store`, for what depends on the model and on `curvature_examples`, but on no query and no pair."""
        key = fingerprint(
            CACHE_VERSION,
            self.loaded.fingerprint,
            self.curvature_examples.fingerprint(),
            [str(self.compute.dtype), self.compute.device.type, self.compute.tokens_per_batch],
            *depends_on,
        )
        path = self.cache / kind / key
        self.stores.add(path)
        self.overhead.add(path)
        return path

    def split_cost(self, seconds: dict[str, float]) -> dict[str, float]:
        """Tell overhead, gradients and scoring apart in a run's `seconds` by stage.

        `overhead` and `gradients` are what the stores took, whichever run filled them: those that serve any query
        (factors of curvature, features of the training set), and the others. `scoring` is left without what this
        process put into stores since the study was made, or waited for others that filled them.
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
            bm25=self.candidates.bm25,
            component=None if components is None else components.names,
            size=None if components is None else components.sizes,
            query_sq=query_sq,
            train_sq=train_sq,
        )
