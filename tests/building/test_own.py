"""A module, data and a loss of somebody's own: the example of docs/methods.md, against plain autograd."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp import influence
from tdaexp.building.own import LOOKED_AT, own_problem
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.select import Select
from tdaexp.runtime.errors import UserError


class Odd(nn.Module):
    """A bare parameter, a layer that runs twice, a grouped convolution, and layers with a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.norm = nn.Linear(5, 6), nn.Parameter(torch.randn(6)), nn.LayerNorm(6)
        self.twice, self.grouped, self.last = nn.Linear(6, 6), nn.Conv1d(6, 6, 3, groups=2, padding=1), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x)) * self.scale
        hidden = self.twice(torch.relu(self.twice(self.norm(hidden))))
        return self.last(hidden + self.grouped(hidden[:, :, None])[:, :, 0])


@pytest.fixture
def mine():
    torch.manual_seed(0)
    rows = [(torch.randn(5).double(), torch.randn(2).double()) for _ in range(11)]
    return Odd().double(), rows[:8], rows[8:]


def loss(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1], reduction="none").sum(1)


def gradient(model: nn.Module, row) -> torch.Tensor:
    """Of one example's loss, flat, in the model's parameter order."""
    alone = [part[None] for part in row]
    found = torch.autograd.grad(loss(model, alone).sum(), list(model.parameters()), materialize_grads=True)
    return torch.cat([one.flatten() for one in found])


def test_the_pages_example_gives_cosines_of_whole_gradients(repository, mine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module, train_set, query_set = mine
    page = (repository / "docs" / "methods.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    known = {"torch": torch, "module": module, "train_set": train_set, "query_set": query_set}
    exec(code, known)
    answer = known["answer"]
    train, asked = (torch.stack([gradient(module, row) for row in rows]) for rows in (train_set, query_set))
    wanted = nn.functional.normalize(asked) @ nn.functional.normalize(train).T
    np.testing.assert_allclose(influence.scores(answer).values, wanted.numpy(), atol=1e-12)
    assert list(answer["component"].values) == ["parameters", "first", "norms", "twice", "grouped", "last"]
    assert int(answer["size"].sum()) == sum(parameter.numel() for parameter in module.parameters())
    assert Path("cache").is_dir()


def test_its_modes_and_gradients_are_left_as_they_were(mine, tmp_path):
    module, train, queries = mine
    module.train()
    module.norm.eval()
    Select(on=EKFAC(), objective="fidelity")  # composed, not run
    own_problem(module, train, queries, loss=loss, cache=tmp_path)
    assert module.training and module.twice.training and not module.norm.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda model, batch: loss(model, batch).mean(), r"gives \[\] for 4 examples; it must return one number"),
        (lambda model, batch: 3.0, "gives float for 4 examples"),
    ],
)
def test_a_loss_of_another_shape_is_refused(mine, tmp_path, wrong, words):
    module, train, queries = mine
    with pytest.raises(UserError, match=words):
        own_problem(module, train, queries, loss=wrong, cache=tmp_path)


def test_an_empty_data_set_is_refused(mine, tmp_path):
    module, train, _ = mine
    with pytest.raises(UserError, match="queries: holds no example"):
        own_problem(module, train, [], loss=loss, cache=tmp_path)


def test_other_weights_data_or_loss_are_another_problem(mine, tmp_path):
    module, train, queries = mine

    def other(model: nn.Module, batch) -> torch.Tensor:
        return 2 * loss(model, batch)

    first = own_problem(module, train, queries, loss=loss, cache=tmp_path)
    same = own_problem(module, train, queries, loss=loss, cache=tmp_path)
    assert first.fingerprint == same.fingerprint
    assert own_problem(module, train, queries, loss=other, cache=tmp_path).identity != first.identity
    assert own_problem(module, train[1:], queries, loss=loss, cache=tmp_path).fingerprint != first.fingerprint
    with torch.no_grad():
        module.scale[0] += 1
    assert own_problem(module, train, queries, loss=loss, cache=tmp_path).identity != first.identity


class Sorted(nn.Module):
    """Puts its batch in another order and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = x[:, 0].argsort()
        return self.last(torch.tanh(self.inner(x[order]))[order.argsort()])


class Routed(nn.Module):
    """Sends each example through one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.last = nn.ModuleList(nn.Linear(5, 6) for _ in range(2)), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        way, hidden = (x[:, 0] > 0).long(), x.new_zeros(len(x), 6)
        for number, expert in enumerate(self.experts):
            if (way == number).any():
                hidden[way == number] = torch.tanh(expert(x[way == number]))
        return self.last(hidden)


FIRST = {
    "sorted already": [-1.0, 0.5, 1.0, 2.0, -2.0, 1.5, 0.1, -0.2],
    "sorted backwards": [2.0, 1.0, 0.5, -1.0, -2.0, 1.5, 0.1, -0.2],
    "all of one way": [1.0, 0.5, 2.0, 0.7, 0.1, 1.5, -2.0, -0.2],
}
"""The first numbers of the training examples, by which a module sorts or chooses."""


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(("kind", "formed"), [(Sorted, {"inner"}), (Routed, {"experts.0", "experts.1"})])
def test_a_layer_whose_rows_are_not_the_examples_in_order_has_no_rule(mine, tmp_path, kind, formed, first):
    _, train, queries = mine
    for (values, _), number in zip(train, FIRST[first], strict=True):
        values[0] = number
    module = kind().double()
    problem = own_problem(module, train, queries, loss=loss, cache=tmp_path)
    assert {one.name for one in problem.map.components if not one.captured} == formed
    gradients = Gradients(module, problem.map, problem.train, problem.objective)
    found, wanted = (
        gradient_vectors(gradients, list(range(len(train)))),
        torch.stack([gradient(module, row) for row in train]),
    )
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, rtol=1e-10, atol=1e-12)


def test_examples_that_take_a_way_that_no_probe_showed_are_told_in_one_line(mine, tmp_path):
    """The first ones all go through one layer, which is then taken to be run by all."""
    torch.manual_seed(0)
    train = [
        (torch.randn(5).double().abs() * (1 - 2 * (row >= LOOKED_AT)), torch.randn(2).double()) for row in range(40)
    ]
    problem = own_problem(Routed().double(), train, None, loss=loss, cache=tmp_path)
    gradients = Gradients(problem.model, problem.map, problem.train, problem.objective)
    with pytest.raises(UserError, match=r"'experts.1' is applied to 2 rows of 5 examples"):
        gradient_vectors(gradients, [0, 1, 33, 34, 35])
