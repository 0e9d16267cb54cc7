"""The linear datamodeling score against closed forms: additive outputs, and ridge regression solved again."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from tdaexp.metrics.lds import lds, lds_interval, scores_of_all, subset, weighted_spearman
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError


def test_additive_outputs_are_foretold_exactly():
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((4, 30))
    members = np.stack([subset(30, 0.5, 0, number) for number in range(25)])
    outputs = 3 + np.exp(members @ scores.T)  # any rising function of the sums
    np.testing.assert_allclose(lds(scores, members, outputs), 1)
    np.testing.assert_allclose(lds(-scores, members, outputs), -1)
    wrong = scores[:, ::-1]
    wanted = [spearmanr(members @ wrong[q], outputs[:, q]).statistic for q in range(4)]
    np.testing.assert_allclose(lds(wrong, members, outputs), wanted)


def test_influence_functions_of_ridge_regression():
    """The first-order effect of a weight on a ridge solution foretells the closed-form solutions of subsets."""
    generator = np.random.default_rng(1)
    x, queries = generator.standard_normal((60, 5)), generator.standard_normal((8, 5))
    y = x @ generator.standard_normal(5) + generator.standard_normal(60)

    def solved(rows: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x[rows].T @ x[rows] + 3 * np.eye(5), x[rows].T @ y[rows])

    everyone = np.ones(60, dtype=bool)
    residual = y - x @ solved(everyone)
    scores = queries @ np.linalg.solve(x.T @ x + 3 * np.eye(5), (x * residual[:, None]).T)
    members = np.stack([subset(60, 0.9, 2, number) for number in range(200)])
    outputs = np.stack([queries @ solved(member) for member in members])
    assert lds(scores, members, outputs).min() > 0.9
    assert abs(lds(generator.permuted(scores, axis=1), members, outputs).mean()) < 0.2


def test_a_resample_is_spearman_of_repeated_subsets():
    generator = np.random.default_rng(4)
    first, second = generator.standard_normal((2, 3, 12))
    for weight in (np.ones(12, dtype=int), generator.integers(0, 4, 12)):
        found = weighted_spearman(np.argsort(first, 1), np.argsort(second, 1), weight)
        wanted = [spearmanr(np.repeat(first[q], weight), np.repeat(second[q], weight)).statistic for q in range(3)]
        np.testing.assert_allclose(found, wanted)


def test_the_interval_knows_that_queries_share_subsets():
    """Twenty copies of one query tell no more than the one: the interval is as wide as over subsets alone."""
    generator = np.random.default_rng(5)
    members = np.stack([subset(30, 0.5, 0, number) for number in range(40)])
    scores, outputs = np.tile(generator.standard_normal(30), (20, 1)), np.tile(generator.standard_normal(40), (20, 1))
    one = lds_interval(scores, members, outputs.T, MetricSettings(bootstrap=500))
    assert one.value == pytest.approx(lds(scores, members, outputs.T)[0])
    assert one.low < one.value < one.high and 0.4 < one.high - one.low < 0.8  # 4 / sqrt(40) = 0.63


def test_a_constant_output_has_no_score():
    members = np.stack([subset(10, 0.5, 0, number) for number in range(6)])
    assert np.isnan(lds(np.ones((1, 10)), members, np.random.default_rng(0).random((6, 1))))


@pytest.mark.parametrize(("fraction", "size"), [(0.5, 20), (0.999, 39), (0.01, 1)])
def test_subsets_are_a_function_of_seed_fraction_and_number(fraction, size):
    first, again, other = (subset(40, fraction, 3, number) for number in (4, 4, 5))
    assert first.sum() == size and (first == again).all() and (first != other).any()


def test_a_store_of_any_axes_is_read():
    values = np.random.default_rng(0).standard_normal((2, 3, 4))
    store = xr.Dataset({"influence": (("train", "component", "query"), values)}, {"train": ["a", "b"]})
    np.testing.assert_allclose(scores_of_all(store, ["b", "a"]), values.sum(1)[::-1].T)
    with pytest.raises(UserError, match="'c' among them"):
        scores_of_all(store, ["a", "c"])
    with pytest.raises(UserError, match=r"query was summed.*python attribute.py experiment=explaind_lds"):
        scores_of_all(store.sum("query"), ["a", "b"])
    with pytest.raises(UserError, match="candidates=all"):
        scores_of_all(store.where(store["influence"] > values.min()), ["a", "b"])
