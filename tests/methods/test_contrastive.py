"""Every method of gradients answers a query that compares two answers with the difference of the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_problem import TRAIN

from tdaexp.data.candidates import Candidates
from tdaexp.data.records import Record
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError

LINEAR = [
    "full",
    "dot",
    "project",
    "ekfac",
    "ekfac_mlp",
    "trak",
    "tracin",
    "cg",
    "lissa",
    "logra",
    "datainf",
    "multistage",
    "multistage_dot",
    "source",
]
SOLVED = {"cg": ["method.tolerance=1e-9", "method.iterations=60"]}  # closer than what is compared
WANTED = Record("wanted", "Where does Anna live?", "Anna lives in Riga.")
OTHER = Record("other", "Where does Anna live?", "Far away, in a house by the sea.")


@pytest.fixture
def compared(make_problem: Callable[..., Problem], tmp_path) -> Problem:
    """Three queries: one of two answers, and each of the two alone; all training examples."""
    asked = [replace(WANTED, id="both", rejected=OTHER), WANTED, OTHER]
    problem = make_problem(tmp_path, queries={"paraphrased": asked}, candidates=len(TRAIN), dtype=torch.float64)
    pairs = np.tile(np.arange(len(TRAIN)), (3, 1))
    return replace(problem, candidates=Candidates(pairs, np.zeros(pairs.shape)), truth=np.zeros(pairs.shape, bool))


@pytest.mark.parametrize("name", LINEAR)
def test_the_answer_is_the_difference_of_the_two(name, configured, compared):
    method = configured(name, *SOLVED.get(name, []))
    values = method.attribute(compared if method.both_stages else compared.after("pretrained"))["influence"].values
    both, wanted, other = values
    scale = np.abs(values).max()
    assert np.abs(other).max() > 1e-3 * scale  # there is something to subtract
    np.testing.assert_allclose(both, wanted - other, atol=1e-6 * scale)


def test_a_cosine_is_that_of_the_difference(configured, compared):
    """Its self-product is of the difference, with the cross product that a difference of scores would not have."""
    found = configured("full").attribute(compared.after("pretrained"))["query_sq"].values
    both, wanted, other = found
    assert (both > 0).all() and not np.allclose(both, wanted - other)
    assert (np.sqrt(both) <= np.sqrt(wanted) + np.sqrt(other) + 1e-9).all()  # triangle


@pytest.mark.parametrize(("name", "keys"), [("repsim", []), ("ekfac", ["method.per_token=2"])])
def test_what_is_about_one_text_is_refused(name, keys, configured, compared):
    with pytest.raises(UserError, match="'both' compares two answers"):
        configured(name, *keys).attribute(compared.after("pretrained"))
