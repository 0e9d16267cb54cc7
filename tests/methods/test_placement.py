"""Where tensors are made and met: what else only a second device would show, found without one.

Two tricks. With torch's default device set to `meta`, whose tensors have no numbers, whatever is made without a device
of its own ends in an error. And fake tensors know their device but have no numbers: an operation that mixes devices
fails, and so does one that would have to wait for a device to read its numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from recorded_problem import having_model, recorded_problem
from test_checkpoint_updates import build
from test_checkpoint_updates import config as checkpoint_config
from test_classifiers import make  # noqa: F401
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.gradients import sketch, sketch_srht
from tdaexp.gradients.capture import capture
from tdaexp.gradients.factors import compact
from tdaexp.gradients.features import project
from tdaexp.gradients.projection import make_sketch
from tdaexp.methods.explaind import Explaind
from tdaexp.models.components import component_map
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.stated import stated_config
from tdaexp.objectives.base import Inputs, cross_entropy
from tdaexp.objectives.tokens import NextToken
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.paths import reverse as path_sweep
from tdaexp.paths.decomposition import PathJob, tensors_of
from tdaexp.paths.forward import _Walk
from tdaexp.paths.steps import held_out_changes
from tdaexp.problem import Problem
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task_problem import Classification
from tdaexp.training.trajectory import Trajectory

SAME = {
    "project_paper",
    "ekfac_mlp",
    "select_fidelity",
    "multistage_dot",
    "dot",
    "random",
    "bm25",
}  # no code of their own
OWN_TEST = {"explaind", "magic", "project"}
METHODS = sorted({path.stem for path in Path(__file__).parents[2].glob("conf/method/*.yaml")} - SAME - OWN_TEST)
OTHER = torch.device("lazy:0")  # a device that this build of torch knows by name only
STEP_AXES = [["step", "component"], ["query", "output"], ["query", "part"]]
TRAIN_AXES = [["query", "train", "component"], ["train"]]


def elsewhere(work: Callable[[], xr.Dataset]) -> None:
    """Work where the default device is another one than that of model and data."""
    with torch.device("meta"):
        found = work()
    assert np.isfinite(found["influence"]).any()


@pytest.fixture
def loads_here(monkeypatch):
    """Models that a method loads itself: transformers refuses another default device for that."""
    real = Pretrained.load

    def load(self, *arguments):
        with torch.device("cpu"):
            return real(self, *arguments)

    monkeypatch.setattr(Pretrained, "load", load)


@pytest.mark.parametrize("name", METHODS)
def test_methods_on_texts(name, problem, configured, loads_here):
    elsewhere(lambda: configured(name).attribute(problem))


@pytest.mark.parametrize("kind", ["factorised", "srht", "sjlt", "trak"])
def test_projections(kind, problem, compose):
    elsewhere(lambda: compose("method=project", f"method.projection={kind}", "budget=0.3").attribute(problem))


@pytest.mark.parametrize("name", ["ekfac", "select", "full"])
def test_methods_on_classifiers(name, make, configured):  # noqa: F811
    problem = make("cnn")
    elsewhere(lambda: configured(name).attribute(problem))


def test_checkpoints(tmp_path, loads_here):
    listed = build(checkpoint_config(tmp_path))
    method = Explaind(keep=["step", "component", "train"], output="loss", quadrature=Quadrature(nodes=2))
    elsewhere(lambda: method.attribute(listed))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Problem:
    """A network with products, a ReLU and a smooth operation, trained for four steps."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(20, 4, generator=generator)
    whole = TensorExamples([f"e{k}" for k in range(20)], inputs, (inputs.sum(1) > 0).long())
    corpus = TensorCorpus(whole.select(range(14)), whole.select(range(14, 20)), 2)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 2)).eval()
    settings = FitSettings(steps=4, batch_size=8, clip=0.0, record=1, warmup=0)
    folder = tmp_path_factory.mktemp("training")
    fit_recorded(Classification(module, corpus), settings, folder=folder, seed=3, identity="test")
    return recorded_problem(module, corpus, Trajectory(folder / "trajectory"), folder, held_out=True)


@pytest.mark.parametrize("keep", STEP_AXES + TRAIN_AXES, ids=str)
@pytest.mark.parametrize("rule", ["gauss", "secant"])
def test_recorded_trainings(rule, keep, recorded, tmp_path):
    partition = "target" if "part" in keep else None
    method = Explaind(keep=keep, quadrature=Quadrature(rule), partition=partition, subsample=0.5)
    elsewhere(lambda: method.attribute(dataclasses.replace(recorded, cache=tmp_path)))


@pytest.fixture
def fake(recorded) -> Problem:
    """The recorded training on the other device, inside a mode in which nothing has numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with OTHER:
            module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 2)).eval()
        yield having_model(
            dataclasses.replace(recorded, compute=dataclasses.replace(recorded.compute, device=OTHER)), module
        )


def job_of(study: Problem, keep: list[str], rule: str, mode: str = "auto") -> PathJob:
    method, trajectory = Explaind(keep=keep), study.history.trajectory
    return PathJob(
        study, trajectory, method._function(study), Quadrature(rule, 2), frozenset(keep), trajectory.steps, mode
    )


@pytest.mark.long
@pytest.mark.parametrize("keep", STEP_AXES[:2], ids=str)
@pytest.mark.parametrize(("rule", "mode"), [("gauss", "forward"), ("gauss", "reverse"), ("secant", "auto")])
def test_updates_stay_on_their_device_and_are_not_waited_for(rule, mode, keep, fake):
    walk, sums = _Walk(job_of(fake, keep, rule, mode)), {}
    rows = [walk.step(number, sums) for number in fake.history.trajectory.steps]
    assert {value.device for value in sums.values()} == {OTHER}
    assert all(value.device == OTHER for row in rows for name, value in row.items() if name != "nodes")


@pytest.mark.parametrize("keep", TRAIN_AXES, ids=str)
@pytest.mark.parametrize("rule", ["gauss", "secant"])
def test_sweeps_stay_on_their_device_and_are_not_waited_for(rule, keep, fake, tmp_path, monkeypatch):
    places = set()

    def run_steps(store, order, shapes, one, title, device):
        sums = {}
        for number in order:
            one(number, sums)
        places.update(value.device for value in sums.values())
        return sums

    # which examples a batch has is looked up in main memory, by numbers that are not there either
    monkeypatch.setattr(path_sweep, "_with_first", lambda step, count: step)
    monkeypatch.setattr(PathJob, "examples", lambda job, ids: tensors_of(fake, fake.train.select(range(len(ids)))))
    monkeypatch.setattr(path_sweep, "run_steps", run_steps)
    nodes = dict.fromkeys(fake.history.trajectory.steps, 2)
    path_sweep._swept(job_of(fake, keep, rule), nodes, tmp_path, "all")
    assert places == {OTHER}


def test_losses_by_step_are_on_the_device(fake, monkeypatch):
    """They are read after the last step alone, which without numbers cannot be done."""
    read = []
    monkeypatch.setattr("tdaexp.paths.steps.float", lambda value: read.append(value.device) or 0.0, raising=False)
    held_out_changes(fake, fake.history, fake.history.trajectory.steps)
    assert read == [OTHER] * 4


@pytest.mark.parametrize("tokens", [20, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_passes_and_sketches_stay_on_the_device(tied, tokens):
    from transformers import AutoModelForCausalLM

    shape = {
        "architecture": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64, "tie_word_embeddings": tied,
    }  # fmt: skip
    config, seen = stated_config(shape, "model.shape"), []
    with FakeTensorMode():
        with OTHER:
            model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        components = component_map(model)
        made = {
            (kind, one.name): make_sketch(kind, one.name, one.matrix, min(12, one.size), 0)
            for kind in ("factorised", "srht", "sjlt") for one in components.components
        }  # fmt: skip

        def consume(arrived, factors):
            seen.extend(compact(one).tensors[0].device for one in factors)
            for one, own in zip(arrived, factors, strict=True):
                seen.extend(project(own, made[kind, one.name]).device for kind in ("factorised", "srht", "sjlt"))

        ids = torch.zeros(2, tokens, dtype=torch.int64, device=OTHER)
        weights = torch.ones(2, 2, device=OTHER)
        try:
            inputs = Inputs(["a", "b"], ids, ids[:, :2], weights, ids[:, :2])
            asked = partial(NextToken().losses, model, inputs, cross_entropy)
            losses = capture(model, components, len(inputs.ids), asked, consume)
        finally:
            sketch_srht._hadamard.cache_clear()  # matrices without numbers are of no use to others
            sketch._signs_of_byte.cache_clear()
    assert {*seen, losses.device} == {OTHER} and len(seen) == 4 * len(components)
