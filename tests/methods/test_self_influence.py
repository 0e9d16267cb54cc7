"""Self-influence against the diagonal of all pairs, and RelatIF against its definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import xarray as xr

from tdaexp import influence
from tdaexp.data.candidates import Candidates
from tdaexp.methods.ekfac import EKFAC
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError

HAVE = ["dot", "full", "ekfac", "ekfac_mlp", "project", "trak", "tracin", "cg", "astra", "lissa", "arnoldi"]
HAVE += ["logra", "datainf"]
UNREAD = {"ekfac": {"measurement": "first_token_logit"}, "trak": {"relative": True}, "dot": {"relative": True}}
"""Keys that do not change it."""
SMALL = {"trak": ["method.dimensions=4"], "project": ["budget=0.1"]}


@pytest.fixture
def every_pair(make_problem, tmp_path) -> Problem:
    """The training examples asked about each other, all with all."""
    problem = make_problem(tmp_path, tokens_per_batch=60).after("pretrained")
    count = len(problem.train)
    return dataclasses.replace(
        problem,
        queries=problem.train,
        query_set=["train"] * count,
        candidates=Candidates(np.tile(np.arange(count), (count, 1)), np.full((count, count), np.nan)),
        truth=np.eye(count, dtype=bool),
        truth_known=np.ones(count, dtype=bool),
    )


@pytest.mark.parametrize("name", HAVE)
def test_it_is_the_diagonal_of_all_pairs(name, configured, every_pair):
    method = configured(name, *SMALL.get(name, []))
    found = method.self_influence(every_pair)
    assert found["self_influence"].dims == ("train", "component")
    assert list(found["train"].values) == every_pair.train.ids
    whole = method.attribute(every_pair)["influence"].values
    diagonal = whole[np.arange(len(whole)), np.arange(len(whole))]
    scale = np.abs(diagonal).max()
    np.testing.assert_allclose(found["self_influence"].values, diagonal, atol=2e-5 * scale)
    assert (found["self_influence"].sum("component") > 0).all()
    if name in UNREAD:
        measured = dataclasses.replace(method, **UNREAD[name]).self_influence(every_pair)
        np.testing.assert_array_equal(measured["self_influence"].values, found["self_influence"].values)


@pytest.mark.parametrize("name", ["bm25", "random", "repsim", "cka", "select", "trackstar"])
def test_methods_that_have_none_say_so(name, configured, every_pair):
    with pytest.raises(UserError, match=f"self_influence: of method={name} .* says nothing; take ekfac"):
        configured(name).self_influence(every_pair)


@pytest.mark.parametrize("name", ["dot", "ekfac", "trak", "logra"])
def test_relatif_divides_by_the_root_of_it(name, configured, every_pair):
    method = configured(name, *SMALL.get(name, []))
    pairs = every_pair.pairs.copy()
    pairs[0, 0] = -1
    asked = dataclasses.replace(
        every_pair.of_queries(range(3)), candidates=Candidates(pairs[:3], np.full((3, len(pairs)), np.nan))
    )
    plain = method.attribute(asked)["influence"].values.astype(np.float64)
    whole = method.attribute(every_pair)["influence"].values.astype(np.float64).sum(2)
    relative = dataclasses.replace(method, relative=True)
    found = relative.attribute(asked)
    np.testing.assert_allclose(
        found["influence"].values, plain / np.sqrt(np.diag(whole))[:, None], rtol=2e-4, atol=1e-6
    )
    assert np.isnan(found["influence"].values[0, 0]).all() and "relative" in relative.label
    np.testing.assert_allclose(influence.scores(found).values, found["influence"].values.sum(2))


class Without(EKFAC):
    """A method in whose metric the second example has no gradient."""

    def self_influence(self, problem: Problem) -> xr.Dataset:
        values = np.ones((len(problem.train), 2)) * np.arange(1, len(problem.train) + 1)[:, None]
        values[1] = 0
        return xr.Dataset({"self_influence": (("train", "component"), values)})


def test_an_example_without_a_gradient_has_no_relative_influence(every_pair):
    ones = np.ones((*every_pair.pairs.shape, 2))
    found = Without(relative=True).relative_to_self(every_pair, ones)[:]
    assert (found[:, 1] == 0).all() and np.allclose(found[:, 2], 6**-0.5)


def test_shares_of_tokens_are_not_made_relative():
    with pytest.raises(UserError, match=r"method\.per_token=2: tokens' shares add up to the score before"):
        EKFAC(relative=True, per_token=2)
