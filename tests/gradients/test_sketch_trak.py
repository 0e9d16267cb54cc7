"""The traker sketch against traker's own BasicProjector with the same seed."""

import math

import pytest
import torch
from trak.projectors import BasicProjector, ProjectionType

from tdaexp.gradients import sketch_trak
from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.sketch_trak import TrakSketch
from tdaexp.runtime.errors import UserError


def traker(numel, dim, seed, distribution, block_size=100):
    kind = ProjectionType(distribution)
    return BasicProjector(numel, dim, seed, kind, torch.device("cpu"), block_size=block_size)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("dim", [60, 100, 101, 512])
def test_equals_trakers_own_projector(dim, distribution):
    gradient = torch.randn(3, 600, generator=torch.Generator().manual_seed(0))
    sketch = make_sketch("trak", "layers.0.attn.q", (20, 30), dim, 4, distribution)
    expected = traker(600, dim, sketch.seed, distribution).project(gradient, model_id=0)
    assert torch.equal(sketch.project_gradient(gradient), expected / math.sqrt(dim))


def test_large_components_are_drawn_in_narrower_blocks(monkeypatch):
    monkeypatch.setattr(sketch_trak, "BLOCK_ENTRIES", 600 * 7)
    gradient = torch.randn(3, 600, generator=torch.Generator().manual_seed(0))
    sketch = make_sketch("trak", "embed", (20, 30), 64, 4)
    assert sketch.block_columns == 7
    expected = traker(600, 64, sketch.seed, "rademacher", block_size=7).project(gradient, model_id=0)
    assert torch.equal(sketch.project_gradient(gradient), expected / math.sqrt(64))


def test_blocks_of_different_components_share_no_column():
    """traker seeds block i with seed + 1,000 i: neighbouring seeds would repeat whole blocks."""
    unit = torch.eye(40)
    first = make_sketch("trak", "layers.0.attn.q", (5, 8), 1024, 0).project_gradient(unit).sign()
    second = make_sketch("trak", "layers.1.attn.q", (5, 8), 1024, 0).project_gradient(unit).sign()
    assert not (first.T @ second == 40).any()


def test_cuda_kernel_is_scaled_and_checked(monkeypatch):
    """The arithmetic around the CUDA kernel, with a stand-in that rounds to float16 as fast_jl does."""

    class Kernel:
        def __init__(self, grad_dim, proj_dim, seed, proj_type, device, max_batch_size):
            assert proj_type is ProjectionType.rademacher and max_batch_size in (8, 16, 32)
            self.exact = traker(grad_dim, proj_dim, seed, "rademacher")

        def project(self, grads, model_id):
            assert grads.is_contiguous() and grads.dtype == torch.float32
            return self.exact.project(grads.half().float(), model_id)

    monkeypatch.setattr("trak.projectors.CudaProjector", Kernel)
    gradient = torch.randn(4, 600, generator=torch.Generator().manual_seed(0))
    gradient *= torch.tensor([1e-9, 1.0, 1e6, 0.0])[:, None]  # below, within and above float16's range, and zero
    sketch = make_sketch("trak", "a", (20, 30), 512, 0)
    result, expected = sketch._project_cuda(gradient), sketch.project_gradient(gradient)
    for row, reference in zip(result, expected, strict=True):
        torch.testing.assert_close(row, reference, rtol=0, atol=2e-3 * float(reference.abs().max()))
    with pytest.raises(UserError, match="multiple of 512"):
        make_sketch("trak", "a", (20, 30), 500, 0)._project_cuda(gradient)


def test_seed_fits_trakers_range():
    seeds = {TrakSketch((5, 8), 600, seed).seed for seed in (0, 2**31 + 5, 2**62 + 1)}
    assert all(0 <= seed < 2**31 for seed in seeds)
