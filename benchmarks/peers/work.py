"""A piece of work that every program is given: a trained model, its training examples and the queries, as files.

`export.py` writes it. Reading needs numpy and torch alone, and transformers where the model is one of theirs, so that
each peer does it in an environment of its own:

    work.json      `kind` (classes | texts), `modules` (names of the linear layers that count), `rates` (learning rates
                   of the training's moments; empty: none are known), `options` (of tdaexp's command line)
    model.pt       a classifier: any module, traced by torch.fx
    model/         a language model and its tokenizer in hub format
    moments/0.pt   the classifier's weights at moments of its training
    train.npz, queries.npz
                   `ids` [N], `inputs` and `targets`. Of classes: inputs [N, ...], targets [N]. Of texts: inputs [N, T]
                   int64, targets [N, T] (the token that follows) and `weights` [N, T], 1 where it carries loss.
                   `drawn`, as `targets`: the labels that tdaexp's EK-FAC draws from the model (of train alone)

A program's answer is a file of scores that `evaluate.py scores=FILE` reads, with what it cost beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLASSES, TEXTS = "classes", "texts"
MEGABYTE = 1e6


@dataclass(frozen=True)
class Side:
    """Training examples or queries; `weights` are None of classes, `drawn` of queries."""

    ids: list[str]
    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    drawn: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Tensor:
        """Of texts: positions [N] up to the last one that predicts a token with loss."""
        assert self.weights is not None
        return torch.tensor([int(row.nonzero().max()) + 1 for row in self.weights])

    def rows(self) -> list[tuple[list[int], list[int]]]:
        """Of texts: tokens, and labels in transformers' manner, -100 where there is no loss."""
        assert self.weights is not None
        found = []
        for tokens, targets, weights, length in zip(self.inputs, self.targets, self.weights, self.lengths, strict=True):
            labels = torch.where(weights > 0, targets, -100)[:length].tolist()
            found.append(([*tokens[:length].tolist(), int(targets[length - 1])], [-100, *labels]))
        return found


@dataclass(frozen=True)
class Work:
    """What lies in a folder."""

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """What `work.json` says."""
        return json.loads((self.folder / "work.json").read_text(encoding="utf-8"))

    @cached_property
    def train(self) -> Side:
        """The training examples."""
        return self._side("train")

    @cached_property
    def queries(self) -> Side:
        """The queries."""
        return self._side("queries")

    def model(self) -> nn.Module:
        """The model, fresh from its file, in float32 and evaluation mode."""
        if self.about["kind"] == TEXTS:
            from transformers import AutoModelForCausalLM

            return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32).eval()
        module = torch.load(self.folder / "model.pt", weights_only=False)  # a file that export.py wrote
        return module.eval().requires_grad_(True)

    def moments(self) -> list[dict[str, Tensor]]:
        """The weights at the moments that `rates` belong to."""
        return [torch.load(self.folder / "moments" / f"{k}.pt") for k in range(len(self.about["rates"]))]

    def _side(self, name: str) -> Side:
        with np.load(self.folder / f"{name}.npz") as stored:
            found = {key: stored[key] for key in stored.files}
        ids = [str(one) for one in found.pop("ids")]
        return Side(ids, *(torch.from_numpy(found[key]) if key in found else None for key in ARRAYS))


ARRAYS = ("inputs", "targets", "weights", "drawn")


def losses(model: nn.Module, side: Side, rows: slice = slice(None)) -> Tensor:
    """Cross-entropy of each example [n]; of texts the mean over the tokens with loss."""
    inputs, targets = side.inputs[rows], side.targets[rows]
    if side.weights is None:
        return nn.functional.cross_entropy(model(inputs), targets, reduction="none")
    weights = side.weights[rows]
    logits = model(input_ids=inputs).logits
    every = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return (every * weights).sum(1) / weights.sum(1)


def margins(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """log(p / (1 - p)) of each example's class [n]."""
    logits = model(inputs)
    own = torch.arange(logits.shape[1]) == targets[:, None]
    return logits.gather(1, targets[:, None])[:, 0] - logits.masked_fill(own, -torch.inf).logsumexp(1)


def margin_norms(work: Work) -> Tensor:
    """Squared norms [N] of the training examples' gradients of a classifier's margin."""
    model = work.model()
    found = []
    for inputs, targets in zip(work.train.inputs.split(1), work.train.targets.split(1), strict=True):
        gradients = torch.autograd.grad(margins(model, inputs, targets).sum(), list(model.parameters()))
        found.append(sum(float(one.square().sum()) for one in gradients))
    return torch.tensor(found)


def write_scores(path: Path, scores: np.ndarray, queries: list[str], train: list[str]) -> None:
    """Scores [query, train], positive = helps, as `evaluate.py scores=FILE.npz` reads them."""
    np.savez(path, scores=np.asarray(scores, dtype=np.float64), query=np.array(queries), train=np.array(train))


def read_scores(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """What `write_scores` wrote."""
    with np.load(path) as stored:
        return stored["scores"], stored["query"].tolist(), stored["train"].tolist()


def measured(job: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a job gives, its CPU seconds, and its peak resident memory above that before it, 10^6 bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = _status("VmRSS"), time.process_time()
    found = job()
    return found, {"seconds": time.process_time() - start, "megabytes": _status("VmHWM") - before}


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 / MEGABYTE for line in lines if line.startswith(key))


Method = Callable[..., Callable[[], np.ndarray]]
"""(work, **settings) to the job that is measured, which gives scores [query, train], or [train] of what training
examples do for themselves. What a method does before it returns the job (reading the model) is not counted."""


def main(package: str, methods: dict[str, Method], arguments: list[str] | None = None) -> Path:
    """The command line of a program: `with_PROGRAM.py FOLDER OUT METHOD [key=value …]`, values in JSON.

    Writes OUT.npz and OUT.json; returns OUT. Imports and the first touch of torch are not counted.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("method", choices=methods)
    parser.add_argument("settings", nargs="*")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = Work(given.folder)
    settings = {key: json.loads(value) for key, _, value in (one.partition("=") for one in given.settings)}
    losses(work.model(), work.queries, slice(0, 2)).sum().backward()  # libraries are loaded on first use
    scores, costs = measured(methods[given.method](work, **settings))
    queries = work.queries.ids if scores.ndim == 2 else ["itself"]
    write_scores(given.out.with_suffix(".npz"), np.atleast_2d(scores), queries, work.train.ids)
    given.out.with_suffix(".json").write_text(json.dumps({**costs, "version": version(package)}))
    return given.out
