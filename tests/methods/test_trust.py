"""The checks of methods' answers: scores at other dampings against runs at them, and nothing that they change."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_conformance import assert_same_bits, shortened

from tdaexp import influence
from tdaexp.building.covered import checked_map
from tdaexp.methods.full import Full
from tdaexp.trust.damping import damping_curve
from tdaexp.trust.measure import checks_of
from tdaexp.trust.probe import Allowance

EVERY = {"coverage", "self_check", "batch_drift", "precision_drift", "damping_stability", "rank_stability"}


def at(method, factor):
    """The method with its damping, or its ridge, multiplied."""
    name = "ridge" if hasattr(method, "ridge") else "relative_damping"
    return dataclasses.replace(method, **{name: factor * getattr(method, name)})


@pytest.mark.parametrize("name", ["ekfac", "trak"])
def test_scores_at_other_dampings_are_those_of_runs_at_them(name, configured, problem):
    problem, method = shortened(problem.after("pretrained")), configured(name)
    method.attribute(problem)
    rows, factors = [0, 5, 11], [0.1, 1.0]
    pairs = problem.pairs[rows]
    found = method.redamped(problem, rows, pairs, factors)
    for own, factor in zip(found, factors, strict=True):
        wanted = influence.scores(at(method, factor).attribute(problem)).values[rows]
        assert (np.isnan(own) == (pairs < 0)).all()
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(wanted)))


class Flipping(Full):
    """Ranks the best rows as the answer does, and at a tenth of the damping in the order `at_a_tenth`."""

    fixed_damping = None
    at_a_tenth: tuple[int, ...] = ()

    def redamped(self, problem, rows, pairs, factors):
        usual = -np.arange(pairs.shape[1], dtype=float)
        other = -np.argsort(self.at_a_tenth).astype(float)
        found = [np.tile(other if factor < 1 else usual, (len(pairs), 1)) for factor in factors]
        return np.where(pairs < 0, np.nan, np.stack(found))


@pytest.mark.parametrize(
    ("order", "value", "verdict"),
    [((0, 1, 2, 3, 4, 5), 1.0, "good"), ((0, 2, 1, 3, 4, 5), 0.5, "open"), ((5, 4, 3, 2, 1, 0), 0.0, "bad")],
)
def test_a_damping_at_which_ranks_flip_is_seen(make_problem, tmp_path, order, value, verdict):
    problem, method = make_problem(tmp_path, candidates=12).after("pretrained"), Flipping()
    method.at_a_tenth = order
    check = damping_curve(method, problem, method.attribute(problem), 2, Allowance(True, 1.0, 1))
    assert (check.value, check.verdict) == (value, verdict)
    assert check.details["kept at × 10"] == 1.0 and ("compare several" in check.says) == (verdict != "good")


@pytest.mark.parametrize("name", ["ekfac", "trak", "cg"])
def test_they_change_no_answer_no_model_and_no_random_state(name, configured, problem):
    problem, method = shortened(problem.after("pretrained")), configured(name)
    problem = dataclasses.replace(problem, map=checked_map(problem.loaded))
    store = method.attribute(problem)
    before = {key: one.clone() for key, one in problem.model.state_dict().items()}
    state, drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    checks = checks_of(method, problem, store, k=2, wanted=True)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == drawn).all()
    assert all(torch.equal(before[key], one) for key, one in problem.model.state_dict().items())
    assert all(one.grad is None for one in problem.model.parameters())
    assert_same_bits(method.attribute(problem), store)
    assert checks_of(method, problem, store, k=2, wanted=True) == checks
    names = EVERY | ({"sketch_ceiling"} if name == "trak" else {"solver_residual"} if name == "cg" else set())
    assert {one.name for one in checks} == names
    assert all(one.value is None or math.isfinite(one.value) for one in checks)
    verdicts = {one.name: one.verdict for one in checks}
    assert verdicts["self_check"] == verdicts["batch_drift"] == "good"


def test_two_stages_are_looked_at_together(configured, problem):
    method = configured("multistage")
    checks = {one.name: one for one in checks_of(method, problem, method.attribute(problem), k=2, wanted=True)}
    assert checks["batch_drift"].verdict == "good" and "two dampings" in checks["damping_stability"].says


def test_without_passes_and_without_gradients(configured, problem):
    problem = problem.after("pretrained")
    method = configured("full")
    checks = checks_of(method, problem, method.attribute(problem), k=2, wanted=False)
    told = {one.name: one.verdict for one in checks}
    assert told["batch_drift"] == told["precision_drift"] == "absent" and told["rank_stability"] != "absent"
    shared = checks_of(method, problem, method.attribute(problem), k=2, sharded=True)
    assert "trainer=fsdp" in next(one.says for one in shared if one.name == "batch_drift")
    words = configured("bm25")
    assert checks_of(words, problem, words.attribute(problem), k=2) == []
