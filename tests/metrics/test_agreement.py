import numpy as np
import pytest
import xarray as xr
from scipy import stats

from tdaexp import influence
from tdaexp.metrics.fidelity import fidelity
from tdaexp.metrics.rank_correlation import spearman
from tdaexp.metrics.stores import aligned, by_query_set, full_scores, has_products, share


def test_spearman_against_scipy_with_ties_and_gaps():
    rng = np.random.default_rng(1)
    left, right = (rng.integers(0, 6, (40, 7)).astype(float) for _ in range(2))
    left[rng.random(left.shape) < 0.2] = np.nan
    right[rng.random(left.shape) < 0.1] = np.nan
    ours = spearman(left, right)
    compared = 0
    for row in range(40):
        both = ~(np.isnan(left[row]) | np.isnan(right[row]))
        a, b = left[row, both], right[row, both]
        if both.sum() < 2 or len(set(a)) < 2 or len(set(b)) < 2:
            assert np.isnan(ours[row])
        else:
            compared += 1
            assert ours[row] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert compared > 20


def test_spearman_of_nothing_and_of_constants_is_unknown():
    values = np.array([[1.0, 2.0], [1.0, np.nan], [np.nan, np.nan]])
    assert np.isnan(spearman(values, np.array([[3.0, 3.0], [1.0, 2.0], [1.0, 2.0]]))).all()


def test_fidelity_is_the_cosine_over_shared_candidates():
    full = np.array([[3.0, 4.0, np.nan], [1.0, 0.0, 0.0], [np.nan] * 3])
    mine = np.array([[6.0, 8.0, 9.0], [0.0, 1.0, np.nan], [1.0, 2.0, 3.0]])
    found = fidelity(mine, full)
    assert found[:2].tolist() == pytest.approx([1.0, 0.0])
    assert np.isnan(found[2])


def test_alignment_goes_by_names(products_dataset):
    shuffled = products_dataset.isel(query=np.arange(24)[::-1], candidate=[2, 0, 1])
    values = np.arange(72.0).reshape(24, 3)
    numbered = products_dataset.assign(number=(("query", "candidate"), values))
    found = aligned(shuffled, numbered, lambda part: part["number"])
    np.testing.assert_array_equal(found, values[::-1][:, [2, 0, 1]])


def test_alignment_leaves_unknown_pairs_open(products_dataset):
    known = products_dataset.isel(query=slice(1, None), candidate=[0, 1])
    found = aligned(products_dataset, known, lambda part: xr.ones_like(part["truth"], float))
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1:, 2]).all()
    assert (found[1:, :2] == 1).all()


def test_full_scores_ignore_the_selection(products_dataset, select_dataset):
    whole = influence.scores(products_dataset).values
    np.testing.assert_array_equal(full_scores(select_dataset).values, whole)
    assert not np.allclose(influence.scores(select_dataset).values, whole)


def test_share_of_each_kind_of_method(products_dataset, select_dataset):
    easy = by_query_set(select_dataset)["easy"]
    chosen = easy["weight"].sel(query_set_name="easy").values == 1
    assert share(easy) == products_dataset["size"].values[chosen].sum() / 100
    assert share(products_dataset) == 1.0
    assert share(products_dataset.assign_attrs(share=0.04)) == 0.04
    assert share(products_dataset.assign_attrs(parameters=400)) == 0.25  # the method looks at a part of the model
    assert share(easy.assign_attrs(parameters=400)) == pytest.approx(share(easy) / 4)
    assert share(easy.assign_attrs(share=0.04)) == pytest.approx(0.04 * share(easy))
    plain = products_dataset.drop_vars(["influence", "query_sq", "train_sq"]).drop_dims("component")
    plain["influence"] = products_dataset["bm25"]
    assert np.isnan(share(plain))


def test_projected_products_are_no_products_of_gradients(products_dataset):
    assert has_products(products_dataset)
    assert not has_products(products_dataset.assign_attrs(projection="srht"))
    assert not has_products(products_dataset.assign_attrs(normalise="none"))
