"""Metagradients against autograd through the whole training, and against trainings with other weights."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from torch import nn
from unrolled import corpus, elsewhere, metagradients, trained_problem, unrolled

from tdaexp.methods.magic import Magic
from tdaexp.training.settings import FitSettings

EPOCHS = {"steps": 20, "batch_size": 5, "lr": 0.05, "warmup": 0, "clip": 0.0, "batches": "epochs", "decay": "all"}
STREAM = {**EPOCHS, "batch_size": 16, "batches": "stream"}
"""A batch of more examples than there are holds some twice."""
ADAMW = {"betas": [0.8, 0.95], "weight_decay": 0.1}
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05}
TRAININGS = {
    "adamw": {**EPOCHS, **ADAMW},
    "adamw, rooted": {**EPOCHS, **ADAMW, "eps_root": 1e-4},
    "adamw, examples twice in a batch": {**STREAM, **ADAMW},
    "adamw, clipped": {**EPOCHS, **ADAMW, "clip": 0.2, "decay": "matrices"},
    "sgd": {**EPOCHS, **SGD},
    "sgd, examples twice in a batch": {**STREAM, **SGD},
    "sgd, clipped": {**EPOCHS, **SGD, "clip": 0.2},
}


def groups_of(problem) -> list[list[str]]:
    return [list(names) for names in problem.map.members(problem.model).values()]


@pytest.mark.parametrize("name", TRAININGS)
def test_scores_are_those_of_autograd_through_the_whole_training(name, tmp_path):
    """20 steps in epochs of 13 examples, whose last batches are smaller."""
    settings, data = FitSettings(**TRAININGS[name]), corpus()
    problem = trained_problem(settings, data, tmp_path)
    found = Magic(trials=0).attribute(problem)
    wanted = metagradients(settings, data, groups_of(problem))
    assert found["influence"].dims == ("query", "candidate", "component")
    for query in range(len(wanted)):
        scale = np.abs(wanted[query]).max()
        assert scale > 1e-4
        np.testing.assert_allclose(found["influence"].values[query], wanted[query], rtol=0, atol=1e-10 * scale)
    assert found.attrs["replay_error"] < 1e-12
