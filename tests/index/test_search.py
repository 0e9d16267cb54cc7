"""Search piece by piece against one table of all products."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdaexp.index import search
from tdaexp.index.meeting import Meeting, euclidean
from tdaexp.index.running import Running
from tdaexp.index.search import extremes


@dataclass
class Held:
    """Rows in memory in place of an index."""

    table: np.ndarray
    step: int

    def __post_init__(self) -> None:
        self.place, self.row_bytes = np.arange(len(self.table)), self.table.shape[1] * 8
        self.problem = SimpleNamespace(compute=SimpleNamespace(device=torch.device("cpu")))

    def pieces(self, most):
        step = min(most, self.step)
        return [
            (SimpleNamespace(start=start), slice(0, min(step, len(self.table) - start)))
            for start in range(0, len(self.table), step)
        ]

    def read(self, block, some, device):
        return torch.from_numpy(self.table[block.start : block.start + some.stop])


def by_hand(queries, table, k, cosine):
    scores = queries @ table.T
    if cosine:
        scores = scores / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(table, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return order if len(table) <= 2 * k else np.concatenate([order[:, :k], order[:, -k:]], axis=1)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize(("rows", "k", "step"), [(50, 4, 7), (50, 4, 50), (9, 4, 2), (8, 4, 3), (5, 9, 2), (50, 1, 1)])
def test_the_first_and_the_last_of_all(monkeypatch, cosine, rows, k, step):
    rng = np.random.default_rng(rows + k)
    table, queries = rng.normal(size=(rows, 6)) * rng.lognormal(size=(rows, 1)), rng.normal(size=(11, 6))
    expected = by_hand(queries, table, k, cosine)
    assert extremes(Held(table, step), queries, k, Meeting(euclidean if cosine else None)).tolist() == expected.tolist()
    monkeypatch.setattr(search, "SCORE_BYTES", 8 * 11 * 3)  # three rows at a time
    few = extremes(
        Held(table, step), queries, k, Meeting(euclidean if cosine else None), cache_gb=5e-7
    )  # and two queries
    assert few.tolist() == expected.tolist()


def test_at_equal_scores_the_earlier_example_comes_first():
    one = Running(2, torch.zeros(1, 3))
    for first in (0, 2, 4):
        one.meet(torch.tensor([[1.0, 1.0]]), torch.tensor([first, first + 1]))
    assert one.numbers.tolist() == [[0, 1]]
    one.meet(torch.tensor([[0.5, 2.0]]), torch.tensor([6, 7]))
    assert one.numbers.tolist() == [[7, 0]] and one.scores.tolist() == [[2.0, 1.0]]
    late = Running(2, torch.zeros(1, 3), late=True)
    for first in (0, 2, 4):
        late.meet(torch.tensor([[1.0, 1.0]]), torch.tensor([first, first + 1]))
    assert late.numbers.tolist() == [[5, 4]]


def test_no_question_and_no_gradient():
    assert extremes(Held(np.ones((5, 2)), 2), np.zeros((0, 2)), 1, Meeting(euclidean)).shape == (0, 2)
    for step in (1, 2, 5):
        found = extremes(Held(np.zeros((5, 2)), step), np.ones((1, 2)), 2, Meeting(euclidean))  # all alike
        assert found.tolist() == [[0, 1, 3, 4]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.integers(1, 5))
def test_ties_are_in_the_order_of_the_examples_whatever_the_pieces(seed, k, rows, step):
    rng = np.random.default_rng(seed)
    table, queries = rng.integers(-1, 2, (rows, 2)).astype(float), rng.integers(-1, 2, (3, 2)).astype(float)
    assert extremes(Held(table, step), queries, k).tolist() == by_hand(queries, table, k, False).tolist()
