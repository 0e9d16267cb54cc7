"""Metagradients against autograd through the whole training, and against trainings with other weights."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from recorded_problem import recorded_problem
from torch import nn
from unrolled import SEED, corpus, metagradients, network, recipe_of, trained_problem, unrolled

from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.methods.magic import Magic
from tdaexp.metrics.combining import mean_query
from tdaexp.paths import blocks as path_blocks
from tdaexp.paths import linearity
from tdaexp.paths.derivatives import Derivatives
from tdaexp.runtime.errors import UserError
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.retrain import batches_without, retrain
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification
from tdaexp.training.trajectory import Trajectory

EPOCHS = {"steps": 20, "batch_size": 5, "lr": 0.05, "warmup": 0, "clip": 0.0, "batches": "epochs", "decay": "all"}
STREAM = {**EPOCHS, "batch_size": 16, "batches": "stream"}
"""A batch of more examples than there are holds some twice."""
ADAMW = {"betas": [0.8, 0.95], "weight_decay": 0.1}
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05}
TRAININGS = {
    "adamw": {**EPOCHS, **ADAMW},
    "adamw, rooted": {**EPOCHS, **ADAMW, "eps_root": 1e-4},
    "adamw, examples twice in a batch": {**STREAM, **ADAMW},
    "adamw, clipped": {**EPOCHS, **ADAMW, "clip": 0.2, "decay": "matrices"},
    "sgd": {**EPOCHS, **SGD},
    "sgd, examples twice in a batch": {**STREAM, **SGD},
    "sgd, clipped": {**EPOCHS, **SGD, "clip": 0.2},
}
QUIET = Magic(trials=0)


def of_training(name: str, cache, **changes):
    return trained_problem(FitSettings(**{**TRAININGS[name], **changes}), corpus(), cache)


def groups_of(problem) -> list[list[str]]:
    return [list(names) for names in problem.map.members(problem.model).values()]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The rooted training's problem and answer."""
    problem = of_training("adamw, rooted", tmp_path_factory.mktemp("usual"))
    return problem, QUIET.attribute(problem)


def close(found, wanted, relative=1e-10) -> None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=relative * np.abs(wanted).max())


@pytest.mark.parametrize("name", TRAININGS)
def test_scores_are_those_of_autograd_through_the_whole_training(name, tmp_path):
    """20 steps in epochs of 13 examples, whose last batches are smaller."""
    settings, data = FitSettings(**TRAININGS[name]), corpus()
    problem = trained_problem(settings, data, tmp_path)
    found = QUIET.attribute(problem)
    wanted = metagradients(settings, data, groups_of(problem))
    assert found["influence"].dims == ("query", "candidate", "component")
    assert list(found["component"].values) == problem.map.names
    for query, own in enumerate(wanted):
        assert np.abs(own).max() > 1e-4
        close(found["influence"].values[query], own)
    assert found.attrs["replay_error"] < 1e-12


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_scores_are_finite_differences_in_an_examples_weight(name, tmp_path):
    settings, data = FitSettings(**TRAININGS[name]), corpus()
    problem = trained_problem(settings, data, tmp_path)
    found = QUIET.attribute(problem)["influence"].sum("component").values
    groups = [[name for names in groups_of(problem) for name in names]]
    for example in (0, 7):
        ends = []
        for change in (1e-5, -1e-5):
            weights = torch.ones(len(data.train), 1, dtype=torch.float64)
            weights[example] += change
            ends.append(unrolled(settings, data, weights, groups).detach().numpy())
        close(found[:, example], (ends[0] - ends[1]) / 2e-5, 1e-5)


def test_groups_segments_and_passes_change_nothing(usual, tmp_path):
    """One query at a time, three steps in memory, passes of two examples; checkpoints are on the disk."""
    problem, wanted = usual
    compute = dataclasses.replace(problem.compute, tokens_per_batch=2)
    small = 3 * 4 * 43 * 8 / 1e9
    other = dataclasses.replace(problem, cache=tmp_path, compute=compute)
    found = dataclasses.replace(QUIET, at_once=1, memory_gb=small).attribute(other)
    close(found["influence"], wanted["influence"], 1e-12)
    assert len(list(tmp_path.glob("training/*/states-3"))) == 1


def test_only_pairs_have_scores_and_their_order_plays_no_part(usual, tmp_path):
    problem, wanted = usual
    indices = np.array([[3, 0, -1], [12, 3, 5], [1, -1, 2]])
    chosen = dataclasses.replace(problem, cache=tmp_path, candidates=Candidates(indices, np.full((3, 3), np.nan)),
                                 truth=np.zeros((3, 3), bool))  # fmt: skip
    found = QUIET.attribute(chosen)["influence"].values
    for query, place in np.ndindex(indices.shape):
        if indices[query, place] < 0:
            assert np.isnan(found[query, place]).all()
        else:
            close(found[query, place], wanted["influence"].values[query, indices[query, place]])


def test_the_mean_of_queries_is_the_mean_of_their_scores(usual, tmp_path):
    problem, wanted = usual
    found = mean_query(QUIET.attribute(dataclasses.replace(problem, cache=tmp_path)))
    assert QUIET.linear and found.sizes["query"] == 1
    close(found["influence"].values[0], wanted["influence"].values.mean(0))


def test_an_example_about_itself(usual, tmp_path):
    problem, _ = usual
    own = QUIET.self_influence(dataclasses.replace(problem, cache=tmp_path))["self_influence"]
    data = problem.train
    asked = TensorExamples([f"q{k}" for k in range(13)], data.inputs, data.targets)
    whole = TensorCorpus(data, asked, 3)
    wanted = metagradients(FitSettings(**TRAININGS["adamw, rooted"]), whole, groups_of(problem))
    close(own.values, np.stack([wanted[k, k] for k in range(13)]))


def test_a_killed_run_goes_on_where_it_stopped(usual, tmp_path, monkeypatch):
    problem, wanted = usual
    monkeypatch.setattr(path_blocks, "STEPS_PER_BLOCK", 5)
    fresh, done = dataclasses.replace(problem, cache=tmp_path), []
    real = Derivatives.hessian_products

    def counted(self, *arguments):
        if len(done) == 13:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(Derivatives, "hessian_products", counted)
    with pytest.raises(KeyboardInterrupt):
        QUIET.attribute(fresh)
    done[:] = [1] * 14  # never 13 again
    before = len(done)
    found = QUIET.attribute(fresh)
    assert len(done) - before == 10  # two blocks of five steps were kept
    assert found["influence"].values.tobytes() == wanted["influence"].values.tobytes()


def test_trials_are_trainings_of_the_bank(tmp_path):
    """Without the examples, and where they count a tenth less; a smooth training moves as is foretold."""
    problem = of_training("sgd", tmp_path)
    found = Magic(trials=2).attribute(problem)
    scores = found["influence"].sum("component").values
    settings, recipe = problem.recipe().settings, problem.recipe()
    logs = []
    for number in (None, 0, 1):
        member = np.ones(13, bool) if number is None else ~linearity._drawn(13, problem.seed, number)
        again = recipe.start(None)
        retrain(again, settings, batches_without(again, settings, SEED, member))
        logits = again.module(problem.queries.inputs).log_softmax(1)
        logs.append(logits.gather(1, problem.queries.targets[:, None])[:, 0].detach().numpy())
    true = np.stack(logs[1:]) - logs[0]
    foretold = -np.stack([scores[:, linearity._drawn(13, problem.seed, k)].sum(1) for k in (0, 1)])
    assert found.attrs["linear_error"] == pytest.approx(np.linalg.norm(foretold - true) / np.linalg.norm(true))
    assert found.attrs["linear_error"] < 0.1 and found.attrs["small_error"] < 0.01
    assert found.attrs["adjoint_growth"] >= 1 and found["growth"].dims == ("query",)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recorded float32 training, to be explained in float64, and the same training's recipe."""
    folder, data = tmp_path_factory.mktemp("recorded"), corpus()
    narrow = TensorCorpus(*(dataclasses.replace(one, inputs=one.inputs.float()) for one in (data.train, data.test)), 3)
    settings = FitSettings(**{**TRAININGS["adamw, rooted"], "record": 1, "checkpoint_every": 4})
    module = network().float()
    fit_recorded(Classification(module, narrow), settings, folder=folder, seed=SEED, identity="test")
    trajectory = Trajectory(folder / "trajectory")
    problem = recorded_problem(module.double(), data, trajectory, folder / "cache", dtype=torch.float64)

    def again():
        recipe = recipe_of(settings, data)
        return dataclasses.replace(recipe, start=lambda _: Classification(network().float().double(), data))

    return problem, again


def test_a_recording_and_a_recipe_give_the_same(recorded, tmp_path):
    problem, recipe = recorded
    found = QUIET.attribute(problem)
    other = dataclasses.replace(problem, history=None, recipe=recipe, cache=tmp_path)
    close(found["influence"], QUIET.attribute(other)["influence"], 1e-9)  # a recording's rates and start are float32's
    assert 0 < found.attrs["replay_error"] < 1e-5


def test_what_cannot_be_gone_back_over_is_refused(recorded, usual, tmp_path):
    problem, _ = recorded
    trajectory = problem.history.trajectory

    def changed(**settings):
        other = copy.copy(trajectory)
        other.settings = dataclasses.replace(trajectory.settings, **settings)
        return dataclasses.replace(problem, history=dataclasses.replace(problem.history, trajectory=other))

    with pytest.raises(UserError, match="unknown optimiser 'adagrad'"):
        QUIET.attribute(changed(optimizer="adagrad"))
    with pytest.raises(UserError, match=r"record=2: .* set trainer\.fit\.record=1"):
        QUIET.attribute(changed(every=2))
    with pytest.raises(UserError, match="not known here; let the model be trained here"):
        QUIET.attribute(dataclasses.replace(problem, history=None))
    with pytest.raises(UserError, match=r"the model is bfloat16; set trainer\.precision=float32"):
        QUIET.attribute(dataclasses.replace(problem, model=copy.deepcopy(problem.model).bfloat16()))
    dropped = nn.Sequential(*copy.deepcopy(problem.model), nn.Dropout(0.1)).eval()
    with pytest.raises(UserError, match=r"is dropout with p=0\.1"):
        QUIET.attribute(dataclasses.replace(problem, model=dropped))
    other = dataclasses.replace(usual[0], cache=tmp_path, model=network())
    with pytest.raises(UserError, match="ends elsewhere than the explained model"):
        QUIET.attribute(other)
    fewer = dataclasses.replace(usual[0], train=usual[0].train.select(range(5)))
    with pytest.raises(UserError, match="training examples are not those that the model was trained on"):
        QUIET.attribute(fewer)


def test_a_step_that_is_missing_is_named(recorded, tmp_path):
    trajectory = recorded[0].history.trajectory
    flags = trajectory._states.flags()
    trajectory._states.done[1] = False
    try:
        with pytest.raises(UserError, match="step 4 of 20 is missing"):
            Trajectory(trajectory.folder)
    finally:
        trajectory._states.done[1] = bool(flags[1])


def test_a_metagradient_that_is_not_finite_names_step_and_example(tmp_path):
    """A feature that one example alone has, so small that AdamW, without any epsilon, divides by what underflows."""
    data = corpus()
    inputs = data.train.inputs.clone()
    inputs[:, 3] = 0
    inputs[4, 3] = 1e-120
    data = TensorCorpus(dataclasses.replace(data.train, inputs=inputs), data.test, 3)
    settings = FitSettings(**{**TRAININGS["adamw"], "eps": 1e-300, "batch_size": 13})
    problem = trained_problem(settings, data, tmp_path)
    with pytest.raises(UserError, match=r"metagradient of query 'e13': at step 19 the derivative .*example 'e\d+'.*"
                       r"trainer\.fit\.eps_root"):  # fmt: skip
        QUIET.attribute(problem)


def test_choices_are_checked():
    for keys, said in (({"at_once": 0}, "at_once=0"), ({"memory_gb": 0.0}, "memory_gb=0"), ({"trials": -1}, "trials")):
        with pytest.raises(UserError, match=said):
            Magic(**keys)
    assert Magic(measurement="logit_margin").label == "magic (logit_margin)"


def test_tensors_are_made_where_the_model_is(usual, tmp_path):
    problem, wanted = usual
    recipe = problem.recipe()
    began = recipe.start(None)
    made = dataclasses.replace(recipe, start=lambda _: began)
    with torch.device("meta"):
        found = Magic().attribute(dataclasses.replace(problem, cache=tmp_path, recipe=lambda: made))
    close(found["influence"], wanted["influence"])
