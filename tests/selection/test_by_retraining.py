"""Components chosen by what models trained again say: against scipy's correlation, and against a planted answer."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from tdaexp import influence
from tdaexp.runtime.errors import UserError
from tdaexp.selection.greedy import order_components, select
from tdaexp.selection.subsets import Products, products_of
from tdaexp.selection.trials import LDS, Trials, foretold, varying

QUERIES, TRAIN, COMPONENTS, TRIALS = 7, 20, 4, 15


def planted(cosine: bool = False, shuffled: bool = False) -> xr.Dataset:
    """Component 2 alone is what moves the models; candidates in another order for each query where `shuffled`."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(QUERIES, TRAIN, COMPONENTS))
    members = rng.random((TRIALS, TRAIN)) < 0.7
    outputs = members @ values[:, :, 2].T + 0.05 * rng.normal(size=(TRIALS, QUERIES))
    ids = np.array([f"t{k}" for k in range(TRAIN)], dtype=object)
    order = np.stack([rng.permutation(TRAIN) if shuffled else np.arange(TRAIN) for _ in range(QUERIES)])
    truth = np.take_along_axis(np.tile(np.arange(TRAIN) == 3, (QUERIES, 1)), order, 1)
    own = (
        {"query_sq": np.ones((QUERIES, COMPONENTS)), "train_sq": np.ones((QUERIES, TRAIN, COMPONENTS))}
        if cosine
        else {}
    )
    store = influence.build(
        np.take_along_axis(values, order[..., None], 1), query=[f"q{k}" for k in range(QUERIES)],
        query_set=["asked"] * QUERIES, train=ids[order], truth=truth, component=list("abcd"),
        size=np.array([1, 1, 1, 1]), **own,
    )  # fmt: skip
    store = store.assign(member=(("subset", "row"), members), retrained=(("subset", "query"), outputs))
    return store.assign_coords(row=ids)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_subset_s_value_is_scipy_s_correlation_of_its_summed_scores(cosine):
    store = planted(cosine)
    products, chosen = products_of(store), np.array([1, 2])
    values = products.trials, foretold(products.of_subset(chosen), products.trials)
    scores = store["influence"].values[..., chosen].sum(-1) / (2 if cosine else 1)
    for query in range(QUERIES):
        wanted = spearmanr(store["member"].values @ scores[query], store["retrained"].values[:, query]).statistic
        assert values[1][query] == pytest.approx(wanted, abs=1e-12)


def test_nothing_foretold_counts_nothing():
    trials = Trials(np.ones((5, 3), bool), np.arange(10.0).reshape(5, 2))
    assert foretold(np.ones((4, 3, 2)), trials).tolist() == [[0, 0]] * 4


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_component_that_moves_the_models_comes_first(shuffled):
    products = products_of(planted(shuffled=shuffled))
    order, path = order_components(products, LDS)
    assert order[0] == 2 and path[0] > 0.95 > path[-1]
    assert select(products, np.array([1, 1, 1, 1]), 0.25, LDS).chosen.tolist() == [2]


def test_halves_of_the_models_and_of_the_queries():
    products = products_of(planted())
    some = products.judged_by(np.arange(TRIALS) < 9).rows(np.array([0, 4]))
    assert some.trials.members.shape == (9, TRAIN)
    np.testing.assert_array_equal(some.trials.outputs, products.trials.outputs[:9][:, [0, 4]])


def test_what_cannot_be_judged_is_refused():
    store = planted()
    with pytest.raises(UserError, match="set candidates=all"):
        products_of(store.isel(candidate=slice(5)))
    with pytest.raises(UserError, match="measure the same of every query; leave more out"):
        varying(store.assign(retrained=store["retrained"] * 0))
    still = store["retrained"].values.copy()
    still[:, 1] = 3.0
    assert list(varying(store.assign(retrained=(("subset", "query"), still)))["query"].values) == [
        "q0",
        "q2",
        "q3",
        "q4",
        "q5",
        "q6",
    ]
    plain = Products.of(store["influence"].values, None, None, store["truth"].values)
    with pytest.raises(UserError, match="unknown objective 'lds'"):
        order_components(plain, LDS)
