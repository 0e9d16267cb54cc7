"""Tiny models and examples, shared with the tests of gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

sys.path.append(str(Path(__file__).resolve().parents[1] / "gradients"))

from gradient_oracle import build_model


@pytest.fixture(scope="session")
def models() -> Callable[..., PreTrainedModel]:
    """Build a variant once per session and dtype."""
    built: dict[tuple[str, torch.dtype], PreTrainedModel] = {}

    def get(variant: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        if (variant, dtype) not in built:
            built[variant, dtype] = build_model(variant, dtype)
        return built[variant, dtype]

    return get
