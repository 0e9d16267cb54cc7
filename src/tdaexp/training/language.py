"""The recorded training of a language model: every update, with the weight of each example in its loss.

A step's loss is the mean over the batch's counted tokens, so that an example's own loss is the sum over its tokens and
its weight one over the number of tokens in the batch: what `train.py` minimises without a recording, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tdaexp.data.records import Record
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.data.tokenise import tokenise
from tdaexp.models.completion_task import CompletionTask, as_tensors
from tdaexp.models.components import ComponentMap
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.scratch import Scratch
from tdaexp.runtime import cache, ranks, seal
from tdaexp.runtime.code import code_identity
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.training.recorded import finished, fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task import TrainedTask
from tdaexp.training.trained import Tokenisation

WATCHED = 64  # examples of each part whose loss is looked at on the way


@dataclass(frozen=True, eq=False)
class Completions:
    """The problem of a language model; `module.token_losses` gives each token's loss."""

    module: CompletionTask
    corpus: TensorCorpus

    @property
    def fingerprint(self) -> str:
        """Identity of the training examples."""
        return self.corpus.train.fingerprint()

    def __len__(self) -> int:
        return len(self.corpus.train)

    def losses(self, indices: np.ndarray) -> Tensor:
        """Summed loss of each example's counted tokens [B] in nats, with gradients."""
        inputs = self.corpus.train.inputs[torch.from_numpy(indices)]
        return self.module.token_losses(self._trimmed(inputs)).sum(1)

    def weights(self, indices: np.ndarray) -> np.ndarray:
        """One over the counted tokens of the batch, for each example."""
        tokens = int(self.corpus.train.inputs[torch.from_numpy(indices)][:, 1:, 1].sum())
        return np.full(len(indices), 1.0 / tokens)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss per token of the first training and test examples."""
        return {f"{part}/loss": self._loss(getattr(self.corpus, part)) for part in ("train", "test")}

    def _loss(self, examples: TensorExamples) -> float:
        inputs = examples.inputs[:WATCHED]
        total = self.module.token_losses(self._trimmed(inputs)).sum(dtype=torch.float64)
        return float(total) / int(inputs[:, 1:, 1].sum())

    def _trimmed(self, inputs: Tensor) -> Tensor:
        """Without the columns behind the last counted token."""
        width = int(inputs[..., 1].any(0).nonzero().max()) + 1
        return inputs[:, :width].to(next(self.module.parameters()).device)


@dataclass(frozen=True, eq=False)
class TrainedLanguage(TrainedTask):
    """As a task, with the query set of each test example."""

    query_set: tuple[str, ...] = ()

    @property
    def components(self) -> ComponentMap:
        """The language model's components."""
        assert isinstance(self.module, CompletionTask)  # made so below
        return self.module.components()

    @property
    def held_out(self) -> None:
        """None: every test example is a query."""

    def asked(self, sets: Sequence[str], limit: int | None) -> tuple[list[str], TensorExamples]:
        """All test examples: the queries were chosen when the training was told of them."""
        return list(self.query_set), self.corpus.test


def trained_language(
    model: Scratch | Pretrained,
    train: Sequence[Record],
    queries: dict[str, list[Record]],
    settings: FitSettings,
    tokenisation: Tokenisation,
    *,
    cache_dir: Path,
    seed: int,
    device: torch.device | str = "cpu",
) -> TrainedLanguage:
    """Train `model` on the records, recording it, or load the result; killed and called again, the training goes on."""
    start = model.start([record.text for record in train])
    keywords = {**asdict(tokenisation), "max_length": min(tokenisation.max_length, start.max_length)}
    asked = [record for records in queries.values() for record in records]
    examples = tokenise([*train, *asked], start.tokenizer, **keywords)
    tensors = as_tensors(examples, max(example.length for example in examples))
    corpus = TensorCorpus(tensors.select(range(len(train))), tensors.select(range(len(train), len(tensors))), 2)
    identity = fingerprint(code_identity(type(model)), model.start_fingerprint(), start.fingerprint)
    parts, name = (identity, corpus.train.fingerprint(), settings.deciding(), seed), f"{model.name}-{{}}"
    by = [trained_language, type(model)]
    folder = cache.entry(cache_dir, "models", *parts, by=by, name=f"{name}-record{settings.record}")
    module = CompletionTask(start.model).to(device)
    result = folder / "model"
    if not ranks.from_first(finished(folder, settings)):
        fit_recorded(Completions(module, corpus), settings, folder=folder, seed=seed, identity=identity)
    seal.require(result)
    module.load_state_dict(load_file(result / "weights.safetensors"), strict=False)
    sets = tuple(name for name, records in queries.items() for _ in records)
    return TrainedLanguage(corpus, module.requires_grad_(False), folder, sets)
