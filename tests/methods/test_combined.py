"""A mean of questions against autograd of their mean measurement, and methods that have no such mean."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_problem import TRAIN, explicit_gradients, join, tokens

from tdaexp import influence
from tdaexp.data.candidates import Candidates
from tdaexp.methods.base import check_combines
from tdaexp.metrics.combining import mean_query
from tdaexp.runtime.errors import UserError


def test_the_mean_of_dot_products_is_that_of_the_mean_gradient(loaded, problem, configured):
    every = np.tile(np.arange(len(TRAIN)), (len(problem.queries), 1))
    problem = dataclasses.replace(problem, candidates=Candidates(every, np.zeros(every.shape)), truth=every < 0)
    found = mean_query(configured("dot").attribute(problem))
    names = problem.components().names
    train = [join(one, names) for one in explicit_gradients(loaded, tokens(TRAIN, loaded))]
    asked = torch.stack([join(one, names) for one in explicit_gradients(loaded, problem.queries)])
    for row, name in enumerate(found["query_set"].values):
        mean = asked[torch.tensor([group == name for group in problem.query_set])].mean(0)
        wanted = torch.stack([one @ mean for one in train]).numpy()
        np.testing.assert_allclose(
            influence.scores(found).values[row], wanted, rtol=1e-4, atol=1e-5 * abs(wanted).max()
        )


@pytest.mark.parametrize("name", ["dot", "trak"])
def test_what_is_called_linear_has_no_norms_of_queries(problem, configured, name):
    found = configured(name).attribute(problem)
    assert configured(name).linear and found.attrs["normalise"] == "none" and "query_sq" not in found


@pytest.mark.parametrize("name", ["full", "select", "project", "repsim", "cka", "less", "trackstar"])
def test_a_cosine_has_no_mean(configured, name):
    with pytest.raises(UserError, match=f"method={name} is not linear in the query"):
        check_combines(configured(name))


def test_all_questions_are_meant(configured):
    with pytest.raises(UserError, match=r"set method\.queries=null"):
        check_combines(configured("cg", "method.queries=3"))
    with pytest.raises(UserError, match="per_token"):
        check_combines(configured("ekfac", "method.per_token=2"))
    names = "dot ekfac cg astra lissa arnoldi trak tracin multistage source bm25 random logra datainf"
    for name in names.split():
        check_combines(configured(name))
