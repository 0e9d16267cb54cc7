"""The ceiling of a sketch, against projections that are formed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_module import gradients

from tdaexp.gradients.features import component_features
from tdaexp.gradients.sketch import Sketch
from tdaexp.methods.dot import Dot
from tdaexp.trust import sketch
from tdaexp.trust.check import NotMeasured
from tdaexp.trust.probe import Allowance, few_pairs, sides_of
from tdaexp.trust.sketch import Sketched, sketch_ceiling


class Matrix(Sketch):
    """A projection by a matrix [dim, numel]."""

    def __init__(self, component, matrix):
        super().__init__(component.matrix, len(matrix))
        self.rows = torch.from_numpy(matrix)

    def _project(self, gradient):
        return gradient @ self.rows.T.to(gradient)


def ceiling(problem, matrices, folder, summed=False, most=(4, 8)):
    """The few pairs that are looked at, and the check of an answer with these sketches."""
    train, queries = sides_of(Dot(), problem, problem.map.names)
    sketches = {one.name: Matrix(one, matrices[one.name]) for one in problem.map.components}

    def features():
        sides = {"queries": queries, "train": train}
        return tuple(component_features(side, sketches, store=folder / role) for role, side in sides.items())

    sketched = Sketched(train, queries, problem.pairs, features, summed)
    few, *_ = few_pairs(train, queries, problem.pairs, 4096, *most)
    return few, sketch_ceiling(sketched, 4096, Allowance(True, 1.0, 1))


def sizes(problem):
    return {one.name: one.matrix[0] * one.matrix[1] for one in problem.map.components}


def test_a_sketch_that_keeps_all_is_perfect(small, tmp_path):
    problem = small(torch.float64)
    _, check = ceiling(problem, {name: np.eye(size) for name, size in sizes(problem).items()}, tmp_path)
    assert check.value == pytest.approx(1.0) and check.verdict == "good" and "57 dimensions" in check.says


@pytest.mark.parametrize("summed", [False, True])
def test_it_is_the_rank_correlation_of_projections_by_hand(small, tmp_path, summed):
    problem, rng = small(torch.float64), np.random.default_rng(0)
    matrices = {name: rng.normal(size=(3, size)) for name, size in sizes(problem).items()}
    few, check = ceiling(problem, matrices, tmp_path, summed)
    whole, rough = [], []
    for side in (few.queries, few.train):
        found = gradients(problem, side.examples, range(len(side)))
        whole.append(np.concatenate(list(found.values()), axis=1))
        parts = [found[name] @ matrices[name].T for name in found]
        rough.append(sum(parts) if summed else np.concatenate(parts, axis=1))

    def cosines(sides):
        one, other = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
        return (one @ other.T).ravel()

    assert check.value == pytest.approx(spearmanr(cosines(whole), cosines(rough)).statistic, abs=1e-9)


def test_one_dimension_is_too_small(small, tmp_path):
    problem, rng = small(), np.random.default_rng(0)
    matrices = {name: rng.normal(size=(1, size)) for name, size in sizes(problem).items()}
    _, check = ceiling(problem, matrices, tmp_path, True)
    assert check.verdict == "bad" and "more dimensions keep more" in check.says


def test_few_pairs_say_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sketch, "QUERIES", 1)
    monkeypatch.setattr(sketch, "EXAMPLES", 2)
    problem = small()
    with pytest.raises(NotMeasured, match="2 pairs says nothing"):
        ceiling(problem, {name: np.eye(size) for name, size in sizes(problem).items()}, tmp_path)
