"""One layer over a segment against matrix exponentials, and two segments against the steps that they stand for."""

from __future__ import annotations

import pytest
import torch

from tdaexp.curvature.precondition import LayerFactors
from tdaexp.curvature.unrolled import Unrolled, adam_scale, decayed_mean

ROWS, COLUMNS = 3, 4


@pytest.fixture(params=["sgd", "adam"])
def segment(request):
    """A layer over a segment, and its M + λI as a dense matrix [12, 12] with s [12]."""

    def make(seed: int, rates: float, decay: float = 0.3, positions: float = 2.0):
        generator = torch.Generator().manual_seed(seed)
        q_out, q_in = (torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q for n in (ROWS, COLUMNS))
        spectrum = torch.rand(ROWS, COLUMNS, generator=generator).double() * 4
        spectrum[0, 0] = 0
        scale = None if request.param == "sgd" else torch.rand(ROWS, COLUMNS, generator=generator).double() + 0.2
        factors = LayerFactors("layer", q_out, q_in, spectrum)
        basis = torch.kron(q_out, q_in)
        m = basis @ torch.diag(spectrum.flatten()) @ basis.T / positions + decay * torch.eye(ROWS * COLUMNS).double()
        s = torch.ones(ROWS * COLUMNS).double() if scale is None else scale.flatten()
        return Unrolled(factors, rates, decay, positions, scale), m, s

    return make


@pytest.fixture
def gradients():
    return torch.randn(2, ROWS, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("rates", [1e-3, 0.7, 30.0])
def test_both_against_matrix_exponentials(segment, gradients, rates):
    one, m, s = segment(1, rates)
    decayed = torch.linalg.matrix_exp(-rates * m)
    start = torch.diag(s) @ decayed @ torch.diag(1 / s)
    added = torch.diag(s) @ (torch.eye(len(m)).double() - decayed) @ torch.linalg.inv(m) @ torch.diag(s)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(one.carried(gradients).flatten(1), gradients.flatten(1) @ start, **close)
    torch.testing.assert_close(one.moved(gradients).flatten(1), gradients.flatten(1) @ added, **close)


def test_two_segments_are_the_steps_that_they_stand_for(segment, gradients):
    """θ ← θ − η p ∘ (G θ + g) − η λ θ from θ = 0, with another curvature and another g in the second half."""
    steps, eta = 2**16, 2e-5
    one, two = (segment(seed, steps * eta) for seed in (1, 2))
    query, *g = (torch.randn(ROWS * COLUMNS, generator=torch.Generator().manual_seed(k)).double() for k in range(3))
    theta = torch.zeros(ROWS * COLUMNS + 1).double()
    theta[-1] = 1  # so that a step is one matrix
    for (_, m, s), own in zip((one, two), g, strict=True):
        step = torch.eye(len(theta)).double()
        step[:-1, :-1] -= eta * torch.diag(s) @ m @ torch.diag(1 / s)
        step[:-1, -1] = -eta * s**2 * own
        theta = torch.linalg.matrix_power(step, steps) @ theta
    shaped = query.view(1, ROWS, COLUMNS)
    (first, *_), (second, *_) = one, two
    found = second.moved(shaped).flatten() @ g[1] + first.moved(second.carried(shaped)).flatten() @ g[0]
    assert float(found) == pytest.approx(-float(query @ theta[:-1]), rel=1e-4)
    wrong = second.moved(shaped).flatten() @ g[1] + second.moved(first.carried(shaped)).flatten() @ g[0]
    assert abs(float(wrong - found)) > 5e-4 * abs(float(found))


def test_without_curvature_and_decay_an_update_is_the_sum_of_the_rates(gradients):
    zero = LayerFactors("layer", torch.eye(ROWS).double(), torch.eye(COLUMNS).double(), torch.zeros(ROWS, COLUMNS))
    one = Unrolled(zero, 0.25, 0.0)
    torch.testing.assert_close(one.moved(gradients), 0.25 * gradients)
    torch.testing.assert_close(one.carried(gradients), gradients)


def test_the_fraction_has_no_hole():
    x = torch.tensor([0.0, 1e-300, 1e-12, 1e-6, 1.0, 1e3], dtype=torch.float64)
    found = decayed_mean(x)
    assert (found.diff() <= 0).all() and found[0] == found[1] == 1
    torch.testing.assert_close(found[3], 1 - x[3] / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[4:], (1 - torch.exp(-x[4:])) / x[4:], rtol=1e-14, atol=0)


def test_a_parameter_that_never_had_a_gradient_does_not_move(gradients):
    second = torch.full((ROWS, COLUMNS), 4.0, dtype=torch.float64)
    second[1, 2] = 0
    scale = adam_scale(second, 1e-8)
    torch.testing.assert_close(scale[0, 0], torch.tensor(2.0**-0.5, dtype=torch.float64), rtol=1e-8, atol=0)
    factors = LayerFactors("layer", torch.eye(ROWS).double(), torch.eye(COLUMNS).double(), torch.ones(ROWS, COLUMNS))
    one = Unrolled(factors, 1.0, 0.0, 1.0, scale)
    for found in (one.moved(gradients), one.carried(gradients)):
        assert torch.isfinite(found).all() and not found[:, 1, 2].any() and found[:, 0, 0].all()
