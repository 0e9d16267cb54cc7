"""The Hadamard sketch against scipy's dense Hadamard matrix, in float64."""

import math

import pytest
import torch
from scipy.linalg import hadamard

from tdaexp.gradients import sketch_srht
from tdaexp.gradients.sketch import PackedSigns
from tdaexp.gradients.sketch_srht import SRHTSketch, walsh_hadamard


@pytest.mark.parametrize("length", [1, 2, 8, 128, 256, 4096])
def test_transform_equals_the_dense_matrix(length):
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x @ torch.from_numpy(hadamard(length)).double()
    torch.testing.assert_close(walsh_hadamard(x), expected, rtol=1e-11, atol=1e-10)


def test_long_transform_is_its_own_inverse_up_to_length():
    """Three stages (2^15), without the dense matrix: H H = m I, and two columns by hand."""
    x = torch.randn(2, 2**15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    transformed = walsh_hadamard(x)
    torch.testing.assert_close(walsh_hadamard(transformed), x * 2**15, rtol=1e-11, atol=1e-7)
    torch.testing.assert_close(transformed[:, 0], x.sum(1))
    signs = torch.tensor([(-1.0) ** (i & 0b101000000000001).bit_count() for i in range(2**15)]).double()
    torch.testing.assert_close(transformed[:, 0b101000000000001], x @ signs, rtol=1e-11, atol=1e-9)


def test_transform_refuses_other_lengths():
    for length in (0, 3, 12):
        with pytest.raises(ValueError, match="power of two"):
            walsh_hadamard(torch.ones(2, length))


def dense(sketch):
    """1/sqrt(k) [L_1 R H D_1, L_2 R H D_2, ...] without the columns of the padding: [dim, numel]."""
    like = torch.empty(0, dtype=torch.float64)
    right, left = (signs.unpack(0, sketch.blocks, like) for signs in (sketch.right, sketch.left))
    chosen = torch.from_numpy(hadamard(sketch.block)).double()[sketch.rows]
    parts = [left[b][:, None] * chosen * right[b] for b in range(sketch.blocks)]
    return torch.cat(parts, dim=1)[:, : sketch.numel] / math.sqrt(sketch.dim)


@pytest.mark.parametrize(("shape", "dim"), [((20, 50), 24), ((8, 16), 32), ((3, 5), 24), ((33, 1), 1)])
@pytest.mark.parametrize("entries", [1, 200, 2**17])  # one block at a time, a few, all
def test_equals_its_dense_matrix(shape, dim, entries, monkeypatch):
    monkeypatch.setitem(sketch_srht.CHUNK_ENTRIES, "cpu", entries)
    sketch = SRHTSketch(shape, dim, 5)
    numel = shape[0] * shape[1]
    gradient = torch.randn(3, numel, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = gradient @ dense(sketch).T
    torch.testing.assert_close(sketch.project_gradient(gradient), expected, rtol=1e-12, atol=1e-12)


def test_rows_are_a_choice_without_repetition():
    sketch = SRHTSketch((20, 50), 24, 5)
    assert sketch.block == 32 and sketch.blocks == 32
    assert len(set(sketch.rows.tolist())) == 24 and set(sketch.rows.tolist()) <= set(range(32))
    others = {tuple(SRHTSketch((20, 50), 24, seed).rows.tolist()) for seed in range(20)}
    assert len(others) == 20


def test_one_full_block_keeps_every_inner_product_exactly():
    x = torch.randn(5, 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    projected = SRHTSketch((6, 10), 64, 0).project_gradient(x)
    torch.testing.assert_close(projected @ projected.T, x @ x.T, rtol=1e-12, atol=1e-12)


def test_packed_signs_are_the_bits():
    signs = PackedSigns(5, 19, torch.Generator().manual_seed(0))
    packed = torch.randint(0, 256, (5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = [[1.0 if (int(packed[r, c // 8]) >> (c % 8)) & 1 else -1.0 for c in range(19)] for r in range(5)]
    assert signs.unpack(0, 5, torch.empty(0)).tolist() == expected
    assert signs.unpack(2, 4, torch.empty(0)).tolist() == expected[2:4]


def test_packed_signs_are_fair_and_uncorrelated():
    signs = PackedSigns(1000, 64, torch.Generator().manual_seed(1)).unpack(0, 1000, torch.empty(0))
    # 4.5 standard errors of one mean of 64,000 signs; 5.5 for thousands of correlations of 1,000 each.
    assert abs(signs.mean()) < 4.5 / math.sqrt(64_000)
    correlation = (signs.T @ signs / 1000).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(1000)
