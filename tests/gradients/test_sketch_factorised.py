"""The Kronecker sketch against the dense matrix kron(P_out, P_in), in float64."""

import math

import pytest
import torch

from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.sketch_factorised import factor_dimensions

D_OUT, D_IN = 7, 9


@pytest.fixture(params=["rademacher", "normal"])
def sketch(request):
    return make_sketch("factorised", "layers.0.mlp.up", (D_OUT, D_IN), 20, 3, request.param)


@pytest.fixture
def factors():
    """Inputs a [4, 5, 9] with a one appended for the bias, output gradients delta [4, 5, 7]."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 5, D_IN - 1, generator=generator, dtype=torch.float64)
    delta = torch.randn(4, 5, D_OUT, generator=generator, dtype=torch.float64)
    return torch.cat([a, torch.ones(4, 5, 1, dtype=torch.float64)], dim=2), delta


def dense(sketch):
    """kron(P_out, P_in) [dim, d_out d_in]; all sides here are reduced, so that all entries are scaled."""
    assert sketch.k_out < D_OUT and sketch.k_in < D_IN
    return torch.kron(sketch.p_out.T.double(), sketch.p_in.T.double()) / math.sqrt(sketch.dim)


def test_equals_the_dense_kronecker_product(sketch, factors):
    a, delta = factors
    gradient = torch.einsum("bto,bti->boi", delta, a).flatten(1)
    matrix = dense(sketch)
    assert sketch.dim == sketch.k_out * sketch.k_in == matrix.shape[0] == 20
    expected = gradient @ matrix.T
    torch.testing.assert_close(sketch.project_factors(a, delta), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sketch.project_gradient(gradient), expected, rtol=1e-12, atol=1e-12)


def test_entries_have_the_stated_distribution():
    """Each side's entries: signs of one size, or normal with variance one (a fourth moment of three)."""
    for distribution, fourth in (("rademacher", 1.0), ("normal", 3.0)):
        sketch = make_sketch("factorised", "a", (20_000, 1), 2, 0, distribution)
        entries = sketch.project_rows(torch.arange(20_000)[:, None], torch.ones(20_000, 1, 1)) * math.sqrt(2)
        assert abs(entries.mean()) < 0.025
        assert abs(entries.square().mean() - 1) < 0.035
        assert abs(entries.pow(4).mean() - fourth) < 0.25


def test_embedding_rows_equal_the_dense_gradient(sketch):
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[0, 6, 6], [3, 2, 3]])  # repeated tokens add up
    delta = torch.randn(2, 3, D_IN, generator=generator, dtype=torch.float64)
    gradient = torch.zeros(2, D_OUT, D_IN, dtype=torch.float64)
    for example in range(2):
        for position in range(3):
            gradient[example, ids[example, position]] += delta[example, position]
    expected = sketch.project_gradient(gradient.flatten(1))
    torch.testing.assert_close(sketch.project_rows(ids, delta), expected, rtol=1e-12, atol=1e-12)


def test_padding_and_batch_change_nothing(sketch, factors):
    a, delta = factors
    padded_a = torch.cat([a, torch.full((4, 3, D_IN), 7.0).double()], dim=1)
    padded_delta = torch.cat([delta, torch.zeros(4, 3, D_OUT).double()], dim=1)
    expected = sketch.project_factors(a, delta)
    torch.testing.assert_close(sketch.project_factors(padded_a, padded_delta), expected, rtol=1e-12, atol=1e-12)
    alone = sketch.project_factors(a[2:3], delta[2:3])
    torch.testing.assert_close(alone, expected[2:3], rtol=1e-12, atol=1e-12)


def test_low_precision_factors_are_projected_in_float32(factors):
    a, delta = (x.bfloat16() for x in factors)
    sketch = make_sketch("factorised", "a", (D_OUT, D_IN), 20, 3)
    result = sketch.project_factors(a, delta)
    assert result.dtype == torch.float32
    exact = sketch.project_factors(a.double(), delta.double())
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)
    assert sketch.project_rows(torch.zeros(4, 5, dtype=torch.long), a).dtype == torch.float32


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (40, 1)])
def test_nothing_is_lost_where_nothing_is_reduced(shape, distribution):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sketch = make_sketch("factorised", "a", shape, 40, 0, distribution)
    assert sketch.dim == 40
    projected = sketch.project_gradient(x)
    torch.testing.assert_close(projected @ projected.T, x @ x.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "d_out", "d_in", "expected"),
    [
        (256, 100, 100, (16, 16)),
        (512, 4096, 2048, (22, 23)),
        (512, 4096, 8, (64, 8)),
        (512, 8, 4096, (8, 64)),
        (512, 300, 1, (300, 1)),
        (20, 3, 4, (3, 4)),
        (1, 5, 5, (1, 1)),
        (2, 5, 5, (1, 2)),
        (10_240, 50_304, 2048, (101, 101)),
    ],
)
def test_factor_dimensions(dim, d_out, d_in, expected):
    assert factor_dimensions(dim, d_out, d_in) == expected


def test_factor_dimensions_fit_and_come_close():
    for dim in range(1, 400):
        for d_out, d_in in ((500, 500), (30, 500), (500, 30), (6, 7)):
            k_out, k_in = factor_dimensions(dim, d_out, d_in)
            assert 1 <= k_out <= d_out and 1 <= k_in <= d_in and k_out * k_in <= dim
            limit = min(dim, d_out * d_in)
            # A side that is full leaves at most its own length unused.
            assert limit - k_out * k_in <= max(math.sqrt(dim), min(d_out, d_in))
