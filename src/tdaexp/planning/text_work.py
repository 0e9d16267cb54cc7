"""A study of a language model by its sizes, and what passes over its examples take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tdaexp.data.best import Best
from tdaexp.data.candidates import Candidates
from tdaexp.data.sizes import Sizes
from tdaexp.models.components import ComponentMap, component_map
from tdaexp.models.loaded import LoadedModel, head
from tdaexp.models.sharded import units_of
from tdaexp.objectives.tokens import NextToken
from tdaexp.planning.blank import Blank
from tdaexp.planning.rehearsed import Pass, RehearsedHistory, pass_of
from tdaexp.problem import Compute, Problem, Stage, Wanted
from tdaexp.runtime.fake_device import DEVICE
from tdaexp.runtime.rehearsal import Rehearsal
from tdaexp.training.footprint import training_pass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GATHERED = 3  # units: one in use, the next one on its way, and the buffer that it comes in


@dataclass(frozen=True, eq=False)
class TextWork:
    """A study by its sizes: `model` has parameters without data, on the `rehearsal`'s device.

    `pairs` [Q, C] stand for the candidates: their number is right, which they are is drawn. `finetune` is there where
    the data has a second stage; `query_sets` are the sets' sizes. `checkpoints`: how many the training keeps; `batch`:
    the examples of a step. `shares`: into how many the model is shared out. `prompts`: what the model completes.
    `best`: pairs are found, and how.
    """

    model: PreTrainedModel
    rehearsal: Rehearsal
    train: Sizes
    queries: Sizes
    pairs: np.ndarray
    dtype: torch.dtype
    tokens_per_batch: int
    cache_gb: float
    query_sets: list[int]
    finetune: Sizes | None = None
    checkpoints: int = 1
    batch: int = 0
    shares: int = 1
    prompts: Sizes | None = None
    best: Best | None = None

    @cached_property
    def every(self) -> ComponentMap:
        """All components of the model."""
        return component_map(self.model)

    @property
    def summary(self) -> str:
        """One line about the sizes."""
        return (
            f"{self.every.total:,} parameters, {len(self.train):,} training examples of {self.train.tokens.mean():.0f} "
            f"tokens, {len(self.queries):,} queries of {self.queries.tokens.mean():.0f}, {self.pairs.shape[1]:,} "
            "candidates each"
        )

    @property
    def pass_flop(self) -> float:
        """FLOP of a training pass over all examples and queries, about."""
        return 6.0 * self.every.total * float(self.train.tokens.sum() + self.queries.tokens.sum())

    @property
    def weights(self) -> float:
        """Bytes of the model's parameters on a device; of a model that is shared out, with what is gathered at once."""
        total = self.every.total
        if self.shares > 1:
            units = [sum(one.numel() for one in unit.parameters()) for unit in units_of(self.model)]
            total = total // self.shares + (total - sum(units)) + GATHERED * max(units)
        return float(total * self.dtype.itemsize)

    def training(self, sizes: Sizes, examples: int) -> Pass:
        """A training pass over each example once; the bytes are those of a batch of so many of the longest."""
        longest = int(sizes.tokens.max())
        one = pass_of(self.rehearsal, lambda: training_pass(self.model, examples, longest))
        return Pass(one.flop * float(sizes.tokens.sum()) / (examples * longest), one.bytes)

    def generation(self, sizes: Sizes, examples: int, most: int) -> Pass:
        """Completing each example to its size; the bytes are those of so many of the longest with `most` new tokens."""
        tokens = int(sizes.tokens.max()) + most

        def run() -> None:  # as at the last token: with keys and values of all, logits at one position
            with torch.no_grad():
                ids = torch.zeros(examples, tokens, dtype=torch.int64, device=DEVICE)
                self.model(input_ids=ids, use_cache=True, logits_to_keep=1)

        one, top = pass_of(self.rehearsal, run), head(self.model)
        written = 2.0 * sum(one.numel() for one in top.parameters()) * float((sizes.predicted - 1).sum())
        return Pass(one.flop * float(sizes.tokens.sum()) / (examples * tokens) + written, one.bytes)

    def problem(self, seed: int) -> Problem:
        """The problem of these sizes."""
        self.rehearsal.watch(self.model.base_model)
        truth = np.zeros(self.pairs.shape, dtype=bool)
        truth[:, 0] = True
        second, history = None, RehearsedHistory(self.model, self.checkpoints)
        if self.finetune is not None:
            loaded = LoadedModel(self.model, None, "finetuned", "", 0)  # type: ignore[arg-type]
            second = Stage(loaded, self.every, self.finetune.examples("f"), history)
        return Problem(
            model=self.model,
            identity="model",
            map=self.every,
            objective=NextToken(),
            train=Blank(self.train, "t"),
            queries=self.queries.examples("q"),
            query_set=[str(number) for number, count in enumerate(self.query_sets) for _ in range(count)],
            candidates=Candidates(self.pairs, np.zeros(self.pairs.shape)),
            truth=truth,
            compute=Compute(DEVICE, self.dtype, self.tokens_per_batch, self.cache_gb),
            cache=Path(),
            seed=seed,
            history=history,
            finetuned=second,
            wanted=None if self.best is None else Wanted(self.best, list(self.pairs[:, :1])),
        )
