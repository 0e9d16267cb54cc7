"""AdamW's metric for `dot`, `full` and `project`: each entry over √v̂ + ε, against explicit gradients in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, explicit_gradients, join, with_state, without_state

from tdaexp import influence
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products

ADAMW = "method.precondition=adamw"


class Without:
    """A history without a checkpoint, in the words of `training.history`."""

    def moments(self, steps, count):
        raise UserError("no checkpoints beside it; name the folder of a training with trainer.fit.keep=all")


@pytest.fixture
def stated(make_problem, tmp_path):
    """A problem in float64 whose training kept AdamW's state, on its texts."""
    return with_state(make_problem(tmp_path / "cache", dtype=torch.float64)).after("pretrained")


def products(problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q·z, q·q and z·z in the metric [Q, N], [Q], [N]."""
    names, history = list(PARAMETER), problem.history
    below = torch.cat(
        [history.average(20, PARAMETER[name], "second").flatten().double().sqrt() + 1e-3 for name in names]
    )
    queries, train = (
        torch.stack([join(row, names) for row in explicit_gradients(problem.loaded, side)])
        for side in (problem.queries, problem.train)
    )
    squares = [(side.square() / below).sum(1).numpy() for side in (queries, train)]
    return ((queries / below) @ train.T).numpy(), squares[0], squares[1]


def test_dot_and_full_are_those_of_the_metric(stated, compose):
    dot, query_sq, train_sq = products(stated)
    found = influence.scores(compose("method=dot", ADAMW).attribute(stated)).values
    wanted = np.take_along_axis(dot, stated.pairs, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())  # v̂ is float32
    found = influence.scores(compose("method=full", ADAMW).attribute(stated)).values
    cosine = dot / np.sqrt(np.outer(query_sq, train_sq))
    np.testing.assert_allclose(found, np.take_along_axis(cosine, stated.pairs, axis=1), rtol=1e-6, atol=1e-8)
    plain = influence.scores(compose("method=full").attribute(stated)).values
    assert np.abs(found - plain).max() > 0.01


def test_a_whole_projection_keeps_them(stated, compose):
    keys = ("method.components=[layers.1.attn.v,layers.0.mlp.up]", ADAMW)
    found = compose("method=project", "budget=1", *keys).attribute(stated)["influence"].values
    wanted = compose("method=dot", *keys).attribute(stated)["influence"].values
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-12)


def test_labels_and_what_a_training_must_keep(compose):
    assert compose("method=dot", ADAMW).label == "dot (adamw metric)"
    assert compose("method=full", ADAMW).label == "full (adamw metric)"
    assert compose("method=project", ADAMW).label == "project (factorised, 5 %, adamw metric)"
    for name in ("dot", "full", "project"):
        plain, ours = compose(f"method={name}"), compose(f"method={name}", ADAMW)
        assert ours.wants_state and ours.wants_checkpoints and not ours.sharded
        assert not plain.wants_state and not plain.wants_checkpoints and plain.sharded
        with pytest.raises(UserError, match=r"unknown precondition 'adam'; did you mean 'adamw'"):
            compose(f"method={name}", "method.precondition=adam")


@pytest.mark.parametrize("name", ["dot", "project", "less"])
def test_a_training_that_kept_no_state(name, problem, compose):
    keys = [] if name == "less" else [ADAMW]
    with pytest.raises(UserError, match=r"left no state of its optimiser.*train it with trainer\.fit\.keep=state"):
        compose(f"method={name}", *keys).attribute(without_state(problem.after("pretrained")))
    alone = dataclasses.replace(problem, history=None, finetuned=None)
    with pytest.raises(UserError, match=r"no state of its optimiser that is known here.*trainer\.fit\.keep=state"):
        compose(f"method={name}", *keys).attribute(alone)
    with pytest.raises(UserError, match=r"no checkpoints beside it.*a training with trainer\.fit\.keep=state"):
        compose(f"method={name}", *keys).attribute(dataclasses.replace(alone, history=Without()))


def test_stored_products_are_in_the_plain_metric(products_file, compose):
    with pytest.raises(UserError, match=r"stored products are in the plain metric.*method\.precondition=none"):
        compose("method=dot", ADAMW).from_products(read_products(products_file))
