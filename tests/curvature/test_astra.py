"""ASTRA against the dense inverse: batches that are the whole, batches that are not, its rate and its stability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdaexp.curvature.astra import astra, largest_preconditioned
from tdaexp.curvature.cg import relative_residual
from tdaexp.runtime.errors import UserError
from tdaexp.training.batches import batch_indices

EXAMPLES, BATCH, SIZE = 40, 5, 30
ROOTS = torch.randn(EXAMPLES, 3, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SCALE = torch.arange(1, SIZE + 1).pow(-0.5)
EACH = ROOTS.transpose(1, 2) @ ROOTS * SCALE * SCALE[:, None]
"""A matrix of rank 3 of each example: batches differ much."""
MATRIX = EACH.mean(0)
DAMPING = 0.3
DAMPED = MATRIX + DAMPING * torch.eye(SIZE, dtype=torch.float64)
RHS = torch.randn(4, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ROUGH = torch.diag(1 / (1.3 * DAMPED.diagonal()))
"""A preconditioner that knows the diagonal alone."""


def run(multiply=lambda step, v: v @ MATRIX, rate=0.5, steps=2000):
    return astra(multiply, RHS, precondition=lambda v: v @ ROUGH, damping=DAMPING, rate=rate, steps=steps)


def of_batch(step, vectors):
    members = batch_indices(step, seed=0, examples=EXAMPLES, batch_size=BATCH)
    return vectors @ EACH[members].mean(0)


def residual(x):
    return float(relative_residual(lambda v: v @ MATRIX, x, RHS, DAMPING).max())


def test_steps_over_all_examples_end_at_the_dense_inverse():
    torch.testing.assert_close(run(), torch.linalg.solve(DAMPED, RHS.T).T, rtol=1e-10, atol=1e-10)


def test_a_short_run_is_its_recursion_written_out():
    x = torch.zeros_like(RHS)
    for step in range(5):
        x = x - 0.5 * (1 - step / 5) * (x @ DAMPED - RHS) @ ROUGH
    torch.testing.assert_close(run(steps=5), x)


def test_on_batches_the_residual_falls_with_the_steps():
    found = [residual(run(of_batch, 0.3, steps)) for steps in (40, 160, 640)]
    assert found[1] < 0.5 * found[0] and found[2] < 0.6 * found[1] and found[2] < 0.01


def test_a_rate_that_falls_ends_nearer_than_a_constant_one_and_than_its_average():
    x, kept, steps = torch.zeros_like(RHS), [], 640
    for step in range(steps):
        x = x - 0.3 * (of_batch(step, x) + DAMPING * x - RHS) @ ROUGH
        kept.append(x)
    ours, average = residual(run(of_batch, 0.3, steps)), residual(torch.stack(kept[steps // 2 :]).mean(0))
    assert 3 * ours < average and 10 * ours < residual(x)


def test_a_rate_beyond_the_bound_is_an_error_that_names_a_better_one():
    told = r"ASTRA diverges at step \d+ of 2000: rate=8 is too large .*; set method.rate=4 or less"
    with pytest.raises(UserError, match=told):
        run(rate=8.0)


def test_the_largest_eigenvalue_that_bounds_the_rate():
    start = torch.ones(SIZE, dtype=torch.float64)
    found = largest_preconditioned(lambda v: v @ MATRIX, lambda v: v @ ROUGH, start, DAMPING, 300)
    wanted = np.linalg.eigvals((ROUGH @ DAMPED).numpy()).real.max()
    assert found == pytest.approx(wanted, rel=1e-6)
    assert torch.isfinite(run(rate=1.99 / found, steps=200)).all()  # stable up to twice the inverse
    with pytest.raises(UserError, match="ASTRA diverges"):
        run(rate=4 / found, steps=200)
