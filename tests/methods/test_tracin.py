"""TracIn: a weighted sum of dot products over kept checkpoints, with the schedule's own learning rates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, explicit_gradients, join

from tdaexp import influence
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError
from tdaexp.training.kept import kept_checkpoints
from tdaexp.training.module import learning_rate_factor


def test_rates_are_the_mean_of_the_schedule_between_checkpoints(problem):
    first, second = problem.history.moments(None, 10)
    assert (first.step, second.step) == (10, 20)
    for one, steps in ((first, range(10)), (second, range(10, 20))):
        assert one.rate == pytest.approx(0.01 * np.mean([learning_rate_factor(s, steps=20, warmup=4) for s in steps]))
    assert first.rate > 2 * second.rate > 0


def test_scores_are_weighted_sums_of_dot_products(problem, compose):
    found = compose("method=tracin").attribute(problem)
    wanted = 0.0
    folder = Path(problem.loaded.model.name_or_path).parent / "checkpoints"
    for moment in problem.history.moments(None, 10):
        loaded = Pretrained(str(folder / f"step-{moment.step}"), template="plain").load()
        sides = [
            torch.stack([join(one, list(PARAMETER)) for one in explicit_gradients(loaded, side)])
            for side in (problem.queries, problem.train)
        ]
        wanted = wanted + moment.rate * (sides[0] @ sides[1].T).numpy()
    wanted = np.take_along_axis(wanted, problem.pairs, axis=1)
    np.testing.assert_allclose(influence.scores(found), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert found.attrs["steps"] == [10, 20]


def test_one_checkpoint_alone(problem, compose):
    both, first, second = (
        influence.scores(compose("method=tracin", *keys).attribute(problem)).values
        for keys in ([], ["method.steps=[10]"], ["method.steps=[20]"])
    )
    np.testing.assert_allclose(first + second, both, rtol=1e-9, atol=1e-12)
    assert not np.allclose(first, second)


def test_a_step_that_was_not_kept(problem, compose):
    with pytest.raises(UserError, match=r"method.steps: unknown step '15'; .*choices: 10, 20"):
        compose("method=tracin", "method.steps=[15]").attribute(problem)


def test_a_model_without_checkpoints_says_what_to_do(problem, compose, monkeypatch, tmp_path):
    monkeypatch.setattr(problem.loaded.model, "name_or_path", str(tmp_path / "elsewhere" / "model"))
    with pytest.raises(UserError, match=r"elsewhere.*no checkpoints .*trainer.fit.keep=all"):
        compose("method=tracin").attribute(problem)


def test_a_training_shorter_than_its_interval_says_what_to_do(problem, compose, monkeypatch, tmp_path):
    monkeypatch.setattr(problem.loaded.model, "name_or_path", str(tmp_path / "model"))
    (tmp_path / "model").mkdir()
    note = {"settings": {"steps": 50, "checkpoint_every": 100, "keep": "all"}}
    (tmp_path / "model" / "training.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"50 steps .* every 100 .*set trainer.fit.checkpoint_every=10"):
        compose("method=tracin").attribute(problem)


def test_a_training_without_its_note(tmp_path):
    (tmp_path / "checkpoints" / "step-5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"training.json: not readable"):
        kept_checkpoints(tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "training.json").write_text(json.dumps({"settings": {"lr": 1.0, "steps": 5, "warmup": 0}}))
    (only,) = kept_checkpoints(tmp_path / "model")
    assert only.step == 5 and kept_checkpoints(tmp_path / "none" / "model") == []


def test_it_asks_for_checkpoints_when_a_model_is_trained(compose):
    assert compose("method=tracin").wants_checkpoints and not compose("method=dot").wants_checkpoints
    assert compose("method=trak", "method.checkpoints=all").wants_checkpoints
    assert not compose("method=trak").wants_checkpoints
