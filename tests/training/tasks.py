"""A small task for recorded trainings: 30 examples, batches of 8, so that each epoch ends in a smaller batch."""

from __future__ import annotations

import torch
from torch import nn

from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification
from tdaexp.training.trajectory import Trajectory

OPTIMISERS = {
    "adamw": {"optimizer": "adamw", "betas": [0.7, 0.9], "weight_decay": 0.1, "decay": "all"},
    "adamw-matrices": {"optimizer": "adamw", "betas": [0.9, 0.99], "weight_decay": 0.5, "decay": "matrices"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05, "decay": "all", "schedule": "linear"},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "cosine"},
}
LONG = {"steps": 600, "checkpoint_every": 20}  # time enough to be killed


def corpus(examples: int = 30) -> TensorCorpus:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(examples + 10, 4, generator=generator)
    targets = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
    whole = TensorExamples([f"e{i}" for i in range(examples + 10)], inputs, targets)
    return TensorCorpus(whole.select(range(examples)), whole.select(range(examples, examples + 10)), 3)


def problem() -> Classification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    return Classification(module, corpus())


def settings(**changes) -> FitSettings:
    base = {"steps": 11, "batch_size": 8, "lr": 1e-2, "warmup": 2, "schedule": "constant", "clip": 0.0,
            "batches": "epochs", "record": 1, "checkpoint_every": 3, "evaluate_every": 5}  # fmt: skip
    return FitSettings(**{**base, **changes})


def recorded(folder, keys, seed: int = 3) -> Trajectory:
    fit_recorded(problem(), keys, folder=folder, seed=seed, identity="test")
    return Trajectory(folder / "trajectory")
