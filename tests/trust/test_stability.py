"""Rank stability against the enumeration of every draw, and on rankings that are planted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.trust import stability
from tdaexp.trust.check import NotMeasured
from tdaexp.trust.stability import RESAMPLES, best_of, rank_stability, resamples


def store(values, cosine=False, present=None):
    queries, candidates, components = values.shape
    rng = np.random.default_rng(3)
    train = np.array([[f"t{c}" for c in range(candidates)]] * queries, dtype=object)
    if present is not None:
        train = np.where(present, train, "")
        values = np.where(present[..., None], values, np.nan)
    squares = {} if not cosine else {
        "query_sq": rng.uniform(1, 2, (queries, components)),
        "train_sq": np.where(np.isnan(values), np.nan, rng.uniform(0.1, 4, values.shape)),
    }  # fmt: skip
    return influence.build(
        values,
        query=[f"q{n}" for n in range(queries)],
        query_set=["asked"] * queries,
        train=train,
        truth=np.zeros(train.shape, bool),
        bm25=np.zeros(train.shape),
        component=[f"c{k}" for k in range(components)],
        size=np.ones(components, int),
        **squares,
    )


@pytest.mark.parametrize("cosine", [False, True])
def test_all_draws_of_three_components(monkeypatch, cosine):
    every = list(itertools.product(range(3), repeat=3))
    draws = np.array([np.bincount(draw, minlength=3) for draw in every]).T.astype(float)
    monkeypatch.setattr(stability, "resamples", lambda components: draws)
    present = np.ones((4, 7), bool)
    present[1, 2] = present[3, 5] = False
    made = store(np.random.default_rng(0).normal(size=(4, 7, 3)), cosine, present)
    check = rank_stability(made, 2)
    kept = np.zeros((4, len(every)))
    for column, draw in enumerate(every):
        weight = np.bincount(draw, minlength=3)
        if cosine:
            import xarray as xr

            scores = influence.cosine(made, xr.DataArray(weight, dims="component")).values
        else:
            scores = sum(made["influence"].values[..., k] for k in draw)
        for row in range(4):
            full = influence.scores(made).values[row]
            best = {c for c in np.argsort(-np.nan_to_num(scores[row], nan=-np.inf))[:2].tolist()}
            kept[row, column] = len(best & set(np.argsort(-np.nan_to_num(full, nan=-np.inf))[:2].tolist())) / 2
    assert check.value == pytest.approx(kept.mean())
    assert list(check.details.values()) == pytest.approx(kept.mean(1).tolist())
    assert list(check.details) == ["asked/q0", "asked/q1", "asked/q2", "asked/q3"]


def test_components_that_agree_keep_their_rows_and_one_that_decides_does_not():
    rng = np.random.default_rng(1)
    alike = np.repeat(rng.normal(size=(3, 20, 1)), 8, axis=2) + 0.01 * rng.normal(size=(3, 20, 8))
    assert rank_stability(store(alike), 5).value > 0.95
    one = 0.1 * rng.normal(size=(3, 20, 8))
    one[..., 0] += 100 * rng.normal(size=(3, 20))
    check = rank_stability(store(one), 5)
    assert check.verdict == "open"  # drawn in 66 of 100 draws
    noise = rank_stability(store(rng.normal(size=(30, 40, 60)) * np.where(np.arange(60) % 2, 1, -1)), 2)
    assert noise.value < 0.6 and "5 % would by chance" in noise.says


def test_draws_are_the_same_and_as_many_as_there_are_components():
    draws = resamples(6)
    assert draws.shape == (6, RESAMPLES) and (draws.sum(0) == 6).all() and draws is resamples(6)
    assert abs(draws[0].mean() - 1) < 0.3


def test_components_that_do_not_count_are_not_drawn():
    values = np.random.default_rng(2).normal(size=(3, 6, 4))
    weight = np.array([[1.0, 0.0, 1.0, 1.0]])
    chosen = store(values).assign(weight=(("query_set_name", "component"), weight))
    chosen = chosen.assign_coords(query_set_name=np.array(["asked"], dtype=object))
    assert rank_stability(chosen, 2).details == rank_stability(store(values[..., [0, 2, 3]]), 2).details


def test_where_nothing_can_be_ranked_or_drawn_the_reason_is_given():
    values = np.ones((2, 4, 1))
    with pytest.raises(NotMeasured, match="no question has two components"):
        rank_stability(store(values), 2)
    plain = store(np.ones((2, 4, 3)))
    with pytest.raises(NotMeasured, match="no components"):
        rank_stability(plain.assign(influence=plain["influence"].sum("component")), 2)
    assert (best_of(5, 5), best_of(12, 5), best_of(2, 1)) == (2, 5, 1)
    with pytest.raises(NotMeasured):
        best_of(1, 5)


def test_the_work_is_bounded(monkeypatch):
    monkeypatch.setattr(stability, "WORK", 2 * RESAMPLES * 4 * 3)
    made = store(np.random.default_rng(4).normal(size=(9, 4, 3)))
    check = rank_stability(made, 1)
    assert list(check.details) == ["asked/q0", "asked/q8"] and "2 of 9 questions" in check.how
