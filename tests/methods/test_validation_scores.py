"""Importance of single parameters, TracIn and TRAK of a small recorded training, against sums written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from recorded_problem import recorded_problem
from torch import nn
from torch.func import functional_call

from tdaexp import influence
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.methods.explaind import Explaind
from tdaexp.methods.tracin import TracIn
from tdaexp.methods.trak import TRAK
from tdaexp.papers import parameter_importance as importance_module
from tdaexp.papers.parameter_importance import parameter_importance
from tdaexp.pathkernel.outputs import OUTPUTS, of_model
from tdaexp.pathkernel.parameters import Layout
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification
from tdaexp.training.trajectory import Trajectory

RATE, DECAY, BETAS = 3e-2, 0.3, (0.7, 0.9)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Problem:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(28, 4, generator=generator)
    whole = TensorExamples([f"e{k}" for k in range(28)], inputs, (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long())
    corpus = TensorCorpus(whole.select(range(22)), whole.select(range(22, 28)), 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    settings = FitSettings(
        steps=7, batch_size=8, lr=RATE, warmup=0, schedule="constant", clip=0.0, batches="epochs", record=1,
        betas=list(BETAS), weight_decay=DECAY, decay="all",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("training")
    fit_recorded(Classification(module, corpus), settings, folder=folder, seed=3, identity="test")
    return recorded_problem(module, corpus, Trajectory(folder / "trajectory"), folder)


def flat_gradient(study: Problem, state, output: str, example, column: int = 0) -> np.ndarray:
    """∇ of one output of one example, by autograd in float64."""
    state = {name: value.double().requires_grad_() for name, value in state.items()}
    inputs, target = example
    logits = functional_call(study.model, state, (inputs[None].double(),))
    value = OUTPUTS[output].read(logits, target[None])[0, column]
    return torch.cat([one.flatten() for one in torch.autograd.grad(value, list(state.values()))]).numpy()


def pairs(examples: TensorExamples):
    return list(zip(examples.inputs, examples.targets, strict=True))


def influences(study: Problem, queries: int) -> np.ndarray:
    """Ψ(θ_i, x)_j [Q, O, D] with AdamW written out: the first moment is a sum over past batches' gradients."""
    positions, weights = np.polynomial.legendre.leggauss(3)
    total, first, second = 0.0, 0.0, 0.0
    for s in study.history.trajectory.steps:
        here, there = study.history.trajectory.parameters(s), study.history.trajectory.updated(s)
        ids, share = study.history.trajectory.batch(s)
        examples = [pairs(study.train)[k] for k in ids]
        gradient = sum(w * flat_gradient(study, here, "loss", one) for w, one in zip(share, examples, strict=True))
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        unit = np.sqrt(second / (1 - BETAS[1] ** (s + 1))) + 1e-8
        direction = -RATE * first / (1 - BETAS[0] ** (s + 1)) / unit
        for position, weight in zip((positions + 1) / 2, weights / 2, strict=True):
            point = {name: here[name] + position * (there[name] - here[name]) for name in here}
            jacobian = np.array([
                [flat_gradient(study, point, "logits", query, j) for j in range(3)]
                for query in pairs(study.queries)[:queries]
            ])  # fmt: skip
            total = total + weight * jacobian * direction
    return total


@pytest.mark.parametrize("rows", [1, 100])
def test_importance_of_parameters_and_groups(study, monkeypatch, rows):
    parameters = dict(study.model.named_parameters())
    layout = Layout.of(parameters, {"all": tuple(parameters)})
    monkeypatch.setattr(importance_module, "MEMORY", rows * 4 * 3 * layout.size)
    group = torch.arange(layout.size) % 5
    queries = (study.queries.inputs[:4], study.queries.targets[:4])
    logits = of_model(study.model, OUTPUTS["logits"].read)
    found = parameter_importance(logits, study.history.trajectory, layout, queries, group, Quadrature(nodes=3))
    wanted = influences(study, 4)
    scale = np.abs(wanted).sum((0, 1)).max()
    np.testing.assert_allclose(found.signed, wanted.sum((0, 1)), atol=2e-5 * scale)
    np.testing.assert_allclose(found.absolute, np.abs(wanted).sum((0, 1)), atol=2e-5 * scale)
    sums = np.stack([wanted[..., group.numpy() == k].sum(-1) for k in range(5)], -1)
    np.testing.assert_allclose(found.groups, np.abs(sums).sum((0, 1)), atol=2e-5 * np.abs(sums).sum((0, 1)).max())


def test_importance_sums_to_the_influence_of_the_components(study, tmp_path):
    parameters = dict(study.model.named_parameters())
    layout = Layout.of(parameters, {"last": ("2.weight", "2.bias")})
    queries = (study.queries.inputs, study.queries.targets)
    logits = of_model(study.model, OUTPUTS["logits"].read)
    group = torch.zeros(layout.size, dtype=torch.int64)
    found = parameter_importance(logits, study.history.trajectory, layout, queries, group, Quadrature(nodes=2))
    store = Explaind(keep=["component"], quadrature=Quadrature(nodes=2)).attribute(study)
    assert float(found.signed.sum()) == pytest.approx(float(store["influence"].sel(component="2")), rel=1e-4)


def kept_in(study: Problem, cache) -> Problem:
    return dataclasses.replace(study, cache=cache)


def test_tracin_is_the_sum_over_moments_of_a_recording(study, tmp_path):
    found, wanted = TracIn(moments=3).attribute(kept_in(study, tmp_path)), 0.0
    assert found.attrs["steps"] == [1, 4, 6]
    for middle, count in ((1, 3), (4, 2), (6, 2)):  # 7 steps in parts of 3, 2 and 2
        state = study.history.trajectory.parameters(middle)
        rows = [
            np.array([flat_gradient(study, state, "loss", one) for one in pairs(part)])
            for part in (study.queries, study.train)
        ]
        wanted = wanted + count * RATE * rows[0] @ rows[1].T
    scores = influence.scores(found).values
    np.testing.assert_allclose(scores, wanted, atol=1e-5 * np.abs(wanted).max())
    one = TracIn(steps=[4]).attribute(kept_in(study, tmp_path))
    assert one.attrs["steps"] == [4]
    with pytest.raises(UserError, match="unknown step '8'"):
        TracIn(steps=[8]).attribute(kept_in(study, tmp_path))


def test_trak_averages_over_moments_of_a_recording(study, tmp_path):
    """Of one moment at the end of the training it is what it is of the model alone."""
    problem = kept_in(study, tmp_path)
    alone = influence.scores(TRAK(dimensions=4, seed=4).attribute(problem)).values
    every = TRAK(dimensions=4, seed=4, checkpoints="all", moments=3).attribute(problem)
    assert every.attrs["checkpoints"] == 3 and np.isfinite(alone).all()
    assert not np.allclose(influence.scores(every).values, alone)
    # the model after the last step is that of the explained training
    with torch.no_grad():
        for name, value in study.model.named_parameters():
            torch.testing.assert_close(study.history.trajectory.parameters(7)[name], value)
