"""Kernels of torch that any transformation of a model can go through."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger(__name__)
FORWARD_MODE = ("eager", "sdpa")
"""Attention implementations with a forward-mode derivative, sdpa by its math kernel."""


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


@contextlib.contextmanager
def forward_mode(model: nn.Module, what: str) -> Iterator[None]:
    """Replace, inside the block, what has no forward-mode derivative: fused kernels, and BLOOM's own GELU.

    The log says once that attention is replaced, and for `what`.
    """
    from transformers.models.bloom.modeling_bloom import BloomGelu, bloom_gelu_forward

    switch = _plain_attention(model, what)
    replaced = [module for module in model.modules() if isinstance(module, BloomGelu)]
    for module in replaced:
        vars(module)["forward"] = bloom_gelu_forward
    try:
        with switch, plain_kernels(), warnings.catch_warnings():
            # torch's first forward-mode derivative compiles its own rules by a function that it calls deprecated itself
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
            yield
    finally:
        for module in replaced:
            del vars(module)["forward"]


@contextlib.contextmanager
def _plain_attention(model: nn.Module, what: str) -> Iterator[None]:
    """Attention that has a forward-mode derivative inside the block: torch's math kernel, or transformers' `eager`."""
    inner: Any = getattr(model, "model", model)
    if not hasattr(inner, "set_attn_implementation"):  # no model of transformers
        yield
        return
    usual = inner.config._attn_implementation
    if usual != "eager":
        _tell_switch(usual, what)
    if usual in FORWARD_MODE:
        yield
        return
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(usual)


@functools.cache
def _tell_switch(usual: str, what: str) -> None:
    """Say once in which attention something runs."""
    used = "torch's math kernel" if usual == "sdpa" else "eager"
    log.info("%s need forward-mode derivatives: attention %s gives way to %s", what, usual, used)
