"""Matrix products of 16-bit tensors that are formed in float32, at full rate where a GPU has it.

The product of two numbers of 16 bits is exact in float32. A GPU multiplies such matrices as they are and adds up in
float32 (`out_dtype` of torch.bmm and torch.mm, on CUDA only); elsewhere both are converted first. Either way the result
is that of the converted tensors up to the order of the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
DEVICES = ("cuda",)
"""Devices on which torch knows `out_dtype`."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that products are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def multiplied_as_they_are(left: Tensor, right: Tensor) -> bool:
    """Whether the device forms products of these tensors in float32 without converting them."""
    return left.device.type in DEVICES and left.dtype in NARROW and left.dtype == right.dtype


def wide_bmm(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Products [B, n, m] of [B, n, k] and [B, k, m] in float32, or float64 for float64, into `out` if it is given."""
    if multiplied_as_they_are(left, right):
        found = torch.bmm(left, right, torch.float32)
        return found if out is None else out.copy_(found)
    wide = accumulation_dtype(left.dtype)
    return torch.bmm(left.to(wide), right.to(wide), out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of [n, k] and [k, m] to `total` [n, m] of their wide dtype."""
    if multiplied_as_they_are(left, right):
        total.add_(torch.mm(left, right, torch.float32))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
