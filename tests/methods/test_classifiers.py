"""Methods on classification tasks: scores against dense matrices and plain autograd, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_conformance import Killed, Writes, assert_same_bits
from torch import nn

from tdaexp import influence
from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.methods.dot import Dot
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.full import Full
from tdaexp.methods.random import Random
from tdaexp.methods.select import Select
from tdaexp.models.discovery import discovered
from tdaexp.models.grokking import Grokking
from tdaexp.models.mnist_cnn import MnistCnn
from tdaexp.models.resnet9 import ResNet9
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.labels import uniforms
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError

TRAIN, QUERIES, CLASSES = 9, 4, 3


def corpus(tokens: bool = False) -> TensorCorpus:
    """Images of 8 x 8, or sequences of four tokens."""
    generator = torch.Generator().manual_seed(3)
    count = TRAIN + QUERIES
    images = torch.randn(count, 1, 8, 8, generator=generator)
    inputs = torch.randint(0, CLASSES, (count, 4), generator=generator) if tokens else images
    whole = TensorExamples([f"e{k}" for k in range(count)], inputs, torch.arange(count) % CLASSES)
    return TensorCorpus(whole.select(range(TRAIN)), whole.select(range(TRAIN, count)), CLASSES)


MODELS = {
    "cnn": MnistCnn(channels=[2, 3], hidden=5, padding=1, activation="gelu"),
    "resnet": ResNet9(width=2, norm="frozen"),
    "resnet-group": ResNet9(width=8, norm="group"),
    "grokking": Grokking(hidden=8, heads=2, inner=10, norm=True),
}


@pytest.fixture
def make(tmp_path):
    """Build a problem of a random model; the last pair of the first query does not exist."""

    def build(name="cnn", cache="cache", tokens_per_batch=200, cache_gb=1.0, dtype=torch.float64, **changes):
        data = corpus(tokens=name == "grokking")
        module = MODELS[name].build(data).to(dtype).requires_grad_(False)

        def side(examples: TensorExamples) -> TensorExamples:
            inputs = examples.inputs.to(dtype) if examples.inputs.is_floating_point() else examples.inputs
            return TensorExamples(examples.ids, inputs, examples.targets)

        pairs = np.tile(np.arange(TRAIN), (QUERIES, 1))
        pairs[0, -1] = -1
        truth = (data.test.targets[:, None] == data.train.targets[None]).numpy() & (pairs >= 0)
        compute = Compute(torch.device("cpu"), dtype, tokens_per_batch, cache_gb)
        train = side(data.train)
        problem = Problem(
            module, "weights", discovered(module, lambda: module(train.inputs), TRAIN), Classes(), train,
            side(data.test), ["test"] * QUERIES, Candidates(pairs, np.full(pairs.shape, np.nan)), truth, compute,
            tmp_path / cache, 0,
        )  # fmt: skip
        return dataclasses.replace(problem, **changes)

    return build


def gradient(module: nn.Module, names: list[str], one: torch.Tensor, target: int) -> list[torch.Tensor]:
    """Gradient of -log p(target) by autograd, one tensor per parameter."""
    values = [module.get_parameter(name) for name in names]
    for value in values:
        value.requires_grad_(True)
    found = torch.autograd.grad(-torch.log_softmax(module(one[None])[0], 0)[target], values)
    for value in values:
        value.requires_grad_(False)
    return list(found)


@pytest.mark.parametrize("name", MODELS)
def test_products_of_every_component_against_autograd(name, make):
    problem = make(name)
    full = Full().attribute(problem)
    assert sum(full["size"].values) == sum(one.numel() for one in problem.model.parameters())
    members = problem.map.members(problem.model)
    assert list(members) == list(full["component"].values)
    for column, names in enumerate(members.values()):
        sides = [
            torch.stack([
                torch.cat([g.flatten() for g in gradient(problem.model, names, x, int(y))])
                for x, y in zip(side.inputs, side.targets, strict=True)
            ])
            for side in (problem.queries, problem.train)
        ]  # fmt: skip
        wanted = (sides[0] @ sides[1].T).numpy()
        found = full["influence"].values[..., column]
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found[1:], wanted[1:], rtol=1e-9, atol=1e-12 * scale)
        np.testing.assert_allclose(found[0, :-1], wanted[0, :-1], rtol=1e-9, atol=1e-12 * scale)
        np.testing.assert_allclose(full["query_sq"].values[:, column], sides[0].square().sum(1), rtol=1e-9)
        np.testing.assert_allclose(full["train_sq"].values[1, :, column], sides[1].square().sum(1), rtol=1e-9)
    assert np.isnan(full["influence"].values[0, -1]).all()
    np.testing.assert_array_equal(Dot().attribute(problem)["influence"], full["influence"])


def layer_rows(module: nn.Module, path: str, one: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with the constant [T, I] and output gradients [T, O] of one layer for one example, by hand."""
    layer, kept = module.get_submodule(path), {}

    def hook(_, arguments, output):
        kept["a"], kept["out"] = arguments[0], output.requires_grad_()

    handle = layer.register_forward_hook(hook)
    loss = -torch.log_softmax(module(one[None])[0], 0)[label]
    handle.remove()
    (delta,) = torch.autograd.grad(loss, kept["out"])
    if isinstance(layer, nn.Conv2d):
        p = layer.padding[0]
        padded = nn.functional.pad(kept["a"], (p, p, p, p))[0]
        h, w = delta.shape[2:]
        a = torch.stack([padded[:, i : i + 3, j : j + 3].flatten() for i in range(h) for j in range(w)])
        delta = delta[0].flatten(1).T
    else:
        a, delta = kept["a"].reshape(-1, kept["a"].shape[-1]), delta.reshape(-1, delta.shape[-1])
    a = a if layer.bias is None else torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
    return a.detach(), delta


@pytest.mark.parametrize("name", ["cnn", "resnet", "grokking"])
def test_ekfac_against_a_dense_inverse(name, make):
    """Everything again by hand: drawn labels, factors, eigenbases, Λ, and the inverse as an explicit matrix."""
    problem, damping, seed = make(name), 1e-3, 5
    skipped = [] if name == "cnn" else ["res2.conv1.conv", "res2.conv2.conv", "conv4.conv"]
    layers = [n for n in EKFAC().layers(problem).names if n not in skipped]
    found = EKFAC(damping=damping, components=layers, seed=seed).attribute(problem)
    assert found["component"].values.tolist() == layers and len(layers) >= 4
    numbers = uniforms(problem.train.ids, seed, 1)[:, 0]
    labels = [
        int(np.searchsorted(torch.softmax(problem.model(x[None])[0], 0).cumsum(0).numpy(), float(u), side="right"))
        for x, u in zip(problem.train.inputs, numbers, strict=True)
    ]
    for column, path in enumerate(layers):
        drawn = [layer_rows(problem.model, path, x, y) for x, y in zip(problem.train.inputs, labels, strict=True)]
        a, d = (torch.cat([pair[side] for pair in drawn]) for side in (0, 1))
        q_in, q_out = (torch.linalg.eigh(rows.T @ rows / len(rows))[1] for rows in (a, d))
        grads = [delta.T @ rows for rows, delta in drawn]
        spectrum = torch.stack([q_out.T @ g @ q_in for g in grads]).square().mean(0).flatten()
        basis = torch.kron(q_out, q_in)
        inverse = torch.linalg.inv(basis @ torch.diag(spectrum + damping) @ basis.T)

        def own(side: TensorExamples, path=path) -> torch.Tensor:
            rows = [layer_rows(problem.model, path, x, int(y)) for x, y in zip(side.inputs, side.targets, strict=True)]
            return torch.stack([(delta.T @ a).flatten() for a, delta in rows])

        wanted = (own(problem.queries) @ inverse @ own(problem.train).T).numpy()
        np.testing.assert_allclose(
            found["influence"].values[1:, :, column], wanted[1:], rtol=1e-6, atol=1e-8 * np.abs(wanted).max()
        )


def test_without_curvature_it_is_the_dot_product(make):
    problem = make()
    one, other = EKFAC(mode="identity").attribute(problem), Dot().attribute(problem)
    np.testing.assert_allclose(one["influence"].values, other["influence"].values, rtol=1e-9)


def test_another_measurement_of_the_class(make):
    """The margin of the right class's logit against the others, by finite differences of a training step."""
    problem = make()
    found = influence.scores(EKFAC(mode="identity", measurement="logit_margin").attribute(problem)).values
    names = [name for name, _ in problem.model.named_parameters()]

    def margin(module: nn.Module) -> torch.Tensor:
        p = torch.softmax(module(problem.queries.inputs), 1)[torch.arange(QUERIES), problem.queries.targets]
        return torch.log(p / (1 - p))

    step = 1e-6
    for k in (1, 4):
        moves = gradient(problem.model, names, problem.train.inputs[k], int(problem.train.targets[k]))
        sides = []
        for sign in (-1, 1):
            with torch.no_grad():
                for name, move in zip(names, moves, strict=True):
                    problem.model.get_parameter(name).sub_(sign * step * move)
                sides.append(margin(problem.model))
                for name, move in zip(names, moves, strict=True):
                    problem.model.get_parameter(name).add_(sign * step * move)
        slope = (sides[1] - sides[0]).numpy() / (2 * step)
        np.testing.assert_allclose(found[:, k], slope, rtol=1e-5)


METHODS = {"ekfac": EKFAC(), "full": Full(), "random": Random(), "kept": EKFAC(keep_gb=1.0)}


@pytest.mark.parametrize("name", METHODS)
def test_batches_do_not_matter(name, make):
    wanted, found = (
        influence.scores(METHODS[name].attribute(make("cnn", cache, size, memory))).values
        for cache, size, memory in (("one", 1, 1e-6), ("all", 10**6, 1.0))
    )
    rounding = 1e-6 if name == "kept" else 1e-12  # what is kept is float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding * np.nanmax(np.abs(wanted)))


@pytest.mark.parametrize("name", ["ekfac", "full"])
def test_a_killed_run_goes_on_and_gives_the_same_bits(name, make, monkeypatch):
    writes = Writes(monkeypatch)
    few = {"tokens_per_batch": 128, "cache_gb": 2e-6}
    straight = METHODS[name].attribute(make("cnn", "straight", **few))
    total = writes.count
    assert total >= 3
    for last in (1, total - 1):
        writes.count, writes.last = 0, last
        with pytest.raises(Killed):
            METHODS[name].attribute(make("cnn", f"killed-{last}", **few))
        writes.count, writes.last = 0, None
        assert_same_bits(METHODS[name].attribute(make("cnn", f"killed-{last}", **few)), straight)
        assert writes.count == total - last


def test_kept_gradients_give_nearly_the_same(make):
    kept, exact = (influence.scores(METHODS[name].attribute(make())).values for name in ("kept", "ekfac"))
    known = ~np.isnan(exact)
    assert np.corrcoef(kept[known], exact[known])[0, 1] > 0.9999


def test_an_example_explains_itself_best(make):
    problem = make()
    pairs = np.tile(np.arange(TRAIN), (TRAIN, 1))
    own = dataclasses.replace(
        problem, queries=problem.train, query_set=["train"] * TRAIN, truth=pairs == pairs.T,
        candidates=Candidates(pairs, np.full(pairs.shape, np.nan)),
    )  # fmt: skip
    for method in (EKFAC(), Full()):
        values = influence.scores(method.attribute(own)).values
        assert (values.diagonal() > 0).all() and (values.argmax(1) == np.arange(TRAIN)).mean() > 0.5
        if isinstance(method, EKFAC):
            np.testing.assert_allclose(values, values.T, rtol=1e-6, atol=1e-12 * np.abs(values).max())


def test_selection_works_on_top(make):
    found = Select(EKFAC(), budget=0.9).attribute(make())
    assert found["weight"].values.sum() >= 1 and "component" in found["influence"].dims


def test_parts_of_a_network(make):
    assert EKFAC().layers(make("cnn")).names == ["conv1", "conv2", "fc1", "fc2"]
    grokking = EKFAC().layers(make("grokking"))
    assert all(name.startswith("layers.0.") for name in grokking.names) and len(grokking) == 6
    resnet = EKFAC().layers(make("resnet"))
    assert "norms" in resnet.components.unchosen and "res1.conv1.conv" in resnet.names
    with pytest.raises(UserError, match="without a factor rule: norms"):
        EKFAC(strict=True).layers(make("resnet"))
    with pytest.raises(UserError, match=r"method\.part=mlp: this model has no components of that name"):
        EKFAC(part="mlp").layers(make("cnn"))


def test_what_a_classifier_has_not_got(make):
    with pytest.raises(UserError, match=r"per_token=2: only a language model's examples have tokens"):
        EKFAC(per_token=2).attribute(make())


def test_a_faulty_input_is_named(make):
    problem = make()
    problem.train.inputs[4, 0, 2, 2] = torch.nan
    with pytest.raises(UserError, match="example 'e4': the gradient of component"):
        Full().attribute(problem)
    with pytest.raises(UserError, match="example 'e4'"):
        EKFAC().attribute(problem)
