"""The pure functions: blocked sums of outer products, rotated squares in both orders, eigenbases, damping."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tdaexp.curvature.covariance import BLOCK, add_second_moment, mirrored
from tdaexp.curvature.damping import Damping
from tdaexp.curvature.eigen import eigenbasis
from tdaexp.curvature.lambdas import add_rotated_squares
from tdaexp.curvature.precondition import LayerFactors, low_rank
from tdaexp.runtime.errors import UserError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [3, BLOCK, 2 * BLOCK + 7])
@pytest.mark.parametrize("ones", [False, True])
def test_second_moments_block_by_block(width, ones):
    parts = [random(5, width, seed=s) for s in range(2)]
    total = torch.zeros(width + ones, width + ones, dtype=torch.float64)
    for part in parts:
        add_second_moment(total, part, ones)
    x = torch.cat(parts)
    if ones:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    found = mirrored(total)
    torch.testing.assert_close(found, x.T @ x, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.T)


def test_the_blocks_save_nearly_half():
    """Of four blocks in each direction ten are computed; torch's counter knows no product that is added in place."""

    def added(total, left, right, *_, out_shape, **__):
        return 2 * left[0] * left[1] * right[1]

    width = 4 * BLOCK
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counted:
        add_second_moment(torch.zeros(width, width), torch.ones(3, width))
    assert counted.get_total_flops() == 2 * 3 * 10 / 16 * width**2


@pytest.mark.parametrize("positions", [2, 6, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_rotated_squares_whichever_side_is_rotated_first(positions, bias, monkeypatch):
    """T below, between and above O = 9 and I = 4: all orders; a few examples at a time."""
    inputs, deltas = random(5, positions, 4), random(5, positions, 9, seed=1)
    q_in, q_out = torch.linalg.qr(random(4 + bias, 4 + bias, seed=2))[0], torch.linalg.qr(random(9, 9, seed=3))[0]
    whole = torch.cat([inputs, torch.ones(5, positions, 1, dtype=torch.float64)], 2) if bias else inputs
    gradient = torch.einsum("bto,bti->boi", deltas, whole)
    for basis in ((q_in, q_out), (None, None)):
        wanted = gradient if basis[0] is None else q_out.T @ gradient @ q_in
        for limit in (1, 1 << 20):
            monkeypatch.setattr("tdaexp.curvature.lambdas.CHUNK_BYTES", {"cpu": limit})
            total = torch.ones(9, 4 + bias, dtype=torch.float64)
            add_rotated_squares(total, inputs, deltas, bias, *basis)
            torch.testing.assert_close(total, 1 + wanted.square().sum(0), rtol=1e-10, atol=1e-12)


def test_eigenvalues_below_zero():
    rounding = torch.diag(torch.tensor([1.0, 2.0, -1e-9]))
    found = eigenbasis(rounding, "A of layer 'x'")
    assert (
        found.lowest == pytest.approx(-1e-9) and float(found.values.min()) == 0 and found.values.dtype == torch.float64
    )
    with pytest.raises(UserError, match=r"A of layer 'x': eigenvalue -0.1 beside a largest of 2"):
        eigenbasis(torch.diag(torch.tensor([1.0, 2.0, -0.1])), "A of layer 'x'")
    with pytest.raises(UserError, match="is not finite"):
        eigenbasis(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "A of layer 'x'")
    assert eigenbasis(torch.zeros(3, 3), "A").lowest == 0


def test_damping_by_value_and_by_the_mean():
    spectrum = torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    assert Damping(0.25).of(spectrum, "x", rounding=1e-6) == 0.25
    assert Damping(relative=0.1).of(spectrum, "x", rounding=1e-6) == pytest.approx(0.2)
    assert Damping(0.0).of(spectrum + 1, "x", rounding=1e-6) == 0
    assert Damping(1e-8).of(spectrum, "x", rounding=1e-6) == 1e-8
    for how in (Damping(0.0), Damping(relative=0.0)):
        with pytest.raises(
            UserError, match=r"layer 'x': 1 of 4 eigenvalues are zero.*damping=null method.relative_damping=0\.1"
        ):
            how.of(spectrum, "x", rounding=1e-6)
    with pytest.raises(UserError, match=r"layer 'x': 4 of 4"):
        Damping(relative=0.1).of(torch.zeros(2, 2), "x", rounding=1e-6)
    for bad in (dict(value=-1.0), dict(relative=float("nan"))):
        with pytest.raises(UserError, match="not negative"):
            Damping(**bad)


def test_the_identity_is_neither_damped_nor_inverted():
    gradient = random(2, 3, 4)
    assert torch.equal(LayerFactors("x", None, None, None).precondition(gradient, Damping(7.0)), gradient)


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 5, 6)])
def test_low_rank_is_the_best_approximation(shape):
    gradient = random(*shape)
    left, right = low_rank(gradient, 2)
    torch.testing.assert_close(right @ right.transpose(1, 2), torch.eye(2, dtype=right.dtype).expand(3, 2, 2))
    found = torch.einsum("nro,nri->noi", left, right)
    error = torch.linalg.svdvals(gradient)[:, 2:].square().sum(1)
    torch.testing.assert_close((gradient - found).flatten(1).square().sum(1), error)
    full = torch.einsum("nro,nri->noi", *low_rank(gradient, 9))
    torch.testing.assert_close(full, gradient)
