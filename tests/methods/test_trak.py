"""TRAK against its dense formula, traker's own score computer, and whole gradients where the projection is exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, with_type

from tdaexp import influence
from tdaexp.gradients.feature_kernel import kernel
from tdaexp.gradients.passes import train_gradients
from tdaexp.methods.trak import out_to_loss
from tdaexp.runtime.errors import UserError

PAIRS = np.array([[0, 3, 5], [7, -1, 2]])


def features(seed=0, queries=2, train=9, components=3, dims=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(queries, dims)), rng.normal(size=(train, components, dims))


def pieces(train):
    """The examples four at a time, in an order of their own."""
    order = np.random.default_rng(1).permutation(len(train))
    return [(order[start : start + 4], train[order[start : start + 4]]) for start in range(0, len(train), 4)]


def test_the_kernel_is_the_dense_formula_and_traker_s():
    from trak.score_computers import BasicScoreComputer

    queries, train = features()
    phi = train.sum(1)
    found = kernel(queries, pieces(train), phi, PAIRS, ridge=0.0)
    wanted = queries @ np.linalg.inv(phi.T @ phi) @ phi.T
    theirs = BasicScoreComputer(torch.float32, torch.device("cpu"))
    grads, scores = torch.from_numpy(phi).float(), torch.zeros(9, 2)
    theirs.get_scores(theirs.get_x_xtx_inv(grads, theirs.get_xtx(grads)), torch.from_numpy(queries).float(), scores)
    scores *= np.abs(np.linalg.inv(phi.T @ phi)).mean()  # which traker divides by, for float16's sake
    for (row, column), index in np.ndenumerate(PAIRS):
        if index < 0:
            assert np.isnan(found[row, column]).all()
        else:
            assert found[row, column].sum() == pytest.approx(wanted[row, index], rel=1e-9)
            assert found[row, column].sum() == pytest.approx(float(scores[index, row]), rel=1e-3, abs=1e-5)


def test_ridge_is_a_share_of_the_mean_eigenvalue():
    queries, train = features()
    phi = train.sum(1)
    gram = phi.T @ phi
    wanted = queries @ np.linalg.inv(gram + 0.5 * np.trace(gram) / 4 * np.eye(4)) @ phi.T
    found = kernel(queries, pieces(train), phi, PAIRS[:1].repeat(2, 0), ridge=0.5).sum(-1)
    np.testing.assert_allclose(found, wanted[:, PAIRS[0]], rtol=1e-9)


def test_too_many_dimensions_without_ridge_are_an_error():
    queries, train = features(train=3)
    with pytest.raises(UserError, match=r"4 dimensions for 3 training examples leave ΦᵀΦ singular; set method.ridge"):
        kernel(queries, pieces(train), train.sum(1), PAIRS[:1, :1], ridge=0.0)


def margins(loaded, example):
    """Mean over predicted tokens of log(p / (1 - p)) and of 1 - p, by the definitions."""
    tokens = torch.from_numpy(example.tokens)
    p = torch.softmax(loaded.model(tokens[None]).logits[0], dim=-1)
    own = torch.stack([p[t - 1, tokens[t]] for t in range(1, len(tokens)) if example.loss_mask[t]])
    return (own.log() - (1 - own).log()).mean(), (1 - own).mean()


def test_weights_are_the_mean_of_one_minus_p(problem):
    found = out_to_loss(train_gradients(problem, problem.map), 200)
    wanted = [float(margins(problem.loaded, example)[1]) for example in problem.train]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("checkpoints", ["last", "all"])
def test_an_exact_projection_gives_the_scores_of_whole_gradients(make_problem, compose, tmp_path, checkpoints):
    """With as many dimensions as entries the factorised projection is the identity: TRAK without a sketch."""
    problem = make_problem(tmp_path, dtype=torch.float64)
    keys = ["method.projection=factorised", "method.dimensions=256", "method.components=[layers.1.attn.v]"]
    method = compose("method=trak", *keys, "method.ridge=0.1", f"method.checkpoints={checkpoints}")
    models = [problem.loaded]
    if checkpoints == "all":
        models = [dataclasses.replace(problem.loaded, model=one.load()) for one in problem.history.moments(None, 10)]
    kernels, weights = [], []
    for loaded in models:
        sides = []
        for examples in (problem.queries, problem.train):
            rows = []
            for example in examples:
                model = with_type(loaded, torch.float64)
                weight = dict(model.model.named_parameters())[PARAMETER["layers.1.attn.v"]].requires_grad_(True)
                rows.append(torch.autograd.grad(margins(model, example)[0], weight)[0].flatten().numpy())
            sides.append(np.stack(rows))
        gram = sides[1].T @ sides[1]
        inverse = np.linalg.inv(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)))
        kernels.append(sides[0] @ inverse @ sides[1].T)
        weights.append([float(margins(loaded, example)[1]) for example in problem.train])
    wanted = np.take_along_axis(np.mean(kernels, 0) * np.mean(weights, 0), problem.pairs, axis=1)
    found = influence.scores(method.attribute(problem)).values
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_keys_that_make_no_sense(compose, problem):
    for keys, message in (
        ("method.checkpoints=every", r"unknown checkpoints 'every'"),
        ("method.projection=trac", r"unknown projection 'trac'; did you mean 'trak'"),
        ("method.dimensions=0", r"method.dimensions=0: must be at least 1"),
        ("method.ridge=-1", r"method.ridge=-1.0: must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            compose("method=trak", keys)
    with pytest.raises(UserError, match=r"projection=factorised cannot give all components 380 dimensions"):
        compose("method=trak", "method.projection=factorised", "method.dimensions=380").attribute(problem)
