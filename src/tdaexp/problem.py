"""The problem: all that a method may look at, whatever the model is.

A language model, a classifier, a recorded training and somebody's own module with a loss are ways to build a `Problem`
(`building/`), not kinds of it: a method is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import nn

from tdaexp import influence
from tdaexp.data.best import Best
from tdaexp.data.candidates import Candidates
from tdaexp.history import History
from tdaexp.models.components import ComponentMap
from tdaexp.models.loaded import LoadedModel
from tdaexp.objectives.base import ExampleList, Objective
from tdaexp.runtime import cache
from tdaexp.runtime.block_files import stored_seconds
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.code import Work
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.rows import Rows, rows_of

Code = Work | list[Work]


@dataclass(frozen=True)
class Compute:
    """How the passes are run: none of this may change a result beyond rounding.

    `tokens_per_batch` bounds a batch's padded size, `cache_gb` the memory for what is held.
    """

    device: torch.device
    dtype: torch.dtype
    tokens_per_batch: int
    cache_gb: float


def identity_of(model: str, train: ExampleList, queries: ExampleList) -> str:
    """Identity of a model's answers about queries by training examples; any two stores that have it are comparable."""
    return fingerprint(model, train.fingerprint(), queries.fingerprint())


@dataclass(frozen=True)
class Stage:
    """A second stage of training: the model that came out of it, and the examples that it was trained on.

    `history` is what it left on its way.
    """

    loaded: LoadedModel
    map: ComponentMap
    examples: ExampleList
    history: History | None = None


class TrainedAgain(Protocol):
    """What models trained again on subsets of the training examples say, where a bank has them."""

    def __call__(self, problem: Problem, subsets: int, left_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Members [S, N] bool of so many random subsets that lack that share, and the queries' measurements [S, Q].

        Errors (UserError): the models are not there (with the command that makes them), or cannot be.
        """


@dataclass(frozen=True)
class Wanted:
    """Pairs that nobody has named: each query's most helpful and most harmful training examples are looked for.

    `best` says how many, and how. `sources` [Q] are numbers of training examples: what is known of where each query
    comes from. `told` is what a search said of itself, for the store's attributes.
    """

    best: Best
    sources: list[np.ndarray]
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A model (in eval mode), its components, training examples, queries, the pairs to score, and what it is asked.

    `identity` is that of the model; `queries` holds all query sets one after the other, `query_set` [Q] says which set
    each belongs to, `truth` [Q, C] which candidate is a source of the query, and `truth_known` [Q] of which queries
    that is known (None: of all). `history` is what the model's training left on its way; one that is decomposed may do
    without pairs (C = 0). `recipe` tells how that training can be made again (a `training.bank.Recipe`), where it can;
    `retrained` of models that were, where a command can find them. `loaded` has the tokenizer where there is one.
    `cache` is the folder for what other runs can use again; `stores` remembers which of its parts this run asked for,
    `overhead` which of them no query had a part in, `spent` how much this process had put into stores before.

    A problem of two stages (pre-train on `train`, then fine-tune) has the pre-trained model in `model` and the second
    stage in `finetuned`. `after` makes a single-stage problem of it, in which curvature is averaged over `fitted`.
    """

    model: nn.Module
    identity: str
    map: ComponentMap
    objective: Objective[Any]
    train: Any
    queries: Any
    query_set: list[str]
    candidates: Candidates
    truth: np.ndarray
    compute: Compute
    cache: Path
    seed: int
    loaded: LoadedModel | None = None
    history: History | None = None
    recipe: Callable[[], Any] | None = None
    retrained: TrainedAgain | None = None
    finetuned: Stage | None = None
    fitted: ExampleList | None = None
    truth_known: np.ndarray | None = None
    belongs: dict[str, list[str]] = field(default_factory=dict)
    wanted: Wanted | None = None
    stores: set[Path] = field(default_factory=set)
    overhead: set[Path] = field(default_factory=set)
    spent: float = field(default_factory=lambda: BlockStore.spent)

    @property
    def pairs(self) -> np.ndarray:
        """Candidate columns [Q, C] as indices into `train`, -1 where there is none."""
        return self.candidates.indices

    @property
    def curvature_examples(self) -> Any:
        """The examples whose mean loss the explained model minimised: those that curvature is averaged over.

        Errors (UserError): none is known.
        """
        if self.fitted is None:
            return self.train
        if not len(self.fitted):
            raise UserError(
                "no fine-tuning example is known, so the fine-tuned model's curvature is not either; give them "
                "(dataset.finetune_path=FILE), explain the model before it (stage=pretrained), or take method=dot, "
                "full or repsim, which need no curvature"
            )
        return self.fitted

    def components(self, names: list[str] | None = None) -> ComponentMap:
        """The model's components in parameter order, or the named ones."""
        return self.map if names is None else self.map.select(names)

    def after(self, stage: str) -> Problem:
        """The problem as a method sees it that knows one stage: the model after `pretrained` or `finetuned`.

        After `finetuned` the gradients of queries and training examples are the fine-tuned model's, and curvature is
        that of the fine-tuning loss: the single-stage influence of Bao et al. 2025, equation 10. A problem without a
        second stage comes back as it is.
        """
        second = self.finetuned
        if second is None:
            return self
        if stage == "pretrained":
            return replace(self, finetuned=None)
        loaded = second.loaded
        return replace(
            self,
            model=loaded.model,
            identity=loaded.fingerprint,
            map=second.map,
            loaded=loaded,
            finetuned=None,
            fitted=second.examples,
        )

    def of_queries(self, rows: Sequence[int]) -> Problem:
        """The problem with some of the queries."""
        places = list(rows)
        return replace(
            self,
            queries=self.queries.select(places),
            query_set=[self.query_set[row] for row in places],
            candidates=Candidates(self.candidates.indices[places], self.candidates.bm25[places]),
            truth=self.truth[places],
            truth_known=None if self.truth_known is None else self.truth_known[places],
            wanted=self.wanted and replace(self.wanted, sources=[self.wanted.sources[row] for row in places]),
        )

    def having(self, pairs: np.ndarray, told: Mapping[str, Any]) -> Problem:
        """The problem about pairs [Q, C] that were found where they were `wanted`: numbers of training examples.

        `told`: what the search says of itself.
        """
        if self.wanted is None:
            raise ValueError("pairs were named before")
        known = zip(pairs, self.wanted.sources, strict=True)
        truth = np.array([np.isin(row, own) for row, own in known], dtype=bool).reshape(pairs.shape)
        found = Candidates(pairs, np.full(pairs.shape, np.nan))
        return replace(self, candidates=found, truth=truth, wanted=replace(self.wanted, told=told))

    def with_itself(self) -> Problem:
        """The problem in which each training example is asked about itself alone, as a query of its own."""
        count = len(self.train)
        none = np.zeros((count, 1), dtype=bool)
        return replace(
            self,
            queries=self.train,
            query_set=["train"] * count,
            candidates=Candidates(np.arange(count)[:, None], np.full((count, 1), np.nan)),
            truth=none,
            truth_known=none[:, 0],
            wanted=None,
        )

    @property
    def classes(self) -> tuple[str, ...] | None:
        """What queries end in, where the model that answers them classifies texts; else None.

        So do the examples of its training: those of the second stage, where there is one.
        """
        answering = self.loaded if self.finetuned is None else self.finetuned.loaded
        return None if answering is None else answering.classes

    @property
    def fingerprint(self) -> str:
        """Identity of the model, the training examples and the queries: that of every store of this problem."""
        return identity_of(self.identity, self.train, self.queries)

    @property
    def study(self) -> str:
        """As `fingerprint`, of both models where there is a second stage."""
        return (
            self.fingerprint
            if self.finetuned is None
            else fingerprint(self.fingerprint, self.finetuned.loaded.fingerprint)
        )

    def store(self, kind: str, *depends_on: Any, by: Code) -> Path:
        """Folder in the cache for results that depend on this problem's model, data and pairs and on `depends_on`.

        `by` are the functions or classes that compute them: their code is a part of the folder's name, too.
        """
        return self._entry(kind, [self.fingerprint, self.pairs, *depends_on], by)

    def training_store(self, kind: str, *depends_on: Any, by: Code) -> Path:
        """As `store`, for what depends on the model and on `curvature_examples`, but on no query and no pair."""
        path = self._entry(kind, [self.identity, self.curvature_examples.fingerprint(), *depends_on], by)
        self.overhead.add(path)
        return path

    def examples_store(self, kind: str, examples: ExampleList, *depends_on: Any, by: Code, name: str = "{}") -> Path:
        """As `store`, for what depends on the model and on these examples: on no others and on no pair.

        `name` as for `cache.entry`.
        """
        path = self._entry(kind, [self.identity, examples.fingerprint(), *depends_on], by, name)
        if examples is not self.queries:
            self.overhead.add(path)
        return path

    def _entry(self, kind: str, parts: list[Any], by: Code, name: str = "{}") -> Path:
        place = [str(self.compute.dtype), self.compute.device.type, self.compute.tokens_per_batch]
        code = [*(by if isinstance(by, list) else [by]), type(self), type(self.objective)]
        path = cache.entry(self.cache, kind, place, *parts, by=code, name=name)
        self.stores.add(path)
        return path

    def split_cost(self, seconds: dict[str, float]) -> dict[str, float]:
        """Tell overhead, gradients and scoring apart in a run's `seconds` by stage.

        `overhead` and `gradients` are what the stores took, whichever run filled them: those that serve any query
        (factors of curvature, features of the training set), and the others. `scoring` is left without what this
        process put into stores since the problem was made, or waited for others that filled them. Where several
        processes filled the stores, what each of them took is counted, so that the sum is more than the run's time.
        """
        took = {path: stored_seconds(path) for path in self.stores}
        overhead = sum(seconds for path, seconds in took.items() if path in self.overhead)
        parts = {"overhead": overhead, "gradients": sum(took.values()) - overhead}
        return {**seconds, **parts, "scoring": seconds["scoring"] - (BlockStore.spent - self.spent)}

    def label(
        self,
        values: np.ndarray | Rows,
        components: ComponentMap | None = None,
        query_sq: np.ndarray | Rows | None = None,
        train_sq: np.ndarray | Rows | None = None,
    ) -> xr.Dataset:
        """Label values [Q, C] or [Q, C, K] on this problem's pairs; pairs that do not exist become NaN.

        What is given as `Rows` is read, and computed, when it is asked for.
        """
        values, ids = rows_of(values), np.array([*self.train.ids, ""], dtype=object)

        def real(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
            absent = self.pairs[rows] < 0
            return np.where(absent.reshape(*absent.shape, *[1] * (found.ndim - 2)), np.nan, found)

        return influence.build(
            values.map(real, np.result_type(values.dtype, np.float16)),
            attrs={
                **({} if components is None else {"parameters": components.total}),
                **({} if self.wanted is None else self.wanted.told),
            },
            query=self.queries.ids,
            query_set=self.query_set,
            train=Rows(self.pairs.shape, object, lambda rows: ids[self.pairs[rows]]),
            belongs=self.belongs,
            example=self.train.ids if self.belongs else None,
            truth=self.truth,
            truth_known=np.ones(len(self.truth), bool) if self.truth_known is None else self.truth_known,
            bm25=self.candidates.bm25,
            component=None if components is None else components.names,
            size=None if components is None else components.sizes,
            query_sq=query_sq,
            train_sq=train_sq,
            sources=None if self.wanted is None else [len(one) for one in self.wanted.sources],
            searched=None if self.wanted is None else len(self.train),
        )
