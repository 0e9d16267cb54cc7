"""The recorded training: replay with torch's optimisers, resumption, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nursery import popen
from safetensors.torch import load_file
from tasks import LONG, OPTIMISERS, problem, recorded, settings
from torch import nn

import tdaexp.training.recorded as loop
import tdaexp.training.recorder as recorder
from tdaexp.runtime.errors import UserError
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.task_problem import check_deterministic
from tdaexp.training.trajectory import Trajectory


class Killed(BaseException):
    """As abrupt as a signal: nothing catches it."""


def gradient(task, parameters, trajectory, step):
    """The gradient of a step's mean loss, by torch's own reduction in another form: one example after the other."""
    ids, weights = trajectory.batch(step)
    losses = nn.functional.cross_entropy(
        torch.func.functional_call(task.module, parameters, (task.corpus.train.inputs[ids],)),
        task.corpus.train.targets[ids],
        reduction="none",
    )
    return torch.autograd.grad(losses @ torch.from_numpy(weights).float(), list(parameters.values()))


def replayed(trajectory, task, step, state):
    """One update by a new torch optimiser from θ_s, the moments that the steps before left, and the batch."""
    note = trajectory.settings
    parameters = {name: value.clone().requires_grad_() for name, value in trajectory.parameters(step).items()}
    groups = [
        {"params": [value], "weight_decay": trajectory.weight_decay(step)[name], "lr": trajectory.lr(step)}
        for name, value in parameters.items()
    ]
    if note.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=tuple(note.betas), eps=note.eps)
    else:
        optimizer = torch.optim.SGD(groups, momentum=note.momentum)
    if state is not None:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": copy.deepcopy(state)})
    for value, own in zip(parameters.values(), gradient(task, parameters, trajectory, step), strict=True):
        value.grad = own
    optimizer.step()
    return parameters, optimizer.state_dict()["state"]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_torch_s_optimiser_repeats_every_step_exactly(tmp_path, name):
    trajectory, task, state = recorded(tmp_path, settings(**OPTIMISERS[name])), problem(), None
    for step in range(11):
        after, state = replayed(trajectory, task, step, state)
        for index, (key, value) in enumerate(trajectory.parameters(step + 1).items()):
            assert torch.equal(after[key], value), (step, key)
            assert torch.equal(trajectory.updated(step)[key], value)
            if name.startswith("adamw"):
                assert torch.equal(trajectory.second_moment(step)[key], state[index]["exp_avg_sq"])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_any_recorded_step_alone_can_be_repeated_where_not_all_are(tmp_path, name):
    every, sparse = (recorded(tmp_path / str(k), settings(**OPTIMISERS[name], record=k)) for k in (1, 3))
    assert sparse.steps == [0, 3, 6, 9] and len(sparse) == 4
    for step in sparse.steps:
        state = None
        for earlier in range(step):
            _, state = replayed(every, problem(), earlier, state)
        kept = sparse.momentum(step)
        after, _ = replayed(sparse, problem(), step, state)
        for index, key in enumerate(after):
            assert torch.equal(sparse.parameters(step)[key], every.parameters(step)[key])
            assert torch.equal(sparse.updated(step)[key], after[key].detach())
            buffer = (state or {}).get(index, {})
            before = buffer.get("exp_avg", buffer.get("momentum_buffer"))
            assert torch.equal(kept[key], torch.zeros_like(kept[key]) if before is None else before)
    assert torch.equal(sparse.parameters(11)["0.weight"], every.parameters(11)["0.weight"])


def test_what_is_known_of_a_step(tmp_path):
    trajectory = recorded(tmp_path, settings(**OPTIMISERS["adamw-matrices"], steps=9))
    assert [len(trajectory.batch(step)[0]) for step in range(9)] == [8, 8, 8, 6, 8, 8, 8, 6, 8]
    for epoch in range(2):
        seen = np.concatenate([trajectory.batch(4 * epoch + k)[0] for k in range(4)])
        assert sorted(seen) == list(range(30)) and list(seen) != list(range(30))
    assert trajectory.batch(3)[1].dtype == np.float64 and (trajectory.batch(3)[1] == 1 / 6).all()
    assert [trajectory.lr(step) for step in range(3)] == [0.005, 0.01, 0.01]
    assert trajectory.weight_decay(0) == {"0.weight": 0.5, "0.bias": 0.0, "2.weight": 0.5, "2.bias": 0.0}
    assert trajectory.settings.total == 9 and trajectory.settings.betas == [0.9, 0.99]


def test_the_result_is_the_trajectory_s_end_and_has_curves(tmp_path):
    trajectory = recorded(tmp_path, settings())
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in trajectory.parameters(11).items())
    note = json.loads((tmp_path / "model" / "training.json").read_text())
    assert [entry["step"] for entry in note["curves"]] == list(range(12))
    assert [entry["step"] for entry in note["curves"] if "test/accuracy" in entry] == [0, 5, 10, 11]
    task = problem()
    task.module.load_state_dict(weights)
    expected = nn.functional.cross_entropy(task.module(task.corpus.test.inputs), task.corpus.test.targets)
    assert note["curves"][-1]["test/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert not (tmp_path / "resume").exists()


def content(folder: Path) -> dict[str, bytes]:
    """Every file of states and batches but the clock's."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if "seconds" not in name and ".lock" not in name}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("record", [0, 1, 2])
def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, name, record):
    keys = settings(**OPTIMISERS[name], record=record)
    monkeypatch.setattr(recorder, "BLOCK_BYTES", 500)  # two rows: the blocks end at other steps than the checkpoints
    fit_recorded(problem(), keys, folder=tmp_path / "straight", seed=3, identity="test")
    for at in (1, 4, 8, 10):
        with monkeypatch.context() as patch:
            own = loop.step_batch

            def dead(step, own=own, at=at, **rest):
                if step == at:
                    raise Killed
                return own(step, **rest)

            patch.setattr(loop, "step_batch", dead)
            with pytest.raises(Killed):
                fit_recorded(problem(), keys, folder=tmp_path / "cut", seed=3, identity="test")
    began = []
    monkeypatch.setattr(loop, "track", lambda steps, *rest: began.append(steps[0]) or iter(steps))
    fit_recorded(problem(), keys, folder=tmp_path / "cut", seed=3, identity="test")
    assert began[0] > 0  # it went on
    for part in ("trajectory", "model"):
        assert content(tmp_path / "straight" / part) == content(tmp_path / "cut" / part)
    fit_recorded(problem(), keys, folder=tmp_path / "cut", seed=3, identity="test")
    assert len(began) == 1  # a finished one is returned at once


def test_a_training_is_deterministic_on_its_device(tmp_path, monkeypatch):
    """On a GPU the same bits need torch's deterministic operations; a CPU has them."""
    seen = []
    monkeypatch.setattr(loop, "deterministic", lambda device: seen.append(device) or contextlib.nullcontext())
    recorded(tmp_path, settings(steps=2))
    assert seen == [torch.device("cpu")]


def test_a_cut_run_may_go_on_with_other_checkpoints(tmp_path, monkeypatch):
    straight = recorded(tmp_path / "straight", settings())
    with monkeypatch.context() as patch:
        patch.setattr(loop.Recorder, "end", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            recorded(tmp_path / "cut", settings())
    cut = recorded(tmp_path / "cut", settings(checkpoint_every=5))
    for step in (0, 4, 11):
        assert torch.equal(cut.parameters(step)["2.weight"], straight.parameters(step)["2.weight"])


SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from tasks import LONG, OPTIMISERS, recorded, settings
recorded(Path(sys.argv[1]), settings(**OPTIMISERS["adamw"], **LONG))
"""


@pytest.mark.long
def test_sigkill_and_again_gives_the_same_trajectory(tmp_path):
    recorded(tmp_path / "straight", settings(**OPTIMISERS["adamw"], **LONG))
    for _ in range(2):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), str(Path(__file__).parent)]
        process = popen(command)
        known = {path.name for path in (tmp_path / "cut").glob("resume/*.ckpt")}
        deadline = time.monotonic() + 240
        while {path.name for path in (tmp_path / "cut").glob("resume/*.ckpt")} <= known:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was still at work
        with pytest.raises(UserError, match=r"step \d+ of 600 is missing, .*same train\.py command"):
            Trajectory(tmp_path / "cut" / "trajectory")
    recorded(tmp_path / "cut", settings(**OPTIMISERS["adamw"], **LONG))
    for part in ("trajectory", "model"):
        assert content(tmp_path / "straight" / part) == content(tmp_path / "cut" / part)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(0.1), r"model: '1' is dropout with p=0\.1"),
        (nn.BatchNorm1d(4).train(), r"model: '1' is a batch norm in training mode"),
        (nn.BatchNorm1d(4, track_running_stats=False).eval(), r"model: '1' is a batch norm in training mode"),
    ],
)
def test_layers_that_make_a_loss_random_or_shared_are_refused(layer, message):
    with pytest.raises(UserError, match=message):
        check_deterministic(nn.Sequential(nn.Linear(4, 4), layer))
    check_deterministic(nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(4).eval()))
    off = nn.Sequential(nn.Dropout(0.1)).eval()
    check_deterministic(off)
    with pytest.raises(UserError, match=r"'0' is dropout"):
        check_deterministic(off, training=True)  # it would be a training without the dropout that was asked for


def test_bad_settings_are_one_line_before_the_first_step(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"trainer\.fit\.clip=1: .*set trainer\.fit\.clip=0"):
        recorded(tmp_path, settings(clip=1.0))
    with pytest.raises(UserError, match=r"trainer\.fit\.optimizer: unknown value 'adam'; did you mean 'adamw'"):
        settings(optimizer="adam")
    for key, value in (("momentum", 1.0), ("betas", [0.9]), ("betas", [0.9, 1.0]), ("record", -1), ("eps", -1.0)):
        with pytest.raises(UserError, match=rf"trainer\.fit\.{key}="):
            settings(**{key: value})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"record=1: the trajectory takes .* GB .*every 2-th step"):
        recorded(tmp_path / "full", settings())
    assert not (tmp_path / "full" / "trajectory" / "states").exists()


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+; lower trainer\.fit\.lr"):
        recorded(tmp_path, settings(optimizer="sgd", lr=1e30, steps=40))


def test_the_identity_keeps_trainings_apart(tmp_path):
    recorded(tmp_path, settings(steps=4))
    (tmp_path / "model" / "training.json").unlink()
    (tmp_path / "model" / "weights.safetensors").unlink()
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UserError, match="trajectory of another training"):
        recorded(tmp_path, settings(steps=4, lr=0.5))


@pytest.mark.parametrize("lost", ["folder", "block", "states"])
def test_a_lost_recording_is_made_again(tmp_path, lost):
    first = recorded(tmp_path, settings())
    kept = [{name: value.clone() for name, value in first.parameters(step).items()} for step in range(12)]
    folder = tmp_path / "trajectory"
    if lost == "block":
        first.settings.open(folder)[0].done[1] = False
    else:
        shutil.rmtree(folder if lost == "folder" else folder / "states")
    with pytest.raises(UserError):
        Trajectory(folder)
    again = recorded(tmp_path, settings())
    again.verify()
    for step, values in enumerate(kept):
        assert all(torch.equal(again.parameters(step)[name], value) for name, value in values.items())
    assert load_file(tmp_path / "model" / "weights.safetensors").keys() == kept[-1].keys()
