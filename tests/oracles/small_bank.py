"""Logistic regression by gradient descent on whole batches: its bank, and the same by hand in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from recorded_problem import CPU
from torch import nn

from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.metrics.retrained import Retrained
from tdaexp.metrics.settings import MetricSettings
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Compute, Problem
from tdaexp.training.bank import Bank, Recipe
from tdaexp.training.retrain import batches_without, retrain
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification

EXAMPLES, QUERIES, CLASSES, RATE, STEPS = 60, 8, 3, 0.5, 30
SETTINGS = FitSettings(
    steps=STEPS, batch_size=EXAMPLES, batches="epochs", optimizer="sgd", lr=RATE, schedule="constant", warmup=0,
    weight_decay=0, clip=0,
)  # fmt: skip


def small_corpus(examples: int = EXAMPLES) -> TensorCorpus:
    """Three classes of points in the plane, near enough to each other that single examples count."""
    generator = torch.Generator().manual_seed(7)
    targets = torch.arange(examples + QUERIES) % CLASSES
    centres = torch.tensor([[1.0, 0], [-0.5, 0.9], [-0.5, -0.9]])
    inputs = centres[targets] + 0.7 * torch.randn(examples + QUERIES, 2, generator=generator)
    whole = TensorExamples([f"e{row}" for row in range(len(targets))], inputs, targets)
    return TensorCorpus(whole.select(range(examples)), whole.select(range(examples, len(targets))), CLASSES)


def network(seed: int = 1) -> nn.Module:
    """The start that the seed draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, CLASSES)).eval()


def evidence(
    folder: Path, settings: MetricSettings, fit: FitSettings = SETTINGS, examples: int = EXAMPLES
) -> Retrained:
    """The trained model with its queries, and the bank of its recipe in a cache of its own."""
    corpus = small_corpus(examples)

    def start(seed: int | None) -> Classification:
        return Classification(network(1 if seed is None else seed), corpus)

    trained = start(None)
    retrain(trained, fit, batches_without(trained, fit, 0, np.ones(examples, dtype=bool)))
    every = np.tile(np.arange(examples), (QUERIES, 1))
    problem = Problem(
        model=trained.module,
        identity="small",
        map=discovered(trained.module),
        objective=Classes(),
        train=corpus.train,
        queries=corpus.test,
        query_set=["test"] * QUERIES,
        candidates=Candidates(every, np.full(every.shape, np.nan)),
        truth=(corpus.test.targets[:, None] == corpus.train.targets).numpy(),
        compute=Compute(CPU, torch.float32, 64, 1.0),
        cache=folder,
        seed=0,
    )
    recipe = Recipe("small", fit, 0, start, corpus.train.ids, (), corpus.train.targets.numpy())
    return Retrained(problem, Bank.of(recipe, folder), settings)


def by_hand(member: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Logits [Q, 3] of the queries after gradient descent in float64, what is left out having weight 0."""
    corpus, start = small_corpus(len(member)), copy.deepcopy(network()).double()
    weight, bias = (one.detach().numpy().copy() for one in start.parameters())
    x, y = corpus.train.inputs.double().numpy(), np.eye(CLASSES)[corpus.train.targets.numpy()]
    for _ in range(steps):
        error = (softmax(x @ weight.T + bias) - y) * member[:, None] / len(member)
        weight, bias = weight - RATE * error.T @ x, bias - RATE * error.sum(0)
    return corpus.test.inputs.double().numpy() @ weight.T + bias


def log_likelihoods(member: np.ndarray) -> np.ndarray:
    """Log-probability [Q] of the queries' classes, by hand."""
    return np.log(softmax(by_hand(member)))[np.arange(QUERIES), small_corpus(len(member)).test.targets.numpy()]


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)
