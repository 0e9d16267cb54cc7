"""The linear datamodeling score against closed forms: additive outputs, and ridge regression solved again."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from tdaexp.metrics.lds import known_scores, lds, scores_of_all, subset
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
    x, queries = generator.standard_normal((200, 5)), generator.standard_normal((8, 5))
    y = x @ generator.standard_normal(5) + generator.standard_normal(200)

    def solved(rows: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x[rows].T @ x[rows] + 3 * np.eye(5), x[rows].T @ y[rows])

    everyone = np.ones(200, dtype=bool)
    residual = y - x @ solved(everyone)
    scores = queries @ np.linalg.solve(x.T @ x + 3 * np.eye(5), (x * residual[:, None]).T)
    members = np.stack([subset(200, 0.95, 2, number) for number in range(200)])
    outputs = np.stack([queries @ solved(member) for member in members])
    assert lds(scores, members, outputs).min() > 0.99
    assert abs(lds(generator.permuted(scores, axis=1), members, outputs).mean()) < 0.2


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
    np.testing.assert_array_equal(known_scores(store, ["c", "a"])[:, 0], np.nan)
    np.testing.assert_allclose(known_scores(store, ["c", "a"])[:, 1], values.sum(1)[0])
    with pytest.raises(UserError, match="'c' among them"):
        scores_of_all(store, ["a", "c"])
    with pytest.raises(UserError, match=r"query was summed.*python attribute.py experiment=explaind_lds"):
        scores_of_all(store.sum("query"), ["a", "b"])
    with pytest.raises(UserError, match="candidates=all"):
        scores_of_all(store.where(store["influence"] > values.min()), ["a", "b"])
