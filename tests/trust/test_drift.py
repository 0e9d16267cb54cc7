"""Drifts between batchings and types, against plain autograd and with planted faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_module import Small, gradients, loss

from tdaexp.gradients import assembly
from tdaexp.methods.dot import Dot
from tdaexp.trust.check import NotMeasured
from tdaexp.trust.drift import batch_drift, precision_drift
from tdaexp.trust.probe import FEW, FLOOR, Allowance, drift, probe_of, spread

NAMES = ["first", "last"]


def probe(problem):
    return probe_of(Dot(), problem, problem.map.names)


def freely():
    return Allowance(True, 1.0, 1)


def test_eight_pairs_and_their_products_are_autograds(small):
    problem = small(torch.float64)
    few = probe(problem)
    assert (len(few.queries), len(few.train)) == (2, 4)
    train, asked = (gradients(problem, side.examples, range(len(side))) for side in (few.train, few.queries))
    for batching in (True, False):
        found = few.products(alone=batching)
        for k, name in enumerate(NAMES):
            np.testing.assert_allclose(found["dot"][..., k], asked[name] @ train[name].T, rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(found["query_sq"][:, k], (asked[name] ** 2).sum(1), rtol=1e-10)


def test_a_model_whose_examples_do_not_meet_has_no_drift(small):
    check = batch_drift(probe(small()), freely())
    assert check.verdict == "good" and 0 <= check.value < 1e-5


@pytest.mark.parametrize(("leak", "verdict"), [(0.3, "bad"), (1e-3, "open")])
def test_a_layer_that_mixes_the_batch_is_seen(small, leak, verdict):
    problem = small()
    problem.model.leak = leak  # after the self-check, which would refuse it
    few = probe(problem)
    check = batch_drift(few, freely())
    assert check.verdict == verdict, check
    assert check.value > leak / 10


def test_a_hook_that_breaks_one_component_in_large_batches_is_named(small, monkeypatch):
    few, right = probe(small(torch.float64)), assembly.part_factors

    def wrong(part, module, inputs, delta):
        return right(part, module, inputs, delta * (1.5 if part.module == "last" and len(delta) > 1 else 1.0))

    monkeypatch.setattr(assembly, "part_factors", wrong)
    check = batch_drift(few, freely())
    assert check.verdict == "bad" and "'last'" in check.says
    alone = few.alone
    cosines = np.abs(alone["dot"][..., 1]) / np.sqrt(alone["query_sq"][:, None, 1] * alone["train_sq"][..., 1])
    assert check.value == pytest.approx((1.5**2 - 1) * cosines.max(), rel=1e-9)


def test_what_float32_rounds_away_is_that_of_autograd(small):
    problem = small()
    problem.model.offset = 3e5  # float32 keeps steps of 1/32 there
    few = probe(problem)
    check = precision_drift(few, freely(), 1.0)
    rough = [gradients(problem, side.examples, range(len(side))) for side in (few.train, few.queries)]
    problem.model.double()
    fine = [gradients(problem, side.examples, range(len(side))) for side in (few.train, few.queries)]
    dots, exact = ([asked[name] @ train[name].T for name in NAMES] for train, asked in (rough, fine))
    sizes = [np.outer(*(np.linalg.norm(one[name], axis=1) for one in fine[::-1])) for name in NAMES]
    whole = np.sqrt(np.outer(*(sum((one[name] ** 2).sum(1) for name in NAMES) for one in fine[::-1])))
    worst = max(
        (np.abs(a - b) / np.maximum(size, FLOOR * whole)).max() for a, b, size in zip(dots, exact, sizes, strict=True)
    )
    worst = max(worst, (np.abs(sum(dots) - sum(exact)) / whole).max())
    assert check.value == pytest.approx(worst, rel=1e-3) and worst > 1e-3
    assert check.verdict != "good" and "trainer.precision=float64" in check.says


def test_float32_of_a_plain_model_is_good_and_the_model_stays_as_it_is(small):
    problem = small()
    before = {name: one.clone() for name, one in problem.model.state_dict().items()}
    check = precision_drift(probe(problem), freely(), 1.0)
    assert check.verdict == "good" and 0 < check.value < 1e-5
    after = problem.model.state_dict()
    assert all(after[name].dtype == one.dtype and torch.equal(after[name], one) for name, one in before.items())


def test_bfloat16_is_compared_with_float32(small):
    problem = small()
    problem.model.bfloat16()
    check = precision_drift(probe(problem), freely(), 1.0)
    assert "against float32" in check.says and 1e-4 < check.value < 0.3


class OneType(Small):
    """Holds a matrix that no conversion reaches."""

    def __init__(self):
        super().__init__()
        self.table = [torch.eye(5)]

    def forward(self, x):
        return super().forward(x @ self.table[0])


@pytest.mark.parametrize(
    ("made", "cache_gb", "reason"),
    [
        ({"dtype": torch.float64}, 1.0, "float64 is the widest"),
        ({}, 1e-9, "more than trainer.cache_gb=1e-09"),
        ({"model": OneType(), "of": loss}, 1.0, "does not run as a copy in float64"),
    ],
)
def test_where_no_wider_type_can_be_had_the_reason_is_given(small, made, cache_gb, reason):
    few = probe(small(**made))
    with pytest.raises(NotMeasured, match=reason):
        precision_drift(few, freely(), cache_gb)


def test_one_example_a_batch_had_no_companions(small):
    problem = small()
    few = probe_of(Dot(), problem, problem.map.names, 1, 1)
    with pytest.raises(NotMeasured, match="no two of the examples fit a batch"):
        batch_drift(few, freely())


def test_a_small_component_is_judged_by_the_whole_and_nothing_by_nothing():
    def found(*dots, squares=(1.0, 1e-12)):
        return {
            "dot": np.array([[dots]]),
            "query_sq": np.array([squares]),
            "train_sq": np.array([[squares]]),
        }

    value, place = drift(found(0.5, 1e-13), found(0.5, 0.0), NAMES)
    assert value == pytest.approx(1e-13 / FLOOR) and place == "the component 'last'"
    assert drift(found(0.6, 0.0), found(0.5, 0.0), NAMES)[0] == pytest.approx(0.1)
    zero = found(0.0, 0.0, squares=(0.0, 0.0))
    assert drift(zero, zero, NAMES)[0] == 0.0
    assert drift(found(1e-9, 0.0, squares=(0.0, 0.0)), zero, NAMES)[0] == np.inf


def test_passes_are_at_most_two_per_cent_or_a_second_unless_more_are_wanted():
    usual = Allowance(None, run=1e6, parameters=10**6)
    usual.spend(1e4)
    usual.spend(1e4)
    with pytest.raises(NotMeasured, match=r"about 0.0001 % .* trust=true measures it"):
        usual.spend(1.0)
    short = Allowance(None, run=1.0, parameters=1)
    short.spend(FEW / 6)
    with pytest.raises(NotMeasured):
        short.spend(FEW / 6)
    Allowance(True, run=1.0, parameters=1).spend(1e15)
    with pytest.raises(NotMeasured, match="trust=false"):
        Allowance(False, run=1e9, parameters=1).spend(1.0)


def test_examples_are_spread_from_short_to_long():
    assert spread(np.array([5, 1, 9, 3, 7]), 3) == [1, 0, 2]
    assert spread(np.array([4, 4]), 5) == [0, 1] and spread(np.array([2]), 3) == [0]
