"""What a lack of memory does to a whole method. It is a fake: a model that refuses many examples at a time."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from shared_work import fresh, short_methods

from tdaexp import influence
from tdaexp.models.forward import runs_whole
from tdaexp.runtime.errors import UserError

METHODS = {"full": ("full",)} | short_methods("method.relative_damping=300", "method.examples=8")

KINDS = {"astra": 4}
"""Kinds of work where there are more than three: factors, their eigenvalues, products of batches, scores."""


def scarce(problem, most: int):
    """Let the problem's models run out of memory for more than so many examples at a time."""

    def refuse(_module, arguments, keywords) -> None:
        tokens = keywords.get("input_ids", arguments[0] if arguments else None)
        if len(tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for model in (problem.loaded.model, problem.finetuned.loaded.model):
        runs_whole(model)  # found out beforehand, with two short texts
        model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    return problem


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_out_of_memory_halves_the_batches_and_goes_on(name, compose, make_problem, tmp_path, caplog):
    method, *more = METHODS[name]
    usual = fresh(make_problem(tmp_path / "usual", tokens_per_batch=100, candidates=3))
    wanted = compose(f"method={method}", *more).attribute(usual)
    little = scarce(fresh(dataclasses.replace(usual, cache=tmp_path / "little")), 2)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="tdaexp"):
        found = compose(f"method={method}", *more).attribute(little)
    lines = [message for message in caplog.messages if message.startswith("out of memory")]
    assert 1 <= len(lines) <= KINDS.get(name, 3), lines  # one for each kind of work that did not fit
    one, other = influence.scores(wanted).values, influence.scores(found).values
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * np.nanmax(np.abs(one)))


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_halved_any_more_ends_in_one_line(name, compose, make_problem, tmp_path):
    method, *more = METHODS[name]
    problem = scarce(fresh(make_problem(tmp_path, tokens_per_batch=100, candidates=3)), 0)
    with pytest.raises(UserError, match="out of memory even with one example at a time") as error:
        compose(f"method={method}", *more).attribute(problem)
    assert "\n" not in str(error.value)
