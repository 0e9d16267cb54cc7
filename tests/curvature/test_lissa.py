"""LiSSA against the dense inverse, its truncation against the series, and its stability rule."""

from __future__ import annotations

import pytest
import torch
from dense_ggn import spd

from tdaexp.curvature.lissa import largest_eigenvalue, lissa
from tdaexp.runtime.errors import UserError

MATRIX = spd(30)
RHS = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IDENTITY = torch.eye(30, dtype=torch.float64)


def run(multiply=lambda step, v: v @ MATRIX, damping=0.1, scale=3.2, depth=1000, repeats=1):
    return lissa(multiply, RHS, damping=damping, scale=scale, depth=depth, repeats=repeats)


def test_a_long_series_is_the_dense_inverse():
    torch.testing.assert_close(run(), torch.linalg.solve(MATRIX + 0.1 * IDENTITY, RHS.T).T, rtol=1e-10, atol=1e-10)


def test_a_short_series_is_the_truncated_sum():
    step = IDENTITY - (MATRIX + 0.1 * IDENTITY) / 3.2
    wanted = sum(RHS @ torch.linalg.matrix_power(step, power) for power in range(8)) / 3.2
    torch.testing.assert_close(run(depth=7), wanted)


def test_repeats_are_averaged_over_batches_of_their_own():
    """Batches whose mean is the matrix: the mean of many series comes near the inverse, each series less so."""
    noise = torch.randn(40, 30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 60
    batches = MATRIX + noise @ noise.transpose(1, 2) - (noise @ noise.transpose(1, 2)).mean(0)
    wanted = torch.linalg.solve(MATRIX + 0.5 * IDENTITY, RHS.T).T
    numbers = []

    def multiply(step, vectors):
        numbers.append(step)
        return vectors @ batches[step % 40]

    errors = [(run(multiply, 0.5, 4.5, 200, repeats) - wanted).norm() for repeats in (1, 8)]
    assert numbers[200:] == list(range(1600))  # no batch sequence is used twice
    assert errors[1] < errors[0] < 0.05 * wanted.norm()


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_a_scale_below_the_bound_is_an_error_that_names_a_better_one(scale):
    with pytest.raises(
        UserError, match=r"LiSSA diverges at step \d+ of 1000: scale=.*; set method.scale=[\d.]+ or more"
    ):
        run(scale=scale)


def test_at_the_bound_it_is_stable():
    bound = largest_eigenvalue(lambda v: v @ MATRIX, torch.ones(30, dtype=torch.float64), 200) + 0.1
    assert bound == pytest.approx(3.1, rel=1e-3)
    assert torch.isfinite(run(scale=bound)).all()


def test_the_largest_eigenvalue_of_nothing():
    assert largest_eigenvalue(torch.zeros_like, torch.ones(3)) == 0.0
