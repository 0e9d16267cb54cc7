"""A recorded training as a history: which steps stand for it, their rates and weights. Checkpoints: `test_tracin`."""

from __future__ import annotations

import pytest
import torch
from tasks import OPTIMISERS, problem, recorded, settings

from tdaexp.runtime.errors import UserError
from tdaexp.training.history import RecordedSteps


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Eleven steps, the first two of them a warm-up."""
    trajectory = recorded(tmp_path_factory.mktemp("training"), settings(**OPTIMISERS["adamw"]))
    return RecordedSteps(problem().module.double(), trajectory)


def test_moments_are_the_middles_of_even_parts_and_their_rates_add_up(history):
    found = history.moments(None, 3)
    assert [one.step for one in found] == [2, 6, 9]  # of 0 to 3, 4 to 7, 8 to 10
    rates = [history.trajectory.lr(step) for step in range(11)]
    assert len(set(rates)) > 1
    assert [one.rate for one in found] == pytest.approx([sum(rates[:4]), sum(rates[4:8]), sum(rates[8:])])
    assert [one.step for one in history.moments(None, 11)] == list(range(11))
    assert [(one.step, one.rate) for one in history.moments([5, 1], 3)] == [(5, rates[5]), (1, rates[1])]


def test_a_moment_has_the_weights_before_its_step_in_the_models_type(history):
    before = {name: value.clone() for name, value in history.model.state_dict().items()}
    first, last = history.moments([0, 10], 1)
    for one, step in ((first, 0), (last, 10)):
        loaded = one.load()
        for name, value in history.trajectory.parameters(step).items():
            assert torch.equal(loaded.get_parameter(name), value.double())
    assert not torch.equal(first.load()[0].weight, last.load()[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in history.model.state_dict().items())


def test_what_was_not_recorded(history):
    with pytest.raises(UserError, match=r"method.steps: unknown step '15'"):
        history.moments([3, 15], 1)
    with pytest.raises(UserError, match=r"method.moments=0: must be at least 1"):
        history.moments(None, 0)
    assert [one.step for one in history.moments(None, 12)] == list(range(11))  # there are no more
