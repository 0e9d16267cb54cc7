"""A training of a small classifier that autograd goes back through as a whole: the oracle of metagradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from recorded_problem import CPU
from torch import Tensor, nn
from torch.func import functional_call

from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Compute, Problem
from tdaexp.training.bank import Recipe
from tdaexp.training.batches import step_batch
from tdaexp.training.retrain import batches_without, retrain
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification

SEED = 3


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def corpus(train: int = 13, queries: int = 3) -> TensorCorpus:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(train + queries, 4, generator=generator, dtype=torch.float64)
    targets = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
    whole = TensorExamples([f"e{k}" for k in range(train + queries)], inputs, targets)
    return TensorCorpus(whole.select(range(train)), whole.select(range(train, train + queries)), 3)


def recipe_of(settings: FitSettings, data: TensorCorpus) -> Recipe:
    return Recipe("unrolled", settings, SEED, lambda _: Classification(network(), data), data.train.ids, ())


def trained_problem(settings: FitSettings, data: TensorCorpus, cache: Path) -> Problem:
    """The problem of a network that was trained in float64 as the settings say, whose recipe is known."""
    recipe = recipe_of(settings, data)
    ended = recipe.start(None)
    retrain(ended, settings, batches_without(ended, settings, SEED, np.ones(len(data.train), bool)))
    everything = np.tile(np.arange(len(data.train)), (len(data.test), 1))
    return Problem(
        model=ended.module,
        identity="unrolled",
        map=discovered(ended.module),
        objective=Classes(),
        train=data.train,
        queries=data.test,
        query_set=["test"] * len(data.test),
        candidates=Candidates(everything, np.full(everything.shape, np.nan)),
        truth=(data.test.targets[:, None] == data.train.targets).numpy(),
        compute=Compute(CPU, torch.float64, 5, 1.0),
        cache=cache,
        seed=0,
        recipe=lambda: recipe,
    )


def unrolled(settings: FitSettings, data: TensorCorpus, weights: Tensor, groups: list[list[str]]) -> Tensor:
    """Log-probabilities [Q] of the queries' classes after a training in which `weights` [N, K] multiply the examples'
    losses, for the gradient of each of the K groups of parameters: every operation is one that autograd records.
    """
    model = network()
    named = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in named.items()}
    second = dict(first)
    for step in range(settings.steps):
        ids = step_batch(step, kind=settings.batches, seed=SEED, examples=len(data.train),
                         batch_size=settings.batch_size)  # fmt: skip
        logits = functional_call(model, named, (data.train.inputs[ids],))
        losses = nn.functional.cross_entropy(logits, data.train.targets[ids], reduction="none")
        slopes: dict[str, Tensor] = {}
        for column, names in enumerate(groups):
            loss = (losses * weights[ids, column]).sum() / len(ids)
            found = torch.autograd.grad(loss, [named[name] for name in names], create_graph=True)
            slopes.update(zip(names, found, strict=True))
        if settings.clip:
            norm = torch.sqrt(sum(slope.square().sum() for slope in slopes.values()))
            cut = torch.clamp(settings.clip / (norm + 1e-6), max=1.0)
            slopes = {name: slope * cut for name, slope in slopes.items()}
        rate = settings.lr * (1 + np.cos(np.pi * step / settings.steps)) / 2
        for name, slope in slopes.items():
            decay = settings.weight_decay if settings.decay == "all" or named[name].ndim > 1 else 0.0
            if settings.optimizer == "sgd":
                first[name] = settings.momentum * first[name] + slope + decay * named[name]
                named[name] = named[name] - rate * first[name]
                continue
            one, two = settings.betas
            first[name] = one * first[name] + (1 - one) * slope
            second[name] = two * second[name] + (1 - two) * slope**2
            root = torch.sqrt(second[name] / (1 - two ** (step + 1)) + settings.eps_root)
            moved = first[name] / (1 - one ** (step + 1)) / (root + settings.eps)
            named[name] = named[name] - rate * decay * named[name] - rate * moved
    logs = functional_call(model, named, (data.test.inputs,)).log_softmax(1)
    return logs.gather(1, data.test.targets[:, None])[:, 0]


def metagradients(settings: FitSettings, data: TensorCorpus, groups: list[list[str]]) -> np.ndarray:
    """Derivatives [Q, N, K] of `unrolled` at weights of one."""
    weights = torch.ones(len(data.train), len(groups), dtype=torch.float64, requires_grad=True)
    outputs = unrolled(settings, data, weights, groups)
    rows = [torch.autograd.grad(one, weights, retain_graph=True)[0] for one in outputs]
    return torch.stack(rows).numpy()
