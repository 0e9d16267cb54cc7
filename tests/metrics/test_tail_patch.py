"""One more step against a step by hand in float64; afterwards all is as before; an adapter's matrices alone move."""

import dataclasses

import numpy as np
import pytest
import torch
from small_bank import CLASSES, EXAMPLES, QUERIES, evidence, small_corpus, softmax
from torch import nn

from tdaexp.metrics.as_it_is import AsItIs, losses_of
from tdaexp.metrics.judging_settings import TailPatch
from tdaexp.metrics.retrained import RANDOM
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.tail_patch import judge_tail_patch, steps, trained_parameters
from tdaexp.runtime.errors import UserError

RATE = 0.05


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return evidence(tmp_path_factory.mktemp("cache"), MetricSettings()).problem


def log_likelihoods(weight, bias) -> np.ndarray:
    queries = small_corpus().test
    odds = softmax(queries.inputs.double().numpy() @ weight.T + bias)
    return np.log(odds)[np.arange(QUERIES), queries.targets.numpy()]


@pytest.fixture(scope="module")
def gains(problem) -> np.ndarray:
    """What a step on each row does for each query [N, Q], by hand."""
    weight, bias = (one.detach().double().numpy() for one in problem.model.parameters())
    train, found = small_corpus().train, []
    for x, y in zip(train.inputs.double().numpy(), train.targets.numpy(), strict=True):
        error = softmax((x @ weight.T + bias)[None])[0] - np.eye(CLASSES)[y]
        after = log_likelihoods(weight - RATE * np.outer(error, x), bias - RATE * error)
        found.append(after - log_likelihoods(weight, bias))
    return np.array(found)


def test_steps_are_those_by_hand(problem, gains):
    before = [one.clone() for one in problem.model.parameters()]
    np.testing.assert_allclose(list(steps(problem, range(EXAMPLES), RATE)), gains, atol=3e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.parameters(), strict=True))
    assert not any(one.requires_grad for one in problem.model.parameters())


def test_the_table(problem, gains):
    settings = MetricSettings(bootstrap=100, tail_patch=TailPatch(RATE, top_k=2, queries=QUERIES, random=EXAMPLES))
    some = np.where(np.arange(EXAMPLES) < 20, gains.T, np.nan)  # twenty candidates of each query
    scores = {"exact": gains.T, "wrong": -gains.T, "few": some, RANDOM: np.zeros_like(gains.T)}
    judged = judge_tail_patch(AsItIs(problem, settings, controls=frozenset([RANDOM])), scores)
    found = {one.label: one.interval for one in judged}
    ranked = np.sort(gains, axis=0)
    assert found["exact"].value == pytest.approx(ranked[-2:].mean(), abs=3e-6)
    assert found["wrong"].value == pytest.approx(ranked[:2].mean(), abs=3e-6)
    assert found["few"].value == pytest.approx(np.sort(gains[:20], axis=0)[-2:].mean(), abs=3e-6)
    assert found[RANDOM].value == pytest.approx(gains.mean(), abs=3e-6)  # all rows are drawn
    assert found["exact"].low > 0 > found["wrong"].high
    assert {one.metric for one in judged} == {"tail_patch"} and {one.queries for one in judged} == {QUERIES}


def test_losses_of_rows(problem):
    weight, bias = (one.detach().double().numpy() for one in problem.model.parameters())
    train = small_corpus().train
    odds = softmax(train.inputs.double().numpy() @ weight.T + bias)
    wanted = -np.log(odds)[np.arange(EXAMPLES), train.targets.numpy()]
    np.testing.assert_allclose(losses_of(problem), wanted, atol=1e-6)


def test_half_precision_is_refused(problem):
    half = dataclasses.replace(problem, compute=dataclasses.replace(problem.compute, dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"small step is lost.*trainer.precision=float32"):
        judge_tail_patch(AsItIs(half, MetricSettings(tail_patch=TailPatch())), {})


def test_an_adapters_matrices_alone_move(problem):
    pair = {name: nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)}) for name in ("lora_A", "lora_B")}
    model = nn.ModuleDict({"q": nn.ModuleDict({"base": nn.Linear(2, 2), **pair})})
    assert len(trained_parameters(dataclasses.replace(problem, model=model))) == 4
    model._hf_peft_config_loaded = True  # as transformers marks it
    found = trained_parameters(dataclasses.replace(problem, model=model))
    assert list(found) == ["q.lora_A.default.weight", "q.lora_B.default.weight"]
