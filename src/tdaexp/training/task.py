"""A classification task with its trained model: from the cache where it exists, else trained and recorded now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tdaexp.data.tensors import TensorCorpus, TensorDataset, TensorExamples
from tdaexp.models.task import TaskModel
from tdaexp.runtime import cache, ranks, seal
from tdaexp.runtime.code import code_identity
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.training.recorded import finished, fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification
from tdaexp.training.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class TrainedTask:
    """A task, its network with the trained weights (frozen, evaluation mode), and the folder of its training."""

    corpus: TensorCorpus
    module: torch.nn.Module
    folder: Path

    @property
    def note(self) -> dict[str, Any]:
        """The training's own account: `fingerprint`, `settings`, `curves`."""
        found: dict[str, Any] = json.loads((self.folder / "model" / "training.json").read_text(encoding="utf-8"))
        return found

    @property
    def fingerprint(self) -> str:
        """Identity of the trained weights."""
        return str(self.note["fingerprint"])

    @property
    def trajectory(self) -> Trajectory:
        """The recording. Errors (UserError): there is none, or it is damaged."""
        return Trajectory(self.folder / "trajectory")

    @property
    def held_out(self) -> TensorExamples | None:
        """Examples that may rank the steps of the training."""
        return self.corpus.test

    def asked(self, sets: Sequence[str], limit: int | None) -> tuple[list[str], TensorExamples]:
        """The query set of every query, and the queries (`asked_of`)."""
        return asked_of(self.corpus, sets, limit)


def asked_of(corpus: TensorCorpus, sets: Sequence[str], limit: int | None) -> tuple[list[str], TensorExamples]:
    """The query set of every query, and the queries: of each of the `sets` the first `limit` (None: all)."""
    parts = {"train": corpus.train, "test": corpus.test}
    chosen = [(name, parts[name].select(range(len(parts[name]))[:limit])) for name in sets]
    every = [examples for _, examples in chosen] or [corpus.train.select([])]
    queries = TensorExamples(
        [one for examples in every for one in examples.ids],
        torch.cat([examples.inputs for examples in every]),
        torch.cat([examples.targets for examples in every]),
    )
    return [name for name, examples in chosen for _ in examples.ids], queries


def trained_task(
    model: TaskModel,
    corpus: TensorCorpus,
    settings: FitSettings,
    *,
    cache_dir: Path,
    seed: int,
    device: torch.device | str = "cpu",
) -> TrainedTask:
    """Train `model` on `corpus.train`, or load the result; killed and called again, the training goes on."""
    identity = fingerprint(code_identity(type(model)), model.start_fingerprint(), corpus.classes)
    parts = (identity, corpus.train.fingerprint(), corpus.test.fingerprint(), settings.deciding(), seed)
    name = f"{model.name}-{{}}" + (f"-record{settings.record}" if settings.record else "")
    folder = cache.entry(cache_dir, "models", *parts, by=[trained_task, type(model)], name=name)
    module = model.build(corpus).to(device)
    result = folder / "model"
    if not ranks.from_first(finished(folder, settings)):
        fit_recorded(Classification(module, corpus), settings, folder=folder, seed=seed, identity=identity)
    seal.require(result)
    module.load_state_dict(load_file(result / "weights.safetensors"), strict=False)
    return TrainedTask(corpus, module.requires_grad_(False), folder)


def check_pair(model: Any, dataset: Any) -> bool:
    """Whether this is a task; one half of a task with a language model or with text is refused."""
    if isinstance(model, TaskModel) == isinstance(dataset, TensorDataset):
        return isinstance(model, TaskModel)
    if isinstance(model, TaskModel):
        raise UserError(
            f"model={model.name}: cannot read text; choose dataset=modular_addition, mnist, digits or cifar2"
        )
    raise UserError(f"dataset={type(dataset).__name__}: is not text; choose model=grokking, mnist_cnn or resnet9")
