"""Kernels of torch that any transformation of a model can go through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention by matrix products inside the block, and encoder layers by their parts.

    The fused ones have neither a forward-mode derivative nor a rule for `vmap`.
    """
    usual = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(usual)
