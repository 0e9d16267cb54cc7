import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdaexp.influence import EPSILON
from tdaexp.runtime.errors import UserError
from tdaexp.selection.greedy import (
    admitted,
    cross_validated,
    cut,
    greedy_order,
    order_components,
    search,
    select,
)
from tdaexp.selection.subsets import Products


def transcribed(dot, query_sq, train_sq, truth, objective, score=None):
    """Algorithm 2 word for word: loops over queries, candidates and components, one number at a time."""
    score = score or scalar_cosine
    queries, candidates, count = dot.shape
    real = [[j for j in range(candidates) if not np.isnan(dot[i, j]).any()] for i in range(queries)]
    full = [[score(dot, query_sq, train_sq, i, j, range(count)) for j in real[i]] for i in range(queries)]
    chosen, path = [], []
    remaining = list(range(count))
    while remaining:
        best, winner = -math.inf, None
        for k in remaining:
            values = []
            for i in range(queries):
                scores = [score(dot, query_sq, train_sq, i, j, [*chosen, k]) for j in real[i]]
                values.append(objective(scores, [bool(truth[i, j]) for j in real[i]], full[i]))
            if sum(values) / queries > best:
                best, winner = sum(values) / queries, k
        chosen.append(winner)
        remaining.remove(winner)
        path.append(best)
    return chosen, path


def scalar_cosine(dot, query_sq, train_sq, i, j, subset):
    numerator = query = train = 0.0
    for k in subset:
        numerator += float(dot[i, j, k])
        query += float(query_sq[i, k])
        train += float(train_sq[i, j, k])
    return numerator / (math.sqrt(query) * math.sqrt(train) + EPSILON)


def scalar_sum(dot, query_sq, train_sq, i, j, subset):
    return sum(float(dot[i, j, k]) for k in subset)


def hit(scores, truth, full):
    sources = [s for s, t in zip(scores, truth, strict=True) if t]
    rivals = [s for s, t in zip(scores, truth, strict=True) if not t]
    return float(bool(sources) and (not rivals or max(sources) > max(rivals)))


def likeness(scores, truth, full):
    top = sum(a * b for a, b in zip(scores, full, strict=True))
    return top / (math.sqrt(sum(a * a for a in scores)) * math.sqrt(sum(b * b for b in full)) + EPSILON)


@st.composite
def integer_products(draw):
    """Small integers, so that many subsets tie exactly; candidates may be missing, sources vary."""
    queries, candidates, count = draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.integers(1, 3))
    dot = rng.integers(-spread, spread + 1, (queries, candidates, count)).astype(float)
    query_sq = rng.integers(1, spread + 2, (queries, count)).astype(float)
    train_sq = rng.integers(1, spread + 2, (queries, candidates, count)).astype(float)
    truth = rng.random((queries, candidates)) < 0.4
    if draw(st.booleans()):
        missing = rng.random((queries, candidates)) < 0.3
        missing[:, 0] = False
        dot[missing] = np.nan
    return dot, query_sq, train_sq, truth


@settings(max_examples=150, deadline=None)
@given(integer_products())
def test_accuracy_order_is_algorithm_2_with_ties_by_parameter_order(products):
    order, path = greedy_order(*products, "accuracy")
    expected_order, expected_path = transcribed(*products, hit)
    assert order.tolist() == expected_order
    np.testing.assert_allclose(path, expected_path, rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(integer_products())
def test_fidelity_path_is_greedy(products):
    """Rounding decides between near-equal cosines, so each step is held against the best of all."""
    order, path = greedy_order(*products, "fidelity")
    assert sorted(order.tolist()) == list(range(len(order)))
    dot, query_sq, train_sq, _ = products
    for step in range(len(order)):
        values = {}
        for k in order[step:]:
            subset = [*order[:step], k]
            rows = []
            for i in range(len(dot)):
                real = [j for j in range(dot.shape[1]) if not np.isnan(dot[i, j]).any()]
                part = [scalar_cosine(dot, query_sq, train_sq, i, j, subset) for j in real]
                whole = [scalar_cosine(dot, query_sq, train_sq, i, j, range(dot.shape[2])) for j in real]
                rows.append(likeness(part, None, whole))
            values[int(k)] = sum(rows) / len(rows)
        assert path[step] == pytest.approx(max(values.values()), abs=1e-12)
        assert values[int(order[step])] == pytest.approx(path[step], abs=1e-12)


def test_all_equal_components_keep_parameter_order():
    dot = np.ones((3, 2, 4))
    order, path = greedy_order(dot, np.ones((3, 4)), np.ones((3, 2, 4)), np.array([[True, False]] * 3))
    assert order.tolist() == [0, 1, 2, 3]
    assert path.tolist() == [0.0] * 4  # equal scores are no retrieval: strict inequality


@pytest.fixture
def products():
    rng = np.random.default_rng(3)
    truth = np.zeros((40, 4), bool)
    truth[np.arange(40), rng.integers(4, size=40)] = True
    dot = rng.normal(size=(40, 4, 6)) + 0.5 * truth[:, :, None]
    return Products.of(dot, rng.uniform(1, 2, (40, 6)), rng.uniform(1, 2, (40, 4, 6)), truth)


SIZES = np.array([50, 10, 20, 5, 10, 5])


def test_cut_takes_the_largest_prefix_that_fits_exactly():
    order = np.array([3, 2, 1, 0, 4, 5])  # 5, 25, 35, 85, 95, 100 of 100
    assert cut(order, SIZES, 0.25).tolist() == [3, 2]
    assert cut(order, SIZES, 0.349999).tolist() == [3, 2]
    assert cut(order, SIZES, 0.35).tolist() == [3, 2, 1]
    assert cut(order, SIZES, 1.0).tolist() == order.tolist()


def test_a_share_that_equals_the_budget_fits_in_spite_of_binary_fractions():
    assert 0.29 * 100 < 29
    assert cut(np.array([0, 1]), np.array([29, 71]), 0.29).tolist() == [0]


def test_selection_ranks_only_components_that_fit_alone(products):
    chosen = select(products, SIZES, 0.2)
    assert 0 not in chosen.order
    assert sorted(chosen.order.tolist()) == [1, 2, 3, 4, 5]
    assert chosen.chosen.tolist() == cut(chosen.order, SIZES, 0.2).tolist()
    assert SIZES[chosen.chosen].sum() <= 20
    assert chosen.path[-1] == products.along("accuracy", chosen.order)[-1].mean()


def test_budget_one_is_the_full_gradient(products):
    chosen = select(products, SIZES, 1.0)
    assert sorted(chosen.chosen.tolist()) == list(range(6))


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, float("nan")])
def test_budget_outside_its_range_is_refused(products, budget):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        select(products, SIZES, budget)


def test_budget_under_the_smallest_component_names_one_that_works(products):
    with pytest.raises(UserError, match=r"smallest component has 5; set budget to 0\.05 or more") as error:
        select(products, SIZES, 0.04)
    assert "\n" not in str(error.value)
    assert len(select(products, SIZES, 0.05).chosen) == 1


@pytest.mark.parametrize("smallest", [1, 7, 123, 997])
def test_the_budget_that_the_message_names_admits_the_component(smallest):
    sizes = np.array([smallest, 1_000_003])
    with pytest.raises(UserError) as error:
        admitted(sizes, smallest / sizes.sum() * 0.9)
    named = float(str(error.value).split("set budget to ")[1].split()[0])
    assert admitted(sizes, named).tolist() == [0]


def test_a_first_component_that_does_not_fit_is_an_error():
    with pytest.raises(UserError, match="first component of the order has 50"):
        cut(np.array([0, 1]), SIZES, 0.3)


def test_held_out_queries_have_no_part_in_their_order(products):
    folds = cross_validated(products, "accuracy", folds=4, seed=1)
    assert sorted(np.bincount(folds.fold).tolist()) == [10, 10, 10, 10]
    for held in range(4):
        order, path = order_components(products.rows(folds.fold != held), "accuracy")
        assert folds.orders[held].tolist() == order.tolist()
        assert folds.paths[held].tolist() == path.tolist()
        out = folds.fold == held
        expected = products.rows(out).along("accuracy", order)
        np.testing.assert_array_equal(folds.values[:, out], expected)


def test_held_out_values_at_budget_and_peak(products):
    folds = cross_validated(products, "fidelity", folds=3, seed=0, among=admitted(SIZES, 0.3), judged="accuracy")
    assert set(np.unique(folds.values)) <= {0.0, 1.0}
    at_budget, at_peak = folds.at_budget(SIZES, 0.3), folds.at_peak()
    for query in range(40):
        order = folds.orders[folds.fold[query]]
        one = products.rows(np.array([query]))
        assert at_budget[query] == one.along("accuracy", cut(order, SIZES, 0.3))[-1, 0]
        peak = int(np.argmax(folds.paths[folds.fold[query]]))
        assert at_peak[query] == one.along("accuracy", order[: peak + 1])[-1, 0]


def test_same_seed_same_folds_another_seed_others(products):
    first, again, other = (cross_validated(products, "accuracy", 5, seed).fold for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_more_folds_than_queries_hold_out_one_query_each(products):
    few = products.rows(np.arange(40) < 3)
    found = cross_validated(few, "accuracy", folds=5, seed=0)
    assert sorted(found.fold.tolist()) == [0, 1, 2] and np.isfinite(found.values).all()


def test_one_query_leaves_nothing_to_hold_out(products):
    found = cross_validated(products.rows(np.arange(40) < 1), "accuracy", folds=5, seed=0)
    assert np.isnan(found.at_peak()).all() and found.at_peak().shape == (1,)


def test_single_ranks_by_each_components_own_accuracy(products):
    among = np.array([5, 1, 2, 4])
    order, path = search(products, "single", among)
    alone = [products.along("accuracy", np.array([k]))[0].mean() for k in range(6)]
    assert order.tolist() == sorted(among.tolist(), key=lambda k: (-alone[k], k))
    assert path.tolist() == products.along("accuracy", order).mean(axis=1).tolist()


def test_unknown_objective_names_the_nearest(products):
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        order_components(products, "acuracy")


@pytest.mark.parametrize(("name", "objective"), [("accuracy", hit), ("fidelity", likeness)])
def test_without_self_products_scores_are_plain_sums(name, objective):
    """Cosines of the same dot products would choose otherwise."""
    rng = np.random.default_rng(4)
    dot = rng.normal(size=(9, 4, 6)) * rng.uniform(0.2, 5, (9, 4, 1))
    truth = np.zeros((9, 4), bool)
    truth[np.arange(9), rng.integers(4, size=9)] = True
    dot[3, 2] = np.nan
    order, path = greedy_order(dot, None, None, truth, name)
    wanted, values = transcribed(dot, None, None, truth, objective, scalar_sum)
    assert order.tolist() == wanted
    np.testing.assert_allclose(path, values, rtol=1e-9)
    norms = np.nan_to_num(dot) ** 2
    _, cosines = transcribed(dot, norms[:, 0], norms, truth, objective)
    assert np.abs(np.array(cosines) - values).max() > 0.01
