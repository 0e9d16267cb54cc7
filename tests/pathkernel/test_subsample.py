"""Which steps are counted."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp.pathkernel.subsample import evenly_spaced_steps, steps_of_largest_change


def test_the_largest_changes_of_either_sign_in_the_order_of_time():
    changes = np.array([0.1, -3.0, 2.0, -2.0, 0.0])
    steps = [0, 5, 10, 15, 20]
    assert steps_of_largest_change(steps, changes, 0.2) == [5]
    assert steps_of_largest_change(steps, changes, 0.4) == [5, 10]  # the earlier of two alike
    assert steps_of_largest_change(steps, changes, 0.6) == [5, 10, 15]
    assert steps_of_largest_change(steps, changes, 1.0) == steps
    assert steps_of_largest_change(steps, changes, 1e-9) == [5]


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_even_steps_are_distinct_and_spread(count):
    steps = list(range(0, 1000, 10))
    found = evenly_spaced_steps(steps, count / 100)
    assert len(set(found)) == count and sorted(found) == found
    gaps = np.diff([-found[0] - 10, *found, 2000 - 10 - found[-1]])
    assert gaps.max() - gaps.min() <= 20
