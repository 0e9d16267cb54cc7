"""Every method of gradients or states on modules that are no language model, against dense formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from module_oracle import (
    autograd_one_by_one,
    component_vector,
    dense_ggn_of_module,
    gradients_of_module,
    odd_module,
)
from torch import nn

from tdaexp import influence
from tdaexp.curvature.layers import layers_of
from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.history import Moment
from tdaexp.methods.arnoldi import Arnoldi
from tdaexp.methods.astra import ASTRA
from tdaexp.methods.bm25 import BM25
from tdaexp.methods.cg import CG
from tdaexp.methods.cka import CKA
from tdaexp.methods.datainf import DataInf
from tdaexp.methods.dot import Dot
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.full import Full
from tdaexp.methods.lissa import LiSSA
from tdaexp.methods.logra import LoGra
from tdaexp.methods.project import Project
from tdaexp.methods.random import Random
from tdaexp.methods.repsim import RepSim
from tdaexp.methods.select import Select
from tdaexp.methods.tracin import TracIn
from tdaexp.methods.trackstar import TrackStar
from tdaexp.methods.trak import TRAK
from tdaexp.models.components import ComponentMap
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError

PAIRS = np.array([[0, 1, 2, 3], [3, -1, 0, 2]])
NAMES = ["convolutions", "image norms", "encoder", "bare parameters", "run twice", "recurrent"]
SOLVED = ["convolutions", "image norms", "encoder", "run twice"]  # at least two layers with a rule
every_module = pytest.mark.parametrize("name", NAMES)


class Training:
    """Two moments of a training: the weights moved by so much, and rates."""

    MOMENTS = ((10, 0.5, 0.1), (20, 0.25, -0.05))

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def at(self, by: float) -> nn.Module:
        moved = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.add_(by)
        return moved

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        return [
            Moment(step, rate, f"step-{step}", lambda by=by: self.at(by))
            for step, rate, by in self.MOMENTS
            if steps is None or step in steps
        ]


@pytest.fixture
def make(tmp_path):
    def build(name: str, tokens_per_batch: int = 4096, cache: str = "cache") -> Problem:
        module, examples = odd_module(name)
        module.requires_grad_(False)
        train, queries = examples.select(range(4)), examples.select([4, 1])
        truth = (queries.targets[:, None] == train.targets[torch.from_numpy(PAIRS)]).numpy()
        compute = Compute(torch.device("cpu"), torch.float64, tokens_per_batch, 1.0)
        return Problem(
            module, "weights", gradients_of_module(module, train).components, Classes(), train, queries,
            ["test", "test"], Candidates(PAIRS, np.full(PAIRS.shape, np.nan)), truth, compute, tmp_path / cache, 0,
            history=Training(module),
        )  # fmt: skip

    return build


def explicit(model: nn.Module, components: ComponentMap, examples: TensorExamples) -> list[torch.Tensor]:
    """Gradients [N, size] by component, one example at a time."""
    model.requires_grad_(True)
    rows, _ = autograd_one_by_one(model, examples)
    model.requires_grad_(False)
    return [torch.stack([component_vector(model, one, row) for row in rows]) for one in components.components]


def paired(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """Dot products [Q, C] of the pairs, NaN where there is none."""
    return np.where(PAIRS < 0, np.nan, np.take_along_axis((left @ right.T).numpy(), PAIRS.clip(0), axis=1))


def assert_near(found, wanted, tolerance=1e-9):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.nanmax(np.abs(wanted)))


@every_module
@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_dot_full_and_cka(name, tokens_per_batch, make):
    problem = make(name, tokens_per_batch)
    queries, train = (explicit(problem.model, problem.map, side) for side in (problem.queries, problem.train))
    dot = Dot().attribute(problem)
    for column, (q, z) in enumerate(zip(queries, train, strict=True)):
        assert_near(dot["influence"].values[..., column], paired(q, z))
    q, z = (torch.cat(side, dim=1) for side in (queries, train))
    norms = q.norm(dim=1, keepdim=True).numpy() * z.norm(dim=1).numpy()[PAIRS]
    cosine = paired(q, z) / (norms + influence.EPSILON)
    assert_near(influence.scores(Full().attribute(problem)).values, cosine)
    assert_near(influence.scores(CKA().attribute(problem)).values, cosine**2)


@every_module
@pytest.mark.parametrize("kind", ["factorised", "srht", "sjlt", "trak"])
def test_project(name, kind, make):
    problem, method = make(name), Project(projection=kind, budget=0.5)
    found = method.attribute(problem)
    sketches = method.sketches(problem.map)
    sides = [explicit(problem.model, problem.map, side) for side in (problem.queries, problem.train)]
    for column, own in enumerate(problem.map.names):
        q, z = (sketches[own].project_gradient(side[column]) for side in sides)
        assert_near(found["influence"].values[..., column], paired(q, z))
        np.testing.assert_allclose(found["query_sq"].values[:, column], q.square().sum(1), rtol=1e-9)


@every_module
def test_tracin(name, make):
    problem = make(name)
    found, wanted = TracIn().attribute(problem), 0.0
    for _, rate, by in Training.MOMENTS:
        model = problem.history.at(by)
        q, z = (torch.cat(explicit(model, problem.map, side), dim=1) for side in (problem.queries, problem.train))
        wanted = wanted + rate * paired(q, z)
    assert_near(influence.scores(found).values, wanted)
    assert found.attrs["steps"] == [10, 20]


def margins(model: nn.Module, components: ComponentMap, examples: TensorExamples) -> tuple[list[torch.Tensor], list]:
    """Gradients [N, size] of log(p / (1 - p)) by component, and 1 - p."""
    model.requires_grad_(True)
    parameters, rows, left = dict(model.named_parameters()), [], []
    for one, target in zip(examples.inputs, examples.targets, strict=True):
        p = torch.softmax(model(one[None])[0], 0)[target]
        values = torch.autograd.grad((p / (1 - p)).log(), list(parameters.values()))
        rows.append(dict(zip(parameters, values, strict=True)))
        left.append(float(1 - p.detach()))
    model.requires_grad_(False)
    return [torch.stack([component_vector(model, one, row) for row in rows]) for one in components.components], left


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("checkpoints", ["last", "all"])
def test_trak(name, checkpoints, make):
    problem = make(name)
    components = layers_of(problem.map).components
    kernels, weights = [], []
    every = [problem.history.at(by) for _, _, by in Training.MOMENTS]
    for model in every if checkpoints == "all" else [problem.model]:
        sketches = [make_sketch("trak", one.name, one.matrix, 6, 0, "rademacher") for one in components.components]
        (q, _), (z, left) = (margins(model, components, side) for side in (problem.queries, problem.train))
        q, z = (sum(s.project_gradient(own) for s, own in zip(sketches, side, strict=True)) for side in (q, z))
        gram = z.T @ z
        inverse = torch.linalg.inv(gram + 0.1 * gram.trace() / 6 * torch.eye(6, dtype=torch.float64))
        kernels.append(paired(q @ inverse, z))
        weights.append(np.array(left)[PAIRS.clip(0)])
    found = TRAK(dimensions=6, ridge=0.1, checkpoints=checkpoints).attribute(problem)
    assert found["component"].values.tolist() == components.names
    assert_near(influence.scores(found).values, np.mean(kernels, 0) * np.mean(weights, 0), 1e-8)


@pytest.fixture
def solved(make):
    """A problem, its dense GGN over all layers with a rule, gradients [N, size] of queries and training examples."""

    def build(name: str):
        problem = make(name)
        components = layers_of(problem.map).components
        space = VectorSpace(problem.model, components)
        problem.model.requires_grad_(True)
        dense = dense_ggn_of_module(problem.model, space, problem.train.inputs)
        sides = [torch.cat(explicit(problem.model, components, s), dim=1) for s in (problem.queries, problem.train)]
        return problem, dense, *sides, space.slices

    return build


def by_component(inverse: torch.Tensor, q: torch.Tensor, z: torch.Tensor, slices: list[slice]) -> np.ndarray:
    return np.stack([paired((q @ inverse)[:, own], z[:, own]) for own in slices], axis=2)


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("preconditioner", ["none", "ekfac", "arnoldi"])
def test_cg(name, preconditioner, solved):
    problem, dense, q, z, slices = solved(name)
    own = {"preconditioner": preconditioner, "arnoldi_steps": 20, "iterations": 400, "tolerance": 1e-10}
    found = CG(damping=0.05, examples=None, queries=None, **own).attribute(problem)
    assert found.attrs["converged"]
    inverse = torch.linalg.inv(dense + 0.05 * torch.eye(len(dense), dtype=torch.float64))
    assert_near(found["influence"].values, by_component(inverse, q, z, slices), 1e-7)


def test_a_whole_network_as_one_block_of_ekfac(solved):
    """From many samples its answer is nearer to the exact inverse's than that of single matrices."""
    problem, dense, q, z, slices = solved("encoder")
    inverse = torch.linalg.inv(dense + 0.05 * torch.eye(len(dense), dtype=torch.float64))
    wanted = by_component(inverse, q, z, slices)
    errors = []
    for blocks in ("matrix", "layer"):
        found = EKFAC(damping=0.05, curvature_blocks=blocks, block_samples=400).attribute(problem)
        errors.append(np.nanmax(np.abs(found["influence"].values - wanted)))
    assert 2 * errors[1] < errors[0]
    with pytest.raises(UserError, match=r"curvature_blocks=joint: this network has no attention and no MLP by name"):
        EKFAC(curvature_blocks="joint").attribute(problem)


@pytest.mark.long
@pytest.mark.parametrize("name", SOLVED)
def test_astra(name, solved):
    problem, dense, q, z, slices = solved(name)
    damping = float(torch.linalg.eigvalsh(dense)[-1])
    own = {"batch_size": 4, "steps": 400, "tolerance": 1e-7}
    found = ASTRA(damping=damping, examples=None, queries=None, **own).attribute(problem)
    assert found.attrs["converged"] and found.attrs["residual"] <= 1.1e-7
    inverse = torch.linalg.inv(dense + damping * torch.eye(len(dense), dtype=torch.float64))
    assert_near(found["influence"].values, by_component(inverse, q, z, slices), 1e-6)


@pytest.mark.parametrize("name", SOLVED)
def test_lissa(name, solved):
    problem, dense, q, z, slices = solved(name)
    damping = float(torch.linalg.eigvalsh(dense)[-1])
    method = LiSSA(damping=damping, examples=None, queries=None, batch_size=4, depth=200)
    inverse = torch.linalg.inv(dense + damping * torch.eye(len(dense), dtype=torch.float64))
    assert_near(method.attribute(problem)["influence"].values, by_component(inverse, q, z, slices), 1e-7)


@pytest.mark.parametrize("name", SOLVED)
def test_arnoldi(name, solved):
    """Of four examples of three classes the curvature has rank 8."""
    problem, dense, q, z, slices = solved(name)
    values, vectors = torch.linalg.eigh(dense)
    values, vectors = values[-4:], vectors[:, -4:]
    found = Arnoldi(damping=0.01, examples=None, steps=16, rank=4).attribute(problem)
    inverse = vectors @ torch.diag(1 / (values + 0.01)) @ vectors.T
    assert_near(found["influence"].values, by_component(inverse, q, z, slices), 1e-7)


def read_by_the_last_layer(problem: Problem, examples: TensorExamples, kind: type[nn.Module]) -> torch.Tensor:
    """Inputs of the last layer of that kind, one example at a time, [N, places, d]."""
    found: list[torch.Tensor] = []
    layer = [one for one in problem.model.modules() if isinstance(one, kind)][-1]
    handle = layer.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0][0]))
    for one in examples.inputs:
        problem.model(one[None])
    handle.remove()
    return torch.stack([one.flatten(1).T if one.ndim == 3 else one.reshape(-1, one.shape[-1]) for one in found])


@every_module
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_repsim(name, pooling, make):
    problem = make(name)
    found = influence.scores(RepSim(pooling=pooling).attribute(problem)).values
    states = [read_by_the_last_layer(problem, side, nn.Linear) for side in (problem.queries, problem.train)]
    pooled = [one[:, -1] if pooling == "last" else one.mean(1) for one in states]
    np.testing.assert_allclose(found, paired(*(nn.functional.normalize(one) for one in pooled)), rtol=0, atol=1e-6)


def test_cka_of_states(make):
    """What the second convolution reads: its channels are the samples."""
    problem = make("image norms")
    found = influence.scores(CKA(of="states", layer=1).attribute(problem)).values
    queries, train = (read_by_the_last_layer(problem, side, nn.Conv2d) for side in (problem.queries, problem.train))
    for (row, column), index in np.ndenumerate(PAIRS):
        if index >= 0:
            x, y = (one.T - one.T.mean(0) for one in (queries[row], train[index]))
            wanted = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
            assert found[row, column] == pytest.approx(float(wanted), rel=1e-9)


METHODS = {
    "dot": Dot(), "full": Full(), "project": Project(budget=0.5), "cka": CKA(), "states": CKA(of="states"),
    "repsim": RepSim(), "trak": TRAK(dimensions=6), "tracin": TracIn(), "ekfac": EKFAC(), "kept": EKFAC(keep_gb=1.0),
    "cg": CG(damping=0.1, queries=None, preconditioner="ekfac"),
    "astra": ASTRA(damping=1.0, queries=None, batch_size=4, steps=40),
    "lissa": LiSSA(damping=5.0, queries=None, batch_size=4),
    "logra": LoGra(dimensions=6), "datainf": DataInf(), "trackstar": TrackStar(precondition="gradients", dimensions=4),
    "arnoldi": Arnoldi(damping=0.1, steps=12, rank=4), "random": Random(), "select": Select(Full(), budget=0.7),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_neither_batches_nor_order_matter(method, make):
    problem = make("encoder")
    wanted = influence.scores(METHODS[method].attribute(problem)).values
    assert (np.isfinite(wanted) == (PAIRS >= 0)).all()
    moved, rows = np.array([2, 0, 3, 1]), [1, 0]
    place = np.append(np.argsort(moved), -1)
    other = replace(
        make("encoder", 1, "other").of_queries(rows),
        train=problem.train.select(moved),
        candidates=Candidates(place[PAIRS[rows]], np.full(PAIRS.shape, np.nan)),
    )
    found = influence.scores(METHODS[method].attribute(other)).values[rows]
    assert_near(found, wanted, 1e-5 if method in ("kept", "cg", "astra", "lissa") else 1e-9)
    assert all(not one.requires_grad and one.grad is None for one in problem.model.parameters())


def test_what_compares_words_has_none(make):
    with pytest.raises(UserError, match=r"method=bm25: compares words.*method=random"):
        BM25().attribute(make("encoder"))


def test_a_model_without_a_history(make):
    for method in (TracIn(), TRAK(checkpoints="all")):
        with pytest.raises(UserError, match=r"left nothing on its way that is known here.*trainer\.fit\.record=1"):
            method.attribute(replace(make("convolutions"), history=None))
