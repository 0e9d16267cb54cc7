"""Arnoldi's iteration against a dense eigendecomposition; its inverse and preconditioner; its store after a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from dense_ggn import dense_ggn, spd
from gradient_oracle import build_model, gradients_of, make_examples

from tdaexp.curvature.arnoldi import dominant_eigenpairs
from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.models.components import component_map

MATRIX = spd(60)
START = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
RHS = torch.randn(3, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def run(store, steps=60, rank=12, multiply=lambda v: v @ MATRIX):
    return dominant_eigenpairs(multiply, START, steps=steps, rank=rank, store=store)


def test_the_eigenpairs_are_the_dense_ones(tmp_path):
    found = run(tmp_path / "store")
    values, vectors = torch.linalg.eigh(MATRIX)
    np.testing.assert_allclose(found.values, values.flip(0)[:12], rtol=1e-10)
    overlap = (found.vectors @ vectors.flip(1)[:, :12]).abs()
    torch.testing.assert_close(overlap, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-6)


def test_all_pairs_give_the_dense_inverse_and_few_that_of_their_span(tmp_path):
    dense = MATRIX + 0.3 * torch.eye(60, dtype=torch.float64)
    every = run(tmp_path / "all", rank=60)
    torch.testing.assert_close(every.inverse(RHS, 0.3), torch.linalg.solve(dense, RHS.T).T)
    few = run(tmp_path / "few", rank=9)
    inside = RHS @ few.vectors.T @ few.vectors
    torch.testing.assert_close(few.inverse(RHS, 0.3), torch.linalg.solve(dense, inside.T).T, rtol=1e-6, atol=1e-6)
    rest = (RHS - inside) / (few.values[-1] + 0.3)
    torch.testing.assert_close(few.precondition(RHS, 0.3), few.inverse(RHS, 0.3) + rest)


def test_errors_are_those_of_the_pairs_and_tell_which_have_converged(tmp_path):
    found = run(tmp_path / "store", steps=20, rank=20)
    true = (found.vectors @ MATRIX - torch.from_numpy(found.values)[:, None] * found.vectors).norm(dim=1)
    np.testing.assert_allclose(found.errors, true, rtol=1e-6, atol=1e-10)
    kept = found.converged(0.01)
    assert 0 < len(kept.values) < 20 and (kept.errors <= 0.01 * kept.values).all()


def test_the_basis_stays_orthogonal_where_plain_recursion_loses_it(tmp_path):
    found = dominant_eigenpairs(
        lambda v: v @ MATRIX.float(), START.float(), steps=60, rank=60, store=tmp_path / "store"
    )
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-4)


def test_a_matrix_of_low_rank_ends_the_iteration(tmp_path):
    basis = torch.linalg.qr(RHS.T).Q
    matrix = basis @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()) @ basis.T
    found = run(tmp_path / "store", steps=15, rank=10, multiply=lambda v: v @ matrix)
    assert 4 <= len(found.values) <= 6  # three, the null space, and what rounding adds
    np.testing.assert_allclose(found.values[:4], [3, 2, 1, 0], atol=1e-12)
    assert (np.abs(found.values[3:]) < 1e-12).all()


def test_a_killed_iteration_goes_on_with_the_same_bits(tmp_path):
    straight = run(tmp_path / "straight", steps=12, rank=6)
    calls = []

    def failing(vectors):
        calls.append(len(calls))
        if len(calls) == 8:
            raise KeyboardInterrupt
        return vectors @ MATRIX

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", steps=12, rank=6, multiply=failing)
    resumed = run(tmp_path / "killed", steps=12, rank=6, multiply=failing)
    assert len(calls) == 8 + 5
    assert torch.equal(resumed.vectors, straight.vectors) and (resumed.values == straight.values).all()


def test_a_model_s_eigenvalues(tmp_path):
    model = build_model("gpt_neox-untied").requires_grad_(False)
    components, examples = component_map(model).select(["layers.1.attn.o"]), make_examples(0, 4)
    ggn = TrainingGGN(gradients_of(model, examples, components))
    start = torch.randn(ggn.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = dominant_eigenpairs(ggn.multiply, start, steps=60, rank=8, store=tmp_path / "store")
    wanted = torch.linalg.eigvalsh(dense_ggn(model, components, examples)).flip(0)[:8]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-9)


def test_steps_that_are_damaged_are_taken_again_with_all_after_them(tmp_path):
    whole = run(tmp_path / "store", steps=20)
    group = zarr.open_group(tmp_path / "store", mode="r+")
    for step in (5, 11):
        group["next"][step] = 0.0
    found = run(tmp_path / "store", steps=20)
    np.testing.assert_array_equal(found.values, whole.values)
    assert torch.equal(found.vectors, whole.vectors)
