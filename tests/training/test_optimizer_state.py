"""AdamW's state beside a checkpoint: what torch has, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdaexp.runtime.errors import UserError
from tdaexp.training.optimisers import build_optimizer, learning_rate
from tdaexp.training.optimizer_state import FILE, fresh_state, read_state, save_state
from tdaexp.training.settings import FitSettings

SETTINGS = FitSettings(steps=10, lr=0.1, warmup=2, weight_decay=0.2, betas=[0.8, 0.9], clip=0.5, keep="state")


@pytest.fixture
def trained():
    """Two parameters after three updates."""
    torch.manual_seed(0)
    parameters = {"w": torch.randn(3, 2, requires_grad=True), "b": torch.randn(3, requires_grad=True)}
    optimizer = build_optimizer(parameters, SETTINGS)
    for _ in range(3):
        optimizer.zero_grad()
        sum((value**3).sum() for value in parameters.values()).backward()
        optimizer.step()
    return parameters, optimizer


def test_what_was_saved_is_read(trained, tmp_path):
    parameters, optimizer = trained
    save_state(tmp_path, parameters, optimizer, SETTINGS, 3)
    state = read_state(tmp_path / FILE, parameters)
    for name, parameter in parameters.items():
        own = optimizer.state[parameter]
        for found, key in zip(state.moments(name), ("exp_avg", "exp_avg_sq"), strict=True):
            assert torch.equal(found, own[key])
    settings = state.settings
    assert (settings.step, settings.betas, settings.clip) == (3, (0.8, 0.9), 0.5)
    assert settings.lr == learning_rate(3, SETTINGS) and settings.weight_decay == {"w": 0.2, "b": 0.0}


def test_a_fresh_state_has_made_no_update(trained):
    parameters, _ = trained
    state = fresh_state(parameters, SETTINGS, 3)
    assert state.settings.step == 0 and state.settings.lr == learning_rate(3, SETTINGS)
    assert all(not value.any() and value.shape == (3, 2) for value in state.moments("w"))


def test_damaged_and_foreign_states_are_refused(trained, tmp_path):
    parameters, optimizer = trained
    save_state(tmp_path, parameters, optimizer, SETTINGS, 3)
    file = tmp_path / FILE
    with pytest.raises(UserError, match=r"has nothing for exp_avg of 'other'"):
        read_state(file, {**parameters, "other": torch.zeros(2)})
    with pytest.raises(UserError, match=r"has the shape \[3, 2\] for exp_avg of 'w', the model \[4, 2\]"):
        read_state(file, {"w": torch.zeros(4, 2)})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="no readable state of AdamW"):
        read_state(file, parameters)
    file.write_bytes(content)
    save_file(load_file(file), file)  # without its metadata
    with pytest.raises(UserError, match="no readable state of AdamW"):
        read_state(file, parameters)


def test_the_state_of_sgd_is_not_kept():
    with pytest.raises(UserError, match="keep=state: keeps AdamW's state, not that of sgd"):
        FitSettings(optimizer="sgd", keep="state")
