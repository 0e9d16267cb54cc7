"""The study: all that a method may look at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tdaexp.curvature.layers import Layers
from tdaexp.curvature.sides import Side
from tdaexp.curvature.source import LanguageSource, Source
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.gradients.capture import Loss
from tdaexp.methods.pair_study import Compute, PairStudy
from tdaexp.models.components import ComponentMap, component_map
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

__all__ = ["Compute", "Stage", "Study"]


@dataclass(frozen=True)
class Stage:
    """A second stage of training: the model that came out of it, and the examples that it was trained on."""

    loaded: LoadedModel
    examples: Examples


@dataclass(frozen=True)
class Study(PairStudy):
    """One model, one training set, its queries and the pairs to score.

    `queries` holds all query sets one after the other, `query_set` [Q] says which set each belongs to,
    `truth` [Q, C] which candidate is a source of the query, and `truth_known` [Q] of which queries that is known (None:
    of all). `cache` is the folder for what other runs can use again;
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
    truth_known: np.ndarray | None = None

    @property
    def curvature_examples(self) -> Examples:
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
    def classes(self) -> tuple[str, ...] | None:
        """What queries and fine-tuning examples end in, where the second stage classifies; else None."""
        return None if self.finetuned is None else self.finetuned.loaded.classes

    @property
    def fingerprint(self) -> str:
        """Identity of the model, the training examples and the queries."""
        return fingerprint(self.loaded.fingerprint, self.train.fingerprint(), self.queries.fingerprint())

    def components(self, names: list[str] | None = None) -> ComponentMap:
        """The model's components in parameter order, or the named ones."""
        whole = component_map(self.loaded.model)
        return whole if names is None else whole.select(names)

    @property
    def model_fingerprint(self) -> str:
        """Identity of the model."""
        return self.loaded.fingerprint

    def source(self, layers: Layers) -> Source:
        """Passes over the examples that curvature is averaged over."""
        tokens = self.compute.tokens_per_batch
        return LanguageSource(self.loaded.model, layers, self.curvature_examples, tokens)

    def train_side(self, layers: Layers, reduction: str) -> Side:
        """The training examples' losses."""
        return Side(self.loaded.model, layers, self.train, reduction=reduction)

    def query_side(self, layers: Layers, loss: Loss, reduction: str) -> Side:
        """The queries' losses."""
        return Side(self.loaded.model, layers, self.queries, loss, reduction)
