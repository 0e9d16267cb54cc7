"""Products of 16-bit matrices in float32: against float64, and a GPU's branch by the shapes that torch gives it."""

import pytest
import torch

from tdaexp.runtime import accumulation
from tdaexp.runtime.accumulation import add_product, multiplied_as_they_are, wide_bmm

GENERATOR = torch.Generator().manual_seed(0)
LEFT = torch.randn(3, 5, 64, generator=GENERATOR, dtype=torch.float64)
RIGHT = torch.randn(3, 64, 7, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_products_are_formed_in_float32_at_least(dtype):
    left, right = LEFT.to(dtype), RIGHT.to(dtype)
    exact = left.double() @ right.double()  # of the rounded entries: products of 16-bit numbers are exact
    tolerance = dict(rtol=0, atol=64 * 1e-6) if dtype != torch.float64 else dict(rtol=0, atol=1e-13)
    found = wide_bmm(left, right)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), exact, **tolerance)
    out = torch.zeros(3, 5, 9, dtype=found.dtype)
    assert wide_bmm(left, right, out=out[..., :7]).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out[..., :7].double(), exact, **tolerance)
    assert (out[..., 7:] == 0).all()
    total = torch.ones(5, 7, dtype=found.dtype)
    add_product(total, left[0], right[0])
    torch.testing.assert_close(total.double(), exact[0] + 1, **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_multiplies_16_bits_as_they_are(dtype, monkeypatch):
    """torch's own rules for shapes and types (the meta device) accept what would be asked of a GPU."""
    monkeypatch.setattr(accumulation, "DEVICES", ("meta",))
    converted = []
    monkeypatch.setattr(accumulation, "accumulation_dtype", lambda dtype: converted.append(dtype) or torch.float32)
    left, right = (one.to("meta", dtype) for one in (LEFT, RIGHT))
    found = wide_bmm(left.transpose(1, 2).contiguous().transpose(1, 2), right)
    assert found.dtype == torch.float32 and found.shape == (3, 5, 7) and found.device.type == "meta"
    out = torch.zeros(3, 5, 9, device="meta")
    assert wide_bmm(left, right, out=out[..., :7]).shape == (3, 5, 7)
    total = torch.zeros(5, 7, device="meta")
    add_product(total, left[0], right[0])
    assert total.dtype == torch.float32 and not converted
    assert multiplied_as_they_are(left, right) and not multiplied_as_they_are(left, right.float())
    assert not multiplied_as_they_are(left.float(), right.float())
    wide_bmm(left.float(), right.float())
    assert converted == [torch.float32]


def test_torch_refuses_the_gpus_branch_on_a_cpu():
    """Why the branch is bound to a device."""
    with pytest.raises(NotImplementedError):
        torch.bmm(LEFT.bfloat16(), RIGHT.bfloat16(), torch.float32)
