"""The decomposition of a small recorded training, through the method."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp import influence
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.methods import path_run, path_sweep
from tdaexp.methods.explaind import Explaind
from tdaexp.methods.task_study import TaskStudy
from tdaexp.pathkernel.parameters import by_module
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.training.problem import Classification
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.trajectory import Trajectory

OPTIMISERS = {
    "adamw": {"optimizer": "adamw", "betas": [0.7, 0.9], "weight_decay": 0.3, "decay": "all"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05, "decay": "all"},
}
FINE = Quadrature("gauss", 4)


@pytest.fixture(scope="module", params=[(name, every) for name in OPTIMISERS for every in (1, 4)], ids=str)
def study(request, tmp_path_factory) -> TaskStudy:
    name, every = request.param
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(40, 4, generator=generator)
    whole = TensorExamples([f"e{k}" for k in range(40)], inputs, (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long())
    corpus = TensorCorpus(whole.select(range(30)), whole.select(range(30, 40)), 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    settings = FitSettings(
        steps=11, batch_size=8, lr=3e-2, warmup=2, schedule="constant", clip=0.0, batches="epochs", record=every,
        checkpoint_every=4, **OPTIMISERS[name],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("training")
    fit_recorded(Classification(module, corpus), settings, folder=folder, seed=3, identity="test")
    trajectory = Trajectory(folder / "trajectory")
    return TaskStudy(
        module, by_module(module), corpus.train, corpus.test, ["test"] * 10, trajectory, folder, torch.float64
    )


@pytest.fixture
def fresh(study, tmp_path) -> TaskStudy:
    return dataclasses.replace(study, cache=tmp_path)


def whole_change(study: TaskStudy) -> np.ndarray:
    """The summed change of the logits in the recorded steps, by the module itself."""
    total = 0.0
    for step in study.trajectory.steps:
        for sign, state in ((-1, study.trajectory.parameters(step)), (1, study.trajectory.updated(step))):
            named = {name: value.double() for name, value in state.items()}
            total = total + sign * torch.func.functional_call(study.module, named, (study.queries.inputs.double(),))
    return total.detach().numpy()


PARTS = ("influence", "regularisation", "first_moment")


def test_all_slices_sum_to_the_change_of_the_model(fresh):
    wanted = whole_change(fresh)
    for keep in ([], ["step"], ["component"], ["query", "output"], ["query", "component", "step", "output"],
                 ["train"], ["query", "train", "component", "output"]):  # fmt: skip
        found = Explaind(keep=keep, quadrature=FINE).attribute(fresh)
        assert set(found["influence"].dims) == set(keep)
        total = 0.0
        for part in PARTS:
            if part in found:
                total = total + found[part].sum([axis for axis in found[part].dims if axis not in ("query", "output")])
        scale = np.abs(wanted).max()
        if {"query", "output"} <= set(keep):
            np.testing.assert_allclose(total.transpose("query", "output"), wanted, atol=1e-6 * scale)
        else:
            np.testing.assert_allclose(float(total), wanted.sum(), atol=1e-6 * np.abs(wanted).sum())
        np.testing.assert_allclose(found["change"], wanted, atol=1e-9 * scale)
        np.testing.assert_allclose(found["explained"] + found["residual"], found["change"], atol=1e-12)
        assert float(np.abs(found["residual"]).max()) < 1e-6 * scale
        if "replay_error" in found:
            assert float(np.abs(found["replay_error"]).max()) < 1e-5 * scale


def test_the_two_ways_agree_by_component(fresh):
    by_steps = Explaind(keep=["query", "component", "output"], quadrature=FINE).attribute(fresh)
    by_examples = Explaind(keep=["query", "train", "component", "output"], quadrature=FINE).attribute(fresh)
    scale = float(np.abs(by_steps["influence"]).max())
    for part in PARTS:
        if part in by_steps and fresh.trajectory.settings.every == 1:
            other = by_examples[part].sum("train") if part == "influence" else by_examples[part]
            np.testing.assert_allclose(by_steps[part], other, atol=2e-6 * scale)


def test_importance_is_the_sum_of_absolute_values(fresh):
    full = Explaind(keep=["query", "component", "step", "output"]).attribute(fresh)
    summed = Explaind(keep=["step", "component"]).attribute(fresh)
    np.testing.assert_allclose(
        summed["importance"], np.abs(full["influence"]).sum(["query", "output"]).transpose("component", "step"),
        rtol=1e-10,
    )  # fmt: skip


def test_a_range_of_steps(fresh):
    steps = fresh.trajectory.steps
    whole = Explaind(keep=["query", "step", "output"]).attribute(fresh)
    part = Explaind(keep=["query", "step", "output"], steps=[steps[1], steps[2]]).attribute(fresh)
    np.testing.assert_allclose(part["influence"], whole["influence"].isel(step=slice(1, 3)), atol=1e-12)
    trained = Explaind(keep=["query", "train", "output"], steps=[steps[1], steps[2]]).attribute(fresh)
    np.testing.assert_allclose(
        trained["influence"].sum("train"),
        part["influence"].sum("step"),
        atol=1e-5 * float(np.abs(whole["change"]).max()),
    )


def test_single_columns_of_the_first_step(fresh):
    """By autograd: −lr/(√v̂ + ε) w ∇f · ∇L_k for AdamW's first update, −lr w ∇f · ∇L_k for SGD's."""
    trajectory, train = fresh.trajectory, fresh.train
    found = Explaind(keep=["query", "train", "output"], steps=[0, 0], quadrature=Quadrature("left", 1)).attribute(fresh)
    leaves = {name: value.double().requires_grad_() for name, value in trajectory.parameters(0).items()}

    def gradient(value):
        return torch.cat(
            [one.flatten() for one in torch.autograd.grad(value, list(leaves.values()), retain_graph=True)]
        )

    rate = trajectory.lr(0)
    if trajectory.settings.optimizer == "adamw":
        moment = trajectory.second_moment(0)
        flat = torch.cat([moment[name].double().flatten() for name in leaves])
        rate = rate / ((flat / (1 - trajectory.settings.betas[1])).sqrt() + trajectory.settings.eps)
    output = torch.func.functional_call(fresh.module, leaves, (fresh.queries.inputs.double(),))[3, 1]
    direction, wanted = rate * gradient(output), np.zeros(len(train))
    for place, weight in zip(*trajectory.batch(0), strict=True):
        logits = torch.func.functional_call(fresh.module, leaves, (train.inputs[[place]].double(),))
        loss = nn.functional.cross_entropy(logits, train.targets[[place]])
        wanted[place] = -weight * float(direction @ gradient(loss))
    assert np.count_nonzero(wanted) == 8
    column = found["influence"].transpose("query", "train", "output").values[3, :, 1]
    np.testing.assert_allclose(column, wanted, rtol=1e-9, atol=1e-15)


class Killed(BaseException):
    """As abrupt as a signal."""


def test_a_killed_sweep_goes_on_and_gives_the_same_bits(study, tmp_path, monkeypatch):
    monkeypatch.setattr(path_sweep, "STEPS_PER_BLOCK", 2)
    method = Explaind(keep=["query", "train"])
    straight = method.attribute(dataclasses.replace(study, cache=tmp_path / "straight"))
    real, killed, calls = path_sweep._save, dataclasses.replace(study, cache=tmp_path / "killed"), []

    def save(path, sums, done):
        calls.append(done)
        if len(calls) == 2:  # the block's rows are written, its sums are not
            raise Killed
        real(path, sums, done)

    monkeypatch.setattr(path_sweep, "_save", save)
    with pytest.raises(Killed):
        method.attribute(killed)
    assert method.attribute(killed).identical(straight)
    assert calls[:3] == [1, 2, 2]


@pytest.mark.parametrize("keep", [["step", "component"], ["component", "query"]], ids=str)
def test_blocks_of_steps_do_not_depend_on_each_other(study, keep, tmp_path, monkeypatch):
    """Killed after the first block, and with the blocks in the opposite order: the same bits."""
    monkeypatch.setattr(path_run, "STEPS_PER_BLOCK", 2)
    method = Explaind(keep=keep)
    straight = method.attribute(dataclasses.replace(study, cache=tmp_path / "straight"))
    written, real = [], BlockStore.write

    def write(self, block, values):
        real(self, block, values)
        written.append(block)
        if len(written) == 1:
            raise Killed

    monkeypatch.setattr(BlockStore, "write", write)
    monkeypatch.setattr(BlockStore, "each", lambda self, numbers, text: numbers[::-1])
    killed = dataclasses.replace(study, cache=tmp_path / "killed")
    with pytest.raises(Killed):
        method.attribute(killed)
    assert method.attribute(killed).identical(straight)
    assert len(written) > 1 and written[0] == max(written) and written.count(written[0]) == 1


def test_the_store_reads_back(fresh, tmp_path):
    found = Explaind(keep=["train", "query"], output="loss").attribute(fresh)
    influence.save(found, tmp_path / "influence.zarr")
    assert influence.load(tmp_path / "influence.zarr").identical(found)
    assert float(found["change"].sum()) > 0  # the sign: queries became more likely


def test_bad_settings_are_refused(fresh):
    for keys, message in (
        ({"keep": ["steps"]}, "did you mean 'step'"),
        ({"keep": ["step", "train"]}, "need a sweep for each step"),
        ({"output": "logit"}, "did you mean 'logits'"),
    ):
        with pytest.raises(UserError, match=message):
            Explaind(**keys)
    with pytest.raises(UserError, match="step 99 was not recorded"):
        Explaind(steps=[0, 99]).attribute(fresh)
    with pytest.raises(UserError, match="needs a recorded training"):
        Explaind().attribute(None)
