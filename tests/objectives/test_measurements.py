"""Measurements against their definitions, and their gradients through `capture`."""

from __future__ import annotations

import pytest
import torch

from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.measurements import MEASUREMENTS, as_loss, named
from tdaexp.runtime.errors import UserError

LOGITS = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
TARGETS = torch.tensor([[1, 2, 3, 0], [6, 0, 0, 0], [5, 5, 0, 0]])
REAL = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).double()
MEAN = REAL / REAL.sum(1, keepdim=True)


def by_hand(function) -> torch.Tensor:
    """Sum of function(probabilities, target) over the real tokens of each example."""
    probabilities = LOGITS.softmax(2)
    rows = []
    for row in range(3):
        terms = [function(probabilities[row, t], TARGETS[row, t]) for t in range(4) if REAL[row, t]]
        rows.append(torch.stack(terms))
    return rows


def test_log_likelihood_is_minus_the_cross_entropy():
    wanted = [terms.mean() for terms in by_hand(lambda p, y: p[y].log())]
    torch.testing.assert_close(named("log_likelihood")(LOGITS, TARGETS, MEAN), torch.stack(wanted))
    loss = as_loss(named("log_likelihood"))(LOGITS, TARGETS, MEAN)
    torch.testing.assert_close(loss, cross_entropy(LOGITS, TARGETS, MEAN))


def test_answer_log_probability_does_not_depend_on_the_reduction():
    wanted = torch.stack([terms.sum() for terms in by_hand(lambda p, y: p[y].log())])
    for weights in (MEAN, REAL):
        torch.testing.assert_close(named("answer_log_probability")(LOGITS, TARGETS, weights), wanted)


def test_logit_margin_is_the_log_odds():
    wanted = [terms.mean() for terms in by_hand(lambda p, y: (p[y] / (1 - p[y])).log())]
    torch.testing.assert_close(named("logit_margin")(LOGITS, TARGETS, MEAN), torch.stack(wanted))


def test_first_token_logit():
    wanted = LOGITS[torch.arange(3), 0, TARGETS[:, 0]]
    torch.testing.assert_close(named("first_token_logit")(LOGITS, TARGETS, MEAN), wanted)


def test_first_token_lead_is_positive_where_the_answer_is_the_likeliest():
    first = LOGITS[:, 0]
    asked = [(first[k], int(TARGETS[k, 0])) for k in range(3)]
    wanted = [min(row[label] - other for k, other in enumerate(row) if k != label) for row, label in asked]
    found = named("first_token_lead")(LOGITS, TARGETS, MEAN)
    torch.testing.assert_close(found, torch.stack(wanted))
    assert ((found > 0) == (first.argmax(1) == TARGETS[:, 0])).all()


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_more_likely_is_larger_and_padding_does_not_count(name):
    raised = LOGITS.clone().scatter_add_(2, TARGETS[..., None], torch.ones(3, 4, 1, dtype=torch.float64))
    assert (named(name)(raised, TARGETS, MEAN) > named(name)(LOGITS, TARGETS, MEAN)).all()
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(as_loss(named(name))(logits, TARGETS, MEAN).sum(), logits)
    assert (gradient[REAL == 0] == 0).all() and torch.isfinite(gradient).all()


def test_an_unknown_name_is_an_error():
    with pytest.raises(UserError, match=r"unknown measurement 'marginal'.*module:function"):
        named("marginal")
