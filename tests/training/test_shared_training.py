"""Two processes train as one does, up to rounding; stopped or killed on the way they go on to the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from shared_training import NAMES, train_all

from tdaexp.runtime.launch import Team, run_together
from tdaexp.runtime.stop import Lost, Stopped
from tdaexp.training.trajectory import Trajectory

pytestmark = pytest.mark.long
RECORDED = NAMES[1:]


def two(*arguments) -> None:
    run_together(Team("cpu", 2), {}, train_all, *arguments)


def result(folder: Path, name: str) -> Path:
    return next(folder.glob("models/small-*-record1")) if name == "language" else folder


def weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    (file,) = (result(folder / name, name) / "model").glob("*.safetensors")
    return {key: value.numpy() for key, value in load_file(file).items()}


def losses(folder: Path, name: str) -> list[float]:
    note = json.loads((result(folder / name, name) / "model" / "training.json").read_text(encoding="utf-8"))
    return note["loss"] if name == "fit" else [entry["loss"] for entry in note["curves"] if "loss" in entry]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train_all(folder)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    two(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_follow_the_trajectory_of_one(one, both, name):
    np.testing.assert_allclose(losses(both, name), losses(one, name), rtol=1e-5)
    alone = weights(one, name)
    for key, value in weights(both, name).items():
        np.testing.assert_allclose(value, alone[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", RECORDED)
def test_the_recorded_batches_are_the_same(one, both, name):
    alone, shared = (Trajectory(result(folder / name, name) / "trajectory") for folder in (one, both))
    assert alone.steps == shared.steps
    sizes = set()
    for step in alone.steps:
        for ours, theirs in zip(alone.batch(step), shared.batch(step), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        sizes.add(len(alone.batch(step)[0]))
        for key, value in alone.parameters(step).items():
            np.testing.assert_allclose(shared.parameters(step)[key], value, rtol=1e-4, atol=1e-5)
    assert 1 in sizes and len(sizes) == 2  # a batch for one of the processes only


def test_stopped_and_killed_it_goes_on_to_the_same_bits(both, tmp_path):
    with pytest.raises(Lost, match=r"process 1 of 2 ended before its time \(SIGKILL\)"):
        two(tmp_path, ("recorded",), ("recorded", 8, signal.SIGKILL))
    assert list(tmp_path.glob("recorded/resume/*.ckpt"))
    with pytest.raises(Stopped):
        two(tmp_path, ("recorded", "fit"), ("fit", 5, signal.SIGTERM))
    assert {path.name for path in tmp_path.glob("fit/resume/*.ckpt")} == {"step-00000004.ckpt", "step-00000006.ckpt"}
    two(tmp_path, ("recorded", "fit"))
    for name in ("recorded", "fit"):
        straight, found = weights(both, name), weights(tmp_path, name)
        assert straight.keys() == found.keys()
        assert all(found[key].tobytes() == value.tobytes() for key, value in straight.items())
        assert losses(tmp_path, name) == losses(both, name)
