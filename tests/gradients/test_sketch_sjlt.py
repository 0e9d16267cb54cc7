"""The sparse sketch against its dense matrix, and the structure of that matrix."""

import math

import pytest
import torch

from tdaexp.gradients import sketch_sjlt
from tdaexp.gradients.sketch_sjlt import SJLTSketch


def dense(sketch):
    """The matrix [dim, numel], entry by entry from the definition of the codes."""
    matrix = torch.zeros(sketch.dim, sketch.numel, dtype=torch.float64)
    for codes in sketch.codes.tolist():
        for column, code in enumerate(codes):
            matrix[code // 2, column] += -1.0 if code % 2 else 1.0
    return matrix / math.sqrt(len(sketch.codes))


@pytest.mark.parametrize("nonzeros", [1, 2, 5])
@pytest.mark.parametrize("chunk", [7, 2**20])
def test_equals_its_dense_matrix(nonzeros, chunk, monkeypatch):
    monkeypatch.setattr(sketch_sjlt, "CHUNK_COLUMNS", chunk)
    sketch = SJLTSketch((6, 10), 13, 0, nonzeros)
    gradient = torch.randn(3, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gradient @ dense(sketch).T
    torch.testing.assert_close(sketch.project_gradient(gradient), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dim", "nonzeros"), [(12, 4), (13, 4), (3, 5)])
def test_every_column_has_one_entry_per_group(dim, nonzeros):
    matrix = dense(SJLTSketch((50, 60), dim, 1, nonzeros))
    count = min(dim, nonzeros)
    assert torch.equal((matrix != 0).sum(0), torch.full((3000,), count))
    assert matrix.square().sum(0).allclose(torch.ones(3000, dtype=torch.float64))
    for group in range(count):
        rows = matrix[group * dim // count : (group + 1) * dim // count]
        assert torch.equal((rows != 0).sum(0), torch.ones(3000, dtype=torch.long))


def test_buckets_and_signs_are_even():
    """Counts of the 2 x 16 (row, sign) cells over 32,000 columns: each within 5 standard errors of 1,000."""
    codes = SJLTSketch((320, 100), 16, 2, 1).codes.flatten()
    counts = torch.bincount(codes, minlength=32)
    assert len(counts) == 32
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)
