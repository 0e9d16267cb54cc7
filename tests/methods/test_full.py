"""Full-gradient cosine and dot product against plain autograd in float64, and what they refuse."""

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, TRAIN, explicit_gradients, join, with_type

from tdaexp import influence
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products

EXACT = 1e-9  # float64


@pytest.fixture
def problem(make_problem, tmp_path):
    return make_problem(tmp_path / "cache", dtype=torch.float64)


def test_products_are_those_of_explicit_gradients(problem, compose):
    dataset = compose("method=full").attribute(problem)
    assert list(dataset["component"].values) == list(PARAMETER)
    queries = explicit_gradients(problem.loaded, problem.queries)
    train = explicit_gradients(problem.loaded, problem.train)
    for (q, c), t in np.ndenumerate(problem.pairs):
        for k, name in enumerate(PARAMETER):
            g, h = queries[q][name], train[t][name]
            assert dataset["size"].values[k] == len(g)
            assert dataset["query_sq"].values[q, k] == pytest.approx(float(g @ g), rel=EXACT)
            assert dataset["train_sq"].values[q, c, k] == pytest.approx(float(h @ h), rel=EXACT)
            scale = float(g.norm() * h.norm())
            assert dataset["influence"].values[q, c, k] == pytest.approx(float(g @ h), abs=EXACT * scale)


@pytest.mark.parametrize("components", [None, ["embed"], ["layers.1.mlp.up", "layers.0.attn.q", "layers.0.attn.k"]])
def test_scores_are_cosines_of_the_concatenated_gradients(problem, compose, components):
    method = compose("method=full")
    method.components = components
    scores = influence.scores(method.attribute(problem)).values
    queries = explicit_gradients(problem.loaded, problem.queries)
    train = explicit_gradients(problem.loaded, problem.train)
    for (q, c), t in np.ndenumerate(problem.pairs):
        g, h = (join(one, components or list(PARAMETER)) for one in (queries[q], train[t]))
        wanted = float(g @ h / (g.norm() * h.norm()))
        assert scores[q, c] == pytest.approx(wanted, abs=EXACT)


def test_dot_is_full_without_the_norms(problem, compose):
    full, dot = compose("method=full").attribute(problem), compose("method=dot").attribute(problem)
    np.testing.assert_array_equal(dot["influence"].values, full["influence"].values)
    assert dot.attrs["normalise"] == "none"
    norms = np.sqrt(full["query_sq"].sum("component")) * np.sqrt(full["train_sq"].sum("component"))
    np.testing.assert_allclose(influence.scores(dot), influence.scores(full) * norms, rtol=1e-10)


def test_dot_uses_the_products_that_full_has_stored(problem, compose, monkeypatch):
    compose("method=full").attribute(problem)
    monkeypatch.setattr(BlockStore, "write", lambda *_: pytest.fail("computed again"))
    compose("method=dot").attribute(problem)


def test_a_sum_over_tokens_scales_products_and_leaves_cosines(problem, compose):
    mean = compose("method=dot").attribute(problem)["influence"].values
    total = compose("method=dot", "method.reduction=sum").attribute(problem)["influence"].values
    counts = [np.array([example.loss_mask.sum() for example in part]) for part in (problem.queries, problem.train)]
    factor = counts[0][:, None] * counts[1][problem.pairs]
    assert len(np.unique(factor)) > 2
    # the model normalises layers in float32 whatever its type, hence no closer
    np.testing.assert_allclose(total, mean * factor[..., None], rtol=1e-5, atol=1e-5 * np.abs(total).max())
    cosines = [
        influence.scores(compose("method=full", f"method.reduction={name}").attribute(problem)).values
        for name in ("mean", "sum")
    ]
    np.testing.assert_allclose(*cosines, atol=1e-6)


def test_training_on_an_example_of_positive_score_makes_the_query_more_likely(problem, compose):
    """Steps of gradient descent on an example, forth and back, change a query's loss by rate times score."""
    rate = 1e-4  # losses have the noise of the model's float32 layer norms, 1e-7
    dataset = compose("method=full").attribute(problem)
    scores = dataset["influence"].sum("component").values
    norms = np.sqrt(dataset["query_sq"].sum("component")) * np.sqrt(dataset["train_sq"].sum("component"))
    for t, gradient in enumerate(explicit_gradients(problem.loaded, problem.train)):
        behind, ahead = (stepped(problem.loaded, gradient, step) for step in (-rate, rate))
        for q, c in np.argwhere(problem.pairs == t):
            gained = (loss(behind, problem.queries[q]) - loss(ahead, problem.queries[q])) / 2
            assert gained == pytest.approx(rate * scores[q, c], abs=0.01 * rate * norms.values[q, c])
    assert (scores < -0.05 * norms).any() and (scores > 0.05 * norms).any()


def stepped(loaded, gradient, rate):
    """The model after a step of gradient descent."""
    model = with_type(loaded, torch.float64)
    for name, parameter in PARAMETER.items():
        weight = model.model.get_parameter(parameter)
        weight -= rate * gradient[name].view_as(weight)
    return model


def loss(loaded, example):
    """Mean cross-entropy of the predicted tokens."""
    ids = torch.from_numpy(example.tokens)
    mask = torch.from_numpy(example.loss_mask)[1:]
    with torch.no_grad():
        logits = loaded.model(ids[None]).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits[mask], ids[1:][mask]))


@pytest.mark.parametrize("name", ["full", "dot"])
def test_unknown_names_are_refused(problem, compose, name):
    method = compose(f"method={name}", "method.components=[embed,layers.0.mlp.upp]")
    with pytest.raises(UserError, match=r"unknown component 'layers.0.mlp.upp'; did you mean 'layers.0.mlp.up'"):
        method.attribute(problem)
    with pytest.raises(UserError, match=r"method.reduction: unknown reduction 'average'"):
        compose(f"method={name}", "method.reduction=average")


@pytest.mark.parametrize("name", ["full", "dot", "project", "select"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_nan_is_named_with_its_example_and_component(problem, compose, name, where):
    """One training example meets a NaN: in its hidden states, or in its gradient below layer 1 only."""
    victim = int(problem.pairs[0, 0])
    wrong = problem.train[victim].tokens.tolist()
    layer = problem.loaded.model.model.layers[0]

    def spoil(module, arguments, output):
        marked = torch.zeros(len(output), 1, 1, dtype=torch.bool)
        for row in range(len(seen[-1])):
            marked[row] = seen[-1][row].tolist()[: len(wrong)] == wrong[: seen[-1].shape[1]]
        if not output.requires_grad and where == "backward":
            return output  # how long the shortcut to logits is tried
        if where == "forward":
            return output.masked_fill(marked, float("nan"))
        output.register_hook(lambda gradient: gradient.masked_fill(marked, float("nan")))
        return output

    seen = []
    hooks = [
        problem.loaded.model.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
        ),
        layer.register_forward_hook(spoil),
    ]
    component = "layers.1.mlp.down" if where == "forward" else "layers.0.mlp.down"
    state = "its loss is nan" if where == "forward" else r"its loss is \d"
    try:
        with pytest.raises(UserError, match=rf"example '{TRAIN[victim].id}'.*component '{component}' is nan \({state}"):
            compose(f"method={name}").attribute(problem)
    finally:
        for hook in hooks:
            hook.remove()


def test_on_stored_products(products_file, compose):
    products = read_products(products_file)
    assert compose("method=full").from_products(products).identical(products)
    dot = compose("method=dot").from_products(products)
    np.testing.assert_allclose(influence.scores(dot), products["influence"].values.sum(-1), rtol=1e-12)
