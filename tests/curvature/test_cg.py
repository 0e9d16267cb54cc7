"""Conjugate gradients against direct solutions; influence by them against leave-one-out retraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_ggn import dense_ggn, spd
from gradient_oracle import build_model, gradients_of, make_examples

from tdaexp.curvature.arnoldi import dominant_eigenpairs
from tdaexp.curvature.cg import conjugate_gradients
from tdaexp.curvature.ggn import TrainingGGN, ggn_product
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.models.components import component_map

MATRIX = spd(40)
RHS = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IDENTITY = torch.eye(40, dtype=torch.float64)


def solve(rhs=RHS, damping=0.01, iterations=200, tolerance=1e-10, **options):
    return conjugate_gradients(
        lambda v: v @ MATRIX, rhs, damping=damping, iterations=iterations, tolerance=tolerance, **options
    )


def test_the_solution_is_that_of_the_dense_inverse():
    found = solve()
    torch.testing.assert_close(
        found.vectors, torch.linalg.solve(MATRIX + 0.01 * IDENTITY, RHS.T).T, rtol=1e-8, atol=1e-8
    )
    assert (found.residual <= 2e-10).all() and (found.iterations <= 60).all()


def test_a_preconditioner_shortens_the_way_to_the_same_solution(tmp_path):
    start = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pairs = dominant_eigenpairs(lambda v: v @ MATRIX, start, steps=40, rank=35, store=tmp_path / "arnoldi")
    plain, helped = solve(), solve(precondition=lambda v: pairs.precondition(v, 0.01))
    torch.testing.assert_close(helped.vectors, plain.vectors, rtol=1e-7, atol=1e-7)
    assert (helped.iterations < plain.iterations / 2).all()


def test_the_residual_that_is_reported_is_the_true_one():
    found = solve(iterations=4)
    true = (RHS - found.vectors @ (MATRIX + 0.01 * IDENTITY)).norm(dim=1) / RHS.norm(dim=1)
    torch.testing.assert_close(found.residual, true)
    assert (true > 1e-3).all() and found.iterations.tolist() == [4] * 5


def test_rounding_that_keeps_the_residual_up_is_reported():
    """In float32 the recursion goes on to think itself converged; the true residual does not follow it down."""
    matrix = spd(40, 1e-5, 1.0).float()
    found = conjugate_gradients(lambda v: v @ matrix, RHS.float(), damping=0.0, iterations=2000, tolerance=1e-6)
    exact = (RHS - found.vectors.double() @ matrix.double()).norm(dim=1) / RHS.norm(dim=1)
    assert (found.iterations < 2000).all() and (exact > 5e-6).all()
    torch.testing.assert_close(found.residual, exact, rtol=0.5, atol=0)


def test_each_right_hand_side_is_solved_as_if_it_were_alone():
    easy = torch.linalg.eigh(MATRIX).eigenvectors[:, -1]  # one step
    together = solve(torch.stack([RHS[0], easy, torch.zeros(40, dtype=torch.float64), RHS[1]]))
    assert together.iterations[1] == 1 and together.iterations[2] == 0
    assert not together.vectors[2].any() and together.residual[2] == 0
    for place, row in ((0, RHS[:1]), (3, RHS[1:2])):
        alone = solve(row)
        torch.testing.assert_close(together.vectors[place], alone.vectors[0], rtol=1e-9, atol=1e-9)


def test_with_much_damping_the_ranking_is_that_of_the_dot_product():
    found = solve(damping=1e6).vectors
    assert ((1e6 * found - RHS).norm(dim=1) <= 4e-6 * RHS.norm(dim=1)).all()
    assert torch.equal(found.argsort(dim=1), RHS.argsort(dim=1))


@pytest.mark.parametrize("variant", ["gpt2-untied", "gpt_neox-tied"])
def test_a_model_s_inverse_is_the_dense_one(variant):
    model = build_model(variant).requires_grad_(False)
    components = component_map(model).select(["layers.1.attn.v", "layers.1.mlp.down"])
    train = make_examples(0, 6)
    side = gradients_of(model, train, components, reduction="sum")
    ggn, gradients = TrainingGGN(side), gradient_vectors(side, list(range(6)))
    found = conjugate_gradients(ggn.multiply, gradients, damping=0.05, iterations=300, tolerance=1e-11)
    dense = dense_ggn(model, components, train) + 0.05 * torch.eye(ggn.size, dtype=torch.float64)
    wanted = torch.linalg.solve(dense, gradients.T).T
    torch.testing.assert_close(found.vectors, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


def test_influence_is_leave_one_out_retraining_in_ridge_regression():
    """Removing an example changes a query's loss as influence says: correlation above 0.99 over all pairs."""
    rng = np.random.default_rng(0)
    n, d, ridge = 120, 6, 0.1
    x, queries = (torch.from_numpy(rng.normal(size=(rows, d))) for rows in (n, 15))
    truth = torch.from_numpy(rng.normal(size=d))
    y, answers = x @ truth + torch.from_numpy(rng.normal(size=n)), queries @ truth

    def fitted(keep):
        return torch.linalg.solve(x[keep].T @ x[keep] + n * ridge * torch.eye(d).double(), x[keep].T @ y[keep])

    def losses(theta):
        return 0.5 * (queries @ theta - answers) ** 2

    theta = fitted(torch.arange(n))
    train_gradients, query_gradients = (x @ theta - y)[:, None] * x, (queries @ theta - answers)[:, None] * queries

    def multiply(v):
        return ggn_product(lambda p: x @ p["w"], {"w": theta}, {"w": v}, lambda _, directions: directions)["w"] / n

    solved = conjugate_gradients(multiply, query_gradients, damping=ridge, iterations=50, tolerance=1e-12).vectors
    influence = solved @ train_gradients.T / n
    retrained = torch.stack([losses(fitted(torch.arange(n) != k)) - losses(theta) for k in range(n)], dim=1)
    assert np.corrcoef(influence.flatten(), retrained.flatten())[0, 1] > 0.99
    torch.testing.assert_close(influence.sign()[retrained.abs() > 0.01], retrained.sign()[retrained.abs() > 0.01])
