"""AdamW's state at the moments of a history: what torch's own optimiser had, bias-corrected, and what has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tasks import OPTIMISERS, problem, recorded
from tasks import settings as of_task

from tdaexp.data.examples import collate
from tdaexp.runtime.errors import UserError
from tdaexp.training.batches import batch_indices
from tdaexp.training.fit import fit
from tdaexp.training.history import RecordedSteps, SavedCheckpoints
from tdaexp.training.module import causal_loss
from tdaexp.training.optimisers import build_optimizer, learning_rate
from tdaexp.training.recorded import objective
from tdaexp.training.trained import load_trained

ADAMW = OPTIMISERS["adamw"]


@pytest.fixture
def train(start, examples, settings, config, tmp_path):
    """The history of seven steps, with checkpoints after 2, 4 and 6."""

    def run(**changes):
        folder = fit(start, examples, replace(settings, **changes), folder=tmp_path / "training", seed=3)
        loaded = load_trained(folder, config, device="cpu", dtype=torch.float32)
        return SavedCheckpoints(loaded, torch.device("cpu"), torch.float32)

    return run


def test_at_a_checkpoint_both_averages_are_torchs_own(train, settings, config, records, examples):
    own = {"keep": "state", "betas": [0.8, 0.9], "clip": 0.0}
    history, fitted = train(**own), replace(settings, **own)
    model = config.start([record.text for record in records]).model.requires_grad_()
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(parameters, fitted)
    moments = {one.step: one for one in history.moments(None, 0)}
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, fitted)
        places = batch_indices(step, seed=3, examples=len(examples), batch_size=4)
        optimizer.zero_grad()
        causal_loss(model, collate([examples[int(place)] for place in places], 0)).backward()
        optimizer.step()
        if step + 1 not in moments:
            continue
        state = moments[step + 1].state()
        assert (state.updates, state.betas, state.eps) == (step + 1, (0.8, 0.9), 1e-8)
        for name, parameter in parameters.items():
            own = optimizer.state[parameter]
            first, second = own["exp_avg"] / (1 - 0.8 ** (step + 1)), own["exp_avg_sq"] / (1 - 0.9 ** (step + 1))
            torch.testing.assert_close(state.first(name), first, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(state.second(name), second, rtol=1e-4, atol=1e-12)
    assert len({one.state().identity for one in moments.values()}) == 3
    with pytest.raises(UserError, match=r"step-6/optimizer.safetensors: has no exp_avg_sq of 'none'"):
        state.second("none")


def test_a_checkpoint_without_one_says_what_to_do(train):
    history = train(keep="all")
    with pytest.raises(UserError, match=r"step-2: the checkpoint has no state .*train it with trainer.fit.keep=state"):
        history.moments([2], 0)[0].state()


def test_a_training_by_sgd_has_none(train):
    history = train(keep="all", optimizer="sgd", momentum=0.5)
    with pytest.raises(UserError, match=r"step-4: was trained by sgd.*trainer.fit.optimizer=adamw"):
        history.moments([4], 0)[0].state()
    assert (history.course().optimizer, history.course().momentum) == ("sgd", 0.5)


def test_how_a_kept_training_went(train, settings):
    history = train(keep="all", weight_decay=0.2)
    course = history.course()
    np.testing.assert_array_equal(course.rates, [learning_rate(step, settings) for step in range(7)])
    decay = {name: 0.2 if value.ndim > 1 else 0.0 for name, value in history.loaded.model.named_parameters()}
    assert course.decay == decay and course.optimizer == "adamw"


def test_in_a_recording_the_second_moment_is_that_of_the_steps_own_update(tmp_path):
    keys = of_task(**ADAMW)
    history = RecordedSteps(problem().module, recorded(tmp_path, keys))
    task = problem()
    parameters = dict(task.module.requires_grad_().named_parameters())
    optimizer = build_optimizer(parameters, keys)
    for step in range(11):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, keys)
        optimizer.zero_grad()
        objective(task, *history.trajectory.batch(step)).backward()
        optimizer.step()
        state = history.moments([step], 1)[0].state()
        assert state.updates == step + 1 and state.first is None
        for name, parameter in parameters.items():
            wanted = optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.9 ** (step + 1))
            torch.testing.assert_close(state.second(name), wanted, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match=r"has no second moment of 'none'"):
        state.second("none")


def test_a_recording_of_sgd_has_none(tmp_path):
    history = RecordedSteps(problem().module, recorded(tmp_path, of_task(**OPTIMISERS["momentum"])))
    with pytest.raises(UserError, match=r"was trained by sgd.*trainer.fit.optimizer=adamw"):
        history.moments([3], 1)[0].state()


def test_how_a_recorded_training_went(tmp_path):
    """Of every third step of eleven, each stands for three, the last for two."""
    keys = of_task(**OPTIMISERS["momentum"], record=3)
    course = RecordedSteps(problem().module, recorded(tmp_path, keys)).course()
    rates = [learning_rate(step, keys) for step in (0, 3, 6, 9)]
    np.testing.assert_array_equal(course.rates, np.repeat(rates, [3, 3, 3, 2]))
    assert (course.optimizer, course.momentum, set(course.decay.values())) == ("sgd", 0.9, {0.05})
