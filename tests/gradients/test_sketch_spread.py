"""Inner products of sketches: unbiased, and spread as the formula of each kind says, over thousands of seeds.

The oracle is the exact variance of <Px, Py>. For P with entries in row r and independent signs,

    Var = sum_{p != q} c_pq (x_p^2 y_q^2 + x_p y_p x_q y_q),     c_pq = E (sum_r P_rp P_rq)^2,

with c_pq = 1/k for a dense Rademacher matrix. Bounds are 4.5 standard errors, which come from
the oracle's variance for the mean and from the sample's fourth moment for the variance.
"""

import itertools
import math

import pytest
import torch

from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.sketch_sjlt import SJLTSketch

SHAPE = (5, 8)
DIM = 12  # no power of two: the Hadamard transform takes 12 of 16 rows, and 40 entries are 2.5 blocks
SEEDS = 4000
ERRORS = 4.5


def vectors():
    """Two correlated gradients with uneven entries, [2, 40], float64; <x, y> is 0.57 of |x| |y|."""
    x, noise = torch.randn(2, 40, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    weight = torch.linspace(0.2, 2, 40, dtype=torch.float64)
    return torch.stack([x * weight, (x + noise) * weight])


def estimates(build, seeds=SEEDS):
    """<Px, Py> for many seeds, [seeds]."""
    pair = vectors()
    return torch.stack([torch.linalg.vecdot(*build(seed).project_gradient(pair)) for seed in range(seeds)])


def variance_of_signed(x, y, collision):
    """The formula above, for collision [n, n] = c_pq."""
    terms = x[:, None] ** 2 * y[None, :] ** 2 + (x * y)[:, None] * (x * y)[None, :]
    return float((collision * terms).fill_diagonal_(0).sum())


def check(sample, mean, variance):
    """Compare sample mean and variance with the exact ones, and check that the comparison has power."""
    standard_error = math.sqrt(variance / len(sample))
    assert ERRORS * standard_error < 0.1 * abs(mean)
    assert abs(sample.mean() - mean) < ERRORS * standard_error
    centred = sample - mean
    spread_error = math.sqrt((centred.pow(4).mean() - centred.pow(2).mean() ** 2) / len(sample))
    assert ERRORS * spread_error < 0.25 * variance
    assert abs(centred.pow(2).mean() - variance) < ERRORS * spread_error


@pytest.mark.parametrize("kind", ["trak", "srht", "sjlt"])
def test_signed_sketches(kind):
    x, y = vectors()
    collision = torch.full((40, 40), 1 / DIM, dtype=torch.float64)
    if kind == "srht":
        # Rows of H are drawn without replacement, which leaves less spread within a block of 16.
        block = torch.arange(40) // 16
        collision[block[:, None] == block] *= (16 - DIM) / (16 - 1)
    sample = estimates(lambda seed: make_sketch(kind, "a", SHAPE, DIM, seed))
    check(sample, float(x @ y), variance_of_signed(x, y, collision))


@pytest.mark.parametrize(("nonzeros", "groups"), [(1, [12]), (5, [2, 2, 3, 2, 3]), (12, [1] * 12)])
def test_sparse_sketch_by_nonzeros(nonzeros, groups):
    x, y = vectors()
    chance = sum(1 / rows for rows in groups) / nonzeros**2
    collision = torch.full((40, 40), chance, dtype=torch.float64)
    sample = estimates(lambda seed: SJLTSketch(SHAPE, DIM, seed, nonzeros))
    check(sample, float(x @ y), variance_of_signed(x, y, collision))


def test_trak_with_normal_entries():
    x, y = vectors()
    variance = float((x @ x) * (y @ y) + (x @ y) ** 2) / DIM
    sample = estimates(lambda seed: make_sketch("trak", "a", SHAPE, DIM, seed, "normal"))
    check(sample, float(x @ y), variance)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_kronecker_sketch(distribution):
    x, y = vectors()
    second = second_moment_of_kronecker(x.view(SHAPE), y.view(SHAPE), 3, 4, distribution)
    mean = float(x @ y)
    sample = estimates(lambda seed: make_sketch("factorised", "a", SHAPE, DIM, seed, distribution), 8000)
    check(sample, mean, second - mean**2)


def second_moment_of_kronecker(x, y, k_out, k_in, distribution):
    """E <Px, Py>^2 for P = P_out (x) P_in, from the fourth moments of the two sides."""
    out_moment = fourth_moment(x.shape[0], k_out, distribution)
    in_moment = fourth_moment(x.shape[1], k_in, distribution)
    return float(torch.einsum("abcd,efgh,ae,bf,cg,dh->", out_moment, in_moment, x, y, x, y))


def fourth_moment(size, k, distribution):
    """E B_ab B_cd of B = Q^T Q, Q [k, size] with entries +-1/sqrt(k) or normal of variance 1/k (Wick)."""
    moment = torch.zeros(size, size, size, size, dtype=torch.float64)
    for a, b, c, d in itertools.product(range(size), repeat=4):
        value = (a == b) * (c == d) + ((a == c) * (b == d) + (a == d) * (b == c)) / k
        if distribution == "rademacher" and a == b == c == d:
            value -= 2 / k
        moment[a, b, c, d] = value
    return moment


@pytest.mark.parametrize("kind", ["trak", "srht", "sjlt"])
def test_error_falls_with_the_root_of_the_dimensions(kind):
    """Johnson-Lindenstrauss at a realistic size: squared norms have a relative error near sqrt(2/k)."""
    gradient = torch.randn(200, 20_000, generator=torch.Generator().manual_seed(5))
    for dim in (128, 1152):
        projected = make_sketch(kind, "a", (100, 200), dim, 0).project_gradient(gradient)
        error = (projected.square().sum(1) / gradient.square().sum(1) - 1).square().mean().sqrt()
        # 200 nearly independent squared norms: their root mean square is known to about 5 %.
        assert 0.75 < error / math.sqrt(2 / dim) < 1.25
