from __future__ import annotations

import numpy as np
import pytest

from tdaexp.pathkernel.quadrature import RULES, Quadrature, nodes
from tdaexp.runtime.errors import UserError

EXACT_DEGREE = {"secant": 1, "gauss": 7, "midpoint": 1, "trapezoid": 1, "left": 0}  # with 4 nodes


@pytest.mark.parametrize("rule", RULES)
def test_polynomials_are_exact_up_to_the_rule_s_degree_and_no_further(rule):
    positions, weights = nodes(rule, 4)
    assert len(positions) == len(weights) == 4 and (positions >= 0).all() and (positions <= 1).all()
    for degree in range(EXACT_DEGREE[rule] + 1):
        np.testing.assert_allclose((weights * positions**degree).sum(), 1 / (degree + 1), rtol=1e-14)
    wrong = EXACT_DEGREE[rule] + 1
    assert abs((weights * positions**wrong).sum() - 1 / (wrong + 1)) > 1e-5


def test_left_starts_at_the_left_end():
    assert nodes("left", 1)[0].tolist() == [0.0] and nodes("midpoint", 1)[0].tolist() == [0.5]


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="did you mean 'midpoint'"):
        nodes("midpont", 3)
    with pytest.raises(UserError, match="too few for the rule 'trapezoid'"):
        Quadrature("trapezoid", 1)
    with pytest.raises(UserError, match="too few"):
        Quadrature(nodes=0)
    with pytest.raises(UserError, match="must be positive"):
        Quadrature(tolerance=0.0)
    with pytest.raises(UserError, match="below"):
        Quadrature(nodes=32, tolerance=0.1)


def test_counts_double_up_to_the_most():
    assert Quadrature(nodes=3).counts() == [3]
    assert Quadrature(nodes=1, tolerance=0.1, most=8).counts() == [1, 2, 4, 8]
    assert Quadrature(nodes=3, tolerance=0.1, most=11).counts() == [3, 6]


def test_a_residual_that_is_rounding_is_small_enough():
    steered = Quadrature(tolerance=0.1)
    assert steered.satisfied(0.09, 1.0, 0.0) and not steered.satisfied(0.11, 1.0, 0.0)
    assert steered.satisfied(0.11, 1.0, 0.01)
