"""The decomposition of a small recorded training, through the method."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from recorded_problem import having_model, recorded_problem
from torch import nn

from tdaexp import influence
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.methods.explaind import Explaind
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.paths import blocks as path_blocks
from tdaexp.paths import decomposition as path_job
from tdaexp.paths import reverse as path_sweep
from tdaexp.problem import Problem
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification
from tdaexp.training.trajectory import Trajectory

OPTIMISERS = {
    "adamw": {"optimizer": "adamw", "betas": [0.7, 0.9], "weight_decay": 0.3, "decay": "all", "eps_root": 1e-5},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05, "decay": "all"},
}
FINE = Quadrature("gauss", 4)


@pytest.fixture(scope="module", params=[(name, every) for name in OPTIMISERS for every in (1, 4)], ids=str)
def study(request, tmp_path_factory) -> Problem:
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
    return recorded_problem(module, corpus, trajectory, folder, dtype=torch.float64)


@pytest.fixture
def fresh(study, tmp_path) -> Problem:
    return dataclasses.replace(study, cache=tmp_path)


def whole_change(study: Problem) -> np.ndarray:
    """The summed change of the logits in the recorded steps, by the module itself."""
    total = 0.0
    for step in study.history.trajectory.steps:
        for sign, state in (
            (-1, study.history.trajectory.parameters(step)),
            (1, study.history.trajectory.updated(step)),
        ):
            named = {name: value.double() for name, value in state.items()}
            total = total + sign * torch.func.functional_call(study.model, named, (study.queries.inputs.double(),))
    return total.detach().numpy()


PARTS = ("influence", "regularisation", "first_moment")


@pytest.mark.long
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
        if part in by_steps and fresh.history.trajectory.settings.every == 1:
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
    steps = fresh.history.trajectory.steps
    whole = Explaind(keep=["query", "step", "output"]).attribute(fresh)
    part = Explaind(keep=["query", "step", "output"], steps=[steps[1], steps[2]]).attribute(fresh)
    np.testing.assert_allclose(part["influence"], whole["influence"].isel(step=slice(1, 3)), atol=1e-12)
    trained = Explaind(keep=["query", "train", "output"], steps=[steps[1], steps[2]]).attribute(fresh)
    np.testing.assert_allclose(
        trained["influence"].sum("train"),
        part["influence"].sum("step"),
        atol=1e-5 * float(np.abs(whole["change"]).max()),
    )


PARTITIONED = [["query", "part", "output"], ["part"], ["query", "part", "component", "step", "output"]]


@pytest.mark.parametrize("keep", PARTITIONED, ids=str)
def test_parts_sum_to_the_whole_and_are_sums_of_their_examples(fresh, keep):
    found = Explaind(keep=keep, partition="target", quadrature=FINE).attribute(fresh)
    assert set(found["influence"].dims) == set(keep) and list(found["part"].values) == ["0", "1", "2"]
    kept = [axis for axis in keep if axis != "part"]
    whole = Explaind(keep=kept, quadrature=FINE).attribute(fresh)
    # sums over queries or outputs cancel: what they are exact to is a share of the terms
    scale = float(np.abs(whole["change"]).max() if "query" in keep else np.abs(whole["change"]).sum())
    parts = found["influence"].sum("part").transpose(*whole["influence"].dims)
    np.testing.assert_allclose(parts, whole["influence"], atol=1e-5 * scale)  # float32 records
    for name in ("regularisation", "first_moment"):
        if name in whole:
            np.testing.assert_allclose(found[name].transpose(*whole[name].dims), whole[name], atol=1e-12 * scale)
    np.testing.assert_allclose(found["residual"], whole["residual"], atol=1e-10)
    assert float(np.abs(found["replay_error"]).max()) < 1e-5 * float(np.abs(whole["change"]).max())
    if "step" not in keep and fresh.history.trajectory.settings.every == 1:
        single = Explaind(keep=[*kept, "train"], quadrature=FINE).attribute(fresh)
        for number in range(3):
            mine = single["influence"].isel(train=np.flatnonzero(fresh.train.targets.numpy() == number)).sum("train")
            one = found["influence"].isel(part=number)
            np.testing.assert_allclose(one.transpose(*mine.dims), mine, atol=1e-9 * scale)


def test_a_partition_is_named_by_target_key_or_file(fresh, tmp_path):
    halves = {name: "ab"[int(name[1:]) % 2] for name in fresh.train.ids}
    file = tmp_path / "parts.json"
    file.write_text(json.dumps(halves))
    keyed = dataclasses.replace(fresh.train, meta={"half": np.array([halves[name] for name in fresh.train.ids])})
    one = Explaind(keep=["part"], partition=str(file)).attribute(fresh)
    two = Explaind(keep=["part"], partition="meta:half").attribute(dataclasses.replace(fresh, train=keyed))
    assert list(one["part"].values) == ["a", "b"]
    np.testing.assert_array_equal(one["influence"], two["influence"])
    file.write_text(json.dumps({"e0": "a"}))
    for named, message in (
        (str(file), "names no part for the training example 'e1'"),
        ("meta:hlf", "unknown key 'hlf'; did you mean 'half'"),
        ("classes", "must be target, meta:KEY or FILE.json"),
        (str(tmp_path / "none.json"), "not readable"),
    ):
        with pytest.raises(UserError, match=message):
            Explaind(keep=["part"], partition=named).attribute(dataclasses.replace(fresh, train=keyed))


def test_queries_in_groups_and_summed_axes_give_the_same_numbers(fresh, monkeypatch):
    keep = ["query", "train", "component", "output"]
    whole = Explaind(keep=keep).attribute(fresh)
    monkeypatch.setattr(path_job, "SWEEP_MEMORY", 2 * 51 * 8 * 3 * 4)  # four queries at a time
    grouped = Explaind(keep=keep).attribute(dataclasses.replace(fresh, cache=fresh.cache / "grouped"))
    assert len(list((fresh.cache / "grouped").glob("explaind/*/group-*"))) == 3
    scale = float(np.abs(whole["influence"]).max())
    for name in ("influence", "regularisation", "residual", "change"):
        np.testing.assert_allclose(grouped[name], whole[name], atol=1e-13 * max(scale, 1))
    for axes in (["query", "train"], ["train", "output"], ["train"], ["train", "component"]):
        found = Explaind(keep=axes).attribute(fresh)
        summed = whole["influence"].sum([axis for axis in keep if axis not in axes])
        assert set(found["influence"].dims) == set(axes)
        np.testing.assert_allclose(found["influence"].transpose(*summed.dims), summed, atol=1e-12 * scale)
        np.testing.assert_allclose(found["residual"], whole["residual"], atol=1e-12)


def test_a_share_of_the_steps(fresh):
    steps = fresh.history.trajectory.steps
    history = dataclasses.replace(fresh.history, held_out=fresh.queries)
    study = dataclasses.replace(fresh, history=history)
    keep = ["query", "step", "output"]
    whole = Explaind(keep=keep).attribute(study)
    part = Explaind(keep=keep, subsample=0.5).attribute(study)

    def loss(state):
        named = {name: value.double() for name, value in state.items()}
        logits = torch.func.functional_call(fresh.model, named, (fresh.queries.inputs.double(),))
        return float(nn.functional.cross_entropy(logits, fresh.queries.targets))

    changes = [
        abs(loss(fresh.history.trajectory.updated(k)) - loss(fresh.history.trajectory.parameters(k))) for k in steps
    ]
    count = -(-len(steps) // 2)
    wanted = sorted(sorted(steps, key=lambda k: -changes[steps.index(k)])[:count])
    assert list(part["step"].values) == wanted != steps[:count]
    np.testing.assert_allclose(part["influence"], whole["influence"].sel(step=wanted), atol=1e-12)
    even = Explaind(keep=keep, subsample=0.5, subsample_by="uniform").attribute(fresh)
    assert even.sizes["step"] == count
    with pytest.raises(UserError, match=r"no held-out examples; use method\.subsample_by=uniform"):
        Explaind(subsample=0.5).attribute(fresh)


def test_the_store_s_size_is_told_and_must_fit(fresh, caplog, monkeypatch):
    with caplog.at_level("INFO"):
        found = Explaind(keep=["query", "component", "step", "output"]).attribute(fresh)
    wanted = sum(found[name].nbytes for name in found.data_vars)
    assert f"the store takes {wanted / 1e9:.3g} GB" in caplog.text
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"has 1e-06 GB free; keep fewer axes"):
        Explaind(keep=["query", "train", "output"]).attribute(dataclasses.replace(fresh, cache=fresh.cache / "full"))
    assert not (fresh.cache / "full" / "explaind").exists()


def test_single_examples_are_those_columns_of_the_whole(fresh):
    keep = ["query", "train", "component", "output"]
    if fresh.history.trajectory.settings.every > 1:
        with pytest.raises(UserError, match="where every step was recorded"):
            Explaind(keep=keep, single=7).attribute(fresh)
        return
    whole = Explaind(keep=keep).attribute(fresh)
    some = Explaind(keep=keep, single=2).attribute(fresh)  # several batches hold neither
    scale = float(np.abs(whole["influence"]).max())
    np.testing.assert_allclose(some["influence"], whole["influence"].isel(train=slice(2)), atol=1e-12 * scale)
    others = whole["influence"].isel(train=slice(2, None)).sum("train")
    np.testing.assert_allclose(some["rest"], others, atol=1e-5 * scale)
    with pytest.raises(UserError, match="must be from 1 to 30"):
        Explaind(keep=keep, single=31).attribute(fresh)
    with pytest.raises(UserError, match="add train to"):
        Explaind(single=3).attribute(fresh)


def test_steps_whose_gradients_are_forgotten_are_not_replayed(fresh, monkeypatch):
    if fresh.history.trajectory.settings.every > 1:
        return
    counted = {"keep": ["query", "train", "output"], "steps": [9, 10]}
    whole = Explaind(**counted).attribute(fresh)
    assert path_sweep._reach(0.9, torch.float32) == 152 and path_sweep._reach(0.0, torch.float32) == 0
    assert 0.9**152 < torch.finfo(torch.float32).eps < 0.9**151
    seen = []
    replay = path_job.step_of
    monkeypatch.setattr(path_job, "step_of", lambda *args: seen.append(args[1]) or replay(*args))
    # as if the averages forgot faster: what is left out is then no rounding, and only its steps are
    monkeypatch.setattr(path_sweep, "_reach", lambda decay, dtype: 3)
    cut = Explaind(**counted).attribute(dataclasses.replace(fresh, cache=fresh.cache / "cut"))
    assert sorted(set(seen)) == [6, 7, 8, 9, 10]
    assert not cut["influence"].equals(whole["influence"])


def test_single_columns_of_the_first_step(fresh):
    """By autograd: −lr/(√(v̂ + ε_r) + ε) w ∇f · ∇L_k for AdamW's first update, −lr w ∇f · ∇L_k for SGD's."""
    trajectory, train = fresh.history.trajectory, fresh.train
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
        corrected = flat / (1 - trajectory.settings.betas[1])
        rate = rate / ((corrected + trajectory.settings.eps_root).sqrt() + trajectory.settings.eps)
    output = torch.func.functional_call(fresh.model, leaves, (fresh.queries.inputs.double(),))[3, 1]
    direction, wanted = rate * gradient(output), np.zeros(len(train))
    for place, weight in zip(*trajectory.batch(0), strict=True):
        logits = torch.func.functional_call(fresh.model, leaves, (train.inputs[[place]].double(),))
        loss = nn.functional.cross_entropy(logits, train.targets[[place]])
        wanted[place] = -weight * float(direction @ gradient(loss))
    assert np.count_nonzero(wanted) == 8
    column = found["influence"].transpose("query", "train", "output").values[3, :, 1]
    np.testing.assert_allclose(column, wanted, rtol=1e-9, atol=1e-15)


class Killed(BaseException):
    """As abrupt as a signal."""


def blocks_of(study):
    return 2 if study.history.trajectory.settings.every == 1 else 1


def test_a_killed_sweep_goes_on_and_gives_the_same_bits(study, tmp_path, monkeypatch):
    monkeypatch.setattr(path_blocks, "STEPS_PER_BLOCK", blocks_of(study))
    method, at = Explaind(keep=["query", "train"]), 2
    straight = method.attribute(dataclasses.replace(study, cache=tmp_path / "straight"))
    real, killed, calls = path_blocks._save, dataclasses.replace(study, cache=tmp_path / "killed"), []

    def save(path, sums, done):
        calls.append((path.parent.name, done))
        if len(calls) == at:  # the block's rows are written, its sums are not
            raise Killed
        real(path, sums, done)

    monkeypatch.setattr(path_blocks, "_save", save)
    with pytest.raises(Killed):
        method.attribute(killed)
    assert method.attribute(killed).identical(straight)
    assert calls[at - 1] == calls[at] and len(set(calls)) == len(calls) - 1


FORWARDS = (
    {"keep": ["step", "component"]},
    {"keep": ["component", "query"]},
    {"keep": ["query", "part"], "partition": "target"},  # its averages are caught up with
    {"keep": ["step", "output"], "subsample": 0.5, "subsample_by": "uniform"},
    {"keep": ["query", "train"]},  # among the first looks at how complete it is
)


@pytest.mark.parametrize("keys", FORWARDS, ids=str)
def test_blocks_of_steps_do_not_depend_on_each_other(study, keys, tmp_path, monkeypatch):
    """Killed after the first block, and with the blocks in the opposite order: the same bits."""
    monkeypatch.setattr(path_blocks, "STEPS_PER_BLOCK", blocks_of(study))
    method = Explaind(**keys)
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
    forwards = written[: written[0] + 1]  # a sweep's blocks come after them
    assert len(forwards) > 1 and forwards == sorted(forwards, reverse=True)


def test_the_store_reads_back(fresh, tmp_path):
    found = Explaind(keep=["train", "query"], output="loss").attribute(fresh)
    influence.save(found, tmp_path / "influence.zarr")
    assert influence.load(tmp_path / "influence.zarr").identical(found)
    assert float(found["change"].sum()) > 0  # the sign: queries became more likely


def test_bad_settings_are_refused(fresh):
    for keys, message in (
        ({"keep": ["steps"]}, "did you mean 'step'"),
        ({"output": "logit"}, "did you mean 'logits'"),
        ({"keep": ["part"]}, "partition=None: goes with the axis part"),
        ({"partition": "target"}, "partition=target: goes with the axis part"),
        ({"keep": ["part", "train"], "partition": "target"}, "the same axis"),
        ({"subsample": 0.0}, "must be a share above 0"),
        ({"subsample": 0.5, "subsample_by": "los_change"}, "did you mean 'loss_change'"),
    ):
        with pytest.raises(UserError, match=message):
            Explaind(**keys)
    with pytest.raises(UserError, match="step 99 was not recorded"):
        Explaind(steps=[0, 99]).attribute(fresh)
    with pytest.raises(UserError, match="need a sweep for each step"):
        Explaind(keep=["step", "train"]).attribute(fresh)
    with pytest.raises(UserError, match="needs a recorded training"):
        Explaind().attribute(dataclasses.replace(fresh, history=None))


KINKED = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize(("module", "rule", "said"), [(KINKED, "secant", "auto: secant"), (None, "gauss", "'gelu'")])
def test_the_default_rule_goes_by_the_network_and_says_so(fresh, caplog, module, rule, said):
    study = fresh if module is None else having_model(fresh, module)
    with caplog.at_level(logging.INFO):
        found = Explaind(keep=["query", "output", "component"]).attribute(study)
    assert found.attrs["rule"] == rule and said in caplog.text and (found["nodes"] == 1).all()
    complete = float(abs(found["residual"]).max()) < 1e-12
    assert complete == (rule == "secant")
    np.testing.assert_allclose(found["change"], whole_change(study), atol=1e-12)


def test_training_examples_by_the_secant_rule_sum_to_the_change(fresh):
    study = having_model(fresh, KINKED)
    found = Explaind(keep=["query", "train", "output"], quadrature=Quadrature("secant")).attribute(study)
    assert float(abs(found["residual"]).max()) < 1e-12
    total = sum(found[part].sum("train") if "train" in found[part].dims else found[part]
                for part in PARTS if part in found)  # fmt: skip
    np.testing.assert_allclose(total + found.get("replay_error", 0), found["change"], atol=1e-10)


def test_the_secant_rule_is_refused_for_a_network_that_has_none(fresh):
    study = having_model(fresh, nn.Sequential(nn.Linear(4, 6), nn.Softsign(), nn.Linear(6, 3)).eval())
    with pytest.raises(UserError, match="no rule for this use of the operation"):
        Explaind(quadrature=Quadrature("secant")).attribute(study)
    assert Explaind().attribute(study).attrs["rule"] == "gauss"


FOUR = [3, 6]
"""First and last of a few steps, where each takes many nodes."""
CHECKED = (["query", "train"], ["train"], ["query", "component"], ["step", "component"])


def smallest(study: Problem) -> bool:
    """One of the studies is enough for what takes many nodes."""
    settings = study.history.trajectory.settings
    return settings.every == 1 and settings.optimizer == "adamw"


@pytest.mark.long
@pytest.mark.parametrize("module", [KINKED, None], ids=["relu", "gelu"])
def test_the_entries_are_off_by_what_the_store_says(fresh, module):
    if not smallest(fresh):
        return
    study = fresh if module is None else having_model(fresh, module)
    few = FOUR if module is None else None  # where kinks lie decides a single step's error: many are averaged
    rule = "gauss" if module is None else "secant"
    for keep in CHECKED:
        found, exact = (
            Explaind(keep=keep, steps=few, quadrature=Quadrature(rule, count)).attribute(study)
            for count in (1, 8)  # as exact as need be
        )
        mine, wanted = (one["influence"].transpose(*found["influence"].dims).values for one in (found, exact))
        true, said = np.linalg.norm(mine - wanted) / np.linalg.norm(wanted), found.attrs["entry_error"]
        assert true / 2 < said < 2 * true, (keep, true, said)
        assert ("entry_error" in found) == ("step" in keep)
        if "step" in keep:
            assert found["entry_error"].dims == ("step",) and (found["entry_error"] > 0).all()
            if module is None:  # where kinks lie decides a single step's
                axis = found["influence"].dims.index("component")
                each = np.linalg.norm(mine - wanted, axis=axis) / np.linalg.norm(wanted, axis=axis)
                assert np.abs(np.log2(each / found["entry_error"].values)).max() < 1
        assert rule == "gauss" or float(abs(found["residual"]).max()) < 1e-12  # the sums say nothing of it


@pytest.mark.long
def test_entries_that_are_off_are_told_with_what_to_set(fresh, caplog):
    if not smallest(fresh):
        return
    study, keep = having_model(fresh, KINKED), ["query", "component"]
    Explaind(keep=keep, quadrature=Quadrature("left")).attribute(study)
    assert "set method.quadrature.tolerance=0.01 for more nodes" in caplog.text
    caplog.clear()
    few = Explaind(keep=keep, steps=FOUR, quadrature=Quadrature("secant", tolerance=1e-9, most=2)).attribute(study)
    assert "above method.quadrature.tolerance=1e-09; allow more pieces by method.quadrature.most=8" in caplog.text
    assert few["nodes"].max() == 2
    wanted = Quadrature("secant", tolerance=float(few.attrs["entry_error"]) / 10, most=64)
    fine = Explaind(keep=keep, steps=FOUR, quadrature=wanted).attribute(study)
    assert fine["nodes"].max() > 2 and fine.attrs["entry_error"] < few.attrs["entry_error"]
    assert Explaind(keep=["query", "train"], steps=FOUR, quadrature=wanted).attribute(study)["nodes"].max() > 1
