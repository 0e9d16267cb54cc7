"""kronfluence on a piece of work: EK-FAC with its own damping rule, a tenth of each matrix's mean Λ.

Its task interface separates the loss that factors belong to (`sample=True`) from that of the scores. As here, the first
is a sum over an example's tokens and the second their mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from work import Side, Work, main

BATCH = 32


class Rows(torch.utils.data.Dataset):
    """The examples of one side; drawn labels are the targets where there are none."""

    def __init__(self, side: Side) -> None:
        self.side, self.drawn = side, side.targets if side.drawn is None else side.drawn
        self.weights = torch.ones_like(side.targets) if side.weights is None else side.weights

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        found = {"x": self.side.inputs[index], "y": self.side.targets[index], "drawn": self.drawn[index]}
        return {**found, "weights": self.weights[index]}


class Question(Task):
    """The loss and the measurement, over the linear layers that count."""

    def __init__(self, work: Work, labels: str) -> None:
        super().__init__()
        self.modules, self.labels, self.texts = work.about["modules"], labels, work.about["kind"] == "texts"

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Of labels that are drawn here ("own") or handed over ("ours") the sum over tokens, else the mean."""
        logits = model(input_ids=batch["x"]).logits if self.texts else model(batch["x"])
        chosen = batch["y"]
        if sample and self.labels == "ours":
            chosen = batch["drawn"]
        elif sample:
            chosen = torch.multinomial(logits.detach().flatten(0, -2).softmax(-1), 1).view_as(batch["y"])
        every = nn.functional.cross_entropy(logits.flatten(0, -2), chosen.flatten(), reduction="none")
        every = every.view_as(batch["y"]) * batch["weights"]
        if self.texts and not sample:
            every = every / batch["weights"].sum(1, keepdim=True)
        return every.sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """A query's loss: with it, positive scores help."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """The layers that count."""
        return self.modules

    def get_attention_mask(self, batch: Any) -> Tensor | None:
        """Which positions count in A and S: up to the last one that predicts."""
        if not self.texts:
            return None
        return batch["weights"].flip(1).cumsum(1).flip(1).clamp(max=1)


def ekfac(work: Work, labels: str = "own") -> Callable[[], np.ndarray]:
    """Scores of all pairs."""
    analyzer, folder = _analyzer(work, labels)
    train, queries = Rows(work.train), Rows(work.queries)

    def job() -> np.ndarray:
        with folder:
            analyzer.fit_all_factors("f", train, per_device_batch_size=BATCH, factor_args=FactorArguments("ekfac"))
            sizes = {"per_device_query_batch_size": len(queries), "per_device_train_batch_size": BATCH}
            settings = ScoreArguments(damping_factor=None)
            analyzer.compute_pairwise_scores("s", "f", queries, train, **sizes, score_args=settings)
            return analyzer.load_pairwise_scores("s")["all_modules"].numpy()

    return job


def itself(work: Work, labels: str = "own") -> Callable[[], np.ndarray]:
    """Self-influence of the training examples."""
    analyzer, folder = _analyzer(work, labels)
    train = Rows(work.train)

    def job() -> np.ndarray:
        with folder:
            analyzer.fit_all_factors("f", train, per_device_batch_size=BATCH, factor_args=FactorArguments("ekfac"))
            settings = ScoreArguments(damping_factor=None)
            analyzer.compute_self_scores("s", "f", train, per_device_train_batch_size=BATCH, score_args=settings)
            return analyzer.load_self_scores("s")["all_modules"].numpy()

    return job


def _analyzer(work: Work, labels: str) -> tuple[Analyzer, tempfile.TemporaryDirectory[str]]:
    task, folder = Question(work, labels), tempfile.TemporaryDirectory()
    model = prepare_model(work.model(), task)
    return Analyzer("a", model, task, cpu=True, output_dir=folder.name, disable_tqdm=True), folder


if __name__ == "__main__":
    main("kronfluence", {"ekfac": ekfac, "itself": itself})
