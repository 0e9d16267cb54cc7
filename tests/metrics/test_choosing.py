"""Choices by retrieval and by retraining: on a store where one component does the one and another the other."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics.choosing import ALL, PEAK, Evidence, alone, choices, ldss, orders, overlap, resampled
from tdaexp.metrics.intervals import around
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError
from tdaexp.selection.trials import LDS

QUERIES, TRAIN, TRIALS = 12, 30, 40
SETTINGS = MetricSettings(bootstrap=200, folds=3)
SIZES = [10, 10, 80]


def store(seed: int = 0):
    """Component `source` finds the source, `models` moves the models, `noise` is neither."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(QUERIES, TRAIN, 3))
    truth = np.arange(TRAIN) == rng.integers(TRAIN, size=QUERIES)[:, None]
    values[..., 0] = 9.0 * truth + 0.1 * values[..., 0]
    members = rng.random((TRIALS, TRAIN)) < 0.8
    outputs = members @ values[..., 1].T + 0.1 * rng.normal(size=(TRIALS, QUERIES))
    ids = np.array([f"t{k}" for k in range(TRAIN)], dtype=object)
    found = influence.build(
        values, query=[f"q{k}" for k in range(QUERIES)], query_set=["asked"] * QUERIES,
        train=np.tile(ids, (QUERIES, 1)), truth=truth, truth_known=np.ones(QUERIES, bool),
        component=["source", "models", "noise"], size=np.array(SIZES),
    )  # fmt: skip
    found = found.assign(member=(("subset", "row"), members), retrained=(("subset", "query"), outputs))
    return found.assign_coords(row=ids)


def find(found, objective, stop):
    return next(one for one in found if (one.objective, one.stop) == (objective, stop))


def test_each_objective_chooses_its_own_component_and_is_judged_on_both():
    known = Evidence.of(store(), SETTINGS)
    found = choices(known, ("accuracy", LDS), [0.1])
    by_accuracy, by_lds, everything = (find(found, *key) for key in (("accuracy", "0.1"), (LDS, "0.1"), (ALL, "")))
    assert (
        by_accuracy.chosen.tolist() == [[True, False, False]] * 6
        and by_lds.chosen.tolist() == [[False, True, False]] * 6
    )
    assert overlap(by_accuracy, by_lds) == 0 and overlap(by_lds, by_lds) == 1
    assert by_accuracy.found.mean() == 1 > by_lds.found.mean()
    assert ldss(known, by_lds.foretold).mean() > 0.95 > 0.5 > abs(ldss(known, by_accuracy.foretold).mean())
    assert ldss(known, by_accuracy.foretold).mean() < ldss(known, everything.foretold).mean() < 0.9
    assert find(found, LDS, PEAK).chosen[:, 1].all() and not find(found, LDS, PEAK).chosen.all()
    accuracy, lds, correlation = alone(known)
    assert accuracy[0] == 1 and lds.argmax() == 1 and correlation.low <= correlation.value <= correlation.high
    first, second = orders(known)
    assert first[0] == "source" and second[0] == "models"


def test_a_prediction_comes_from_a_choice_that_saw_neither_its_query_nor_its_models():
    """With what one half measured of the queries turned round, predictions for that half stay as they are."""
    known = Evidence.of(store(), SETTINGS)
    mine = known.half == 0
    turned = store()
    outputs = turned["retrained"].values.copy()
    outputs[mine] = -outputs[mine]
    other = Evidence.of(turned.assign(retrained=(("subset", "query"), outputs)), SETTINGS)
    one, two = (find(choices(each, (LDS,), []), LDS, PEAK).foretold for each in (known, other))
    np.testing.assert_array_equal(one[mine], two[mine])
    assert not np.array_equal(one[~mine], two[~mine])


def test_resamples_are_about_the_value_and_shared():
    known = Evidence.of(store(), SETTINGS)
    found = choices(known, (LDS,), [0.1])
    draws = [resampled(known, one.foretold) for one in found]
    for one, drawn in zip(found, draws, strict=True):
        value = ldss(known, one.foretold).mean()
        told = around(value, drawn, SETTINGS)
        assert 0 < told.high - told.low < 1 and abs(np.median(drawn) - value) < (told.high - told.low) / 2
    np.testing.assert_array_equal(draws[0], resampled(known, found[0].foretold))


def test_what_cannot_be_studied_is_refused():
    with pytest.raises(UserError, match=r"run attribute.py method=select method.objective=lds"):
        Evidence.of(store().drop_vars(["retrained", "member"]), SETTINGS)
    with pytest.raises(UserError, match="leaves none to choose by"):
        choices(Evidence.of(store().isel(query=slice(1)), SETTINGS), (LDS,), [])
